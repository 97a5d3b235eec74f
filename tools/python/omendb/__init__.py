"""Client of OmenDB, a distributed vector database.

    import numpy as np, omendb

    with omendb.connect("127.0.0.1:7700") as db:
        docs = db.create_collection("docs", dim=128, metric="cosine", exist_ok=True)
        docs.upsert([1, 2], np.random.rand(2, 128), [{"lang": "en"}, {"lang": "de"}])
        for hit in docs.search(np.random.rand(128), k=10, filter={"must": [{"key": "lang", "match": {"value": "en"}}]}):
            print(hit.id, hit.score, hit.payload)

Everything is a plain TCP socket, msgpack and numpy; the protocol is in common/wire/PROTOCOL.md.
"""

from .client import Client, connect
from .collection import Collection, Hits, Point, VectorField, WriteResult
from .errors import (AlreadyExists, AuthenticationFailed, Busy, ClientClosed, Corrupt, DeadlineExceeded, DiskFull,
                     InvalidRequest, NotFound, OmenError, OperationExpired, OutcomeUnknown, PermissionDenied,
                     ProtocolError, ServerError, TooBig, Unavailable, VersionMismatch)
from .pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["connect", "Client", "Collection", "Hits", "Pipeline", "Point", "VectorField", "WriteResult", "OmenError",
           "AlreadyExists", "AuthenticationFailed", "Busy", "ClientClosed", "Corrupt", "DeadlineExceeded", "DiskFull",
           "InvalidRequest", "NotFound", "OperationExpired", "OutcomeUnknown", "PermissionDenied", "ProtocolError",
           "ServerError", "TooBig", "Unavailable", "VersionMismatch"]
