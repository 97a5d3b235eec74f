"""Values to and from msgpack."""

from __future__ import annotations

import msgpack
import numpy as np

from .errors import ProtocolError


def pack(value) -> bytes:
    """msgpack; numpy's numbers and arrays may stand wherever Python's may."""
    return msgpack.packb(value, use_bin_type=True, default=_plain)


def _plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
        plain = value.tolist()
        if not isinstance(plain, type(value)):
            return plain
    raise TypeError(f"{type(value).__name__} cannot be stored: only None, bool, int, float, str, list and dict")


def unpack(body: bytes) -> dict:
    try:
        reply = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except Exception as e:  # msgpack raises several kinds
        raise ProtocolError(f"the reply is no msgpack: {e}") from None
    if not isinstance(reply, dict):
        raise ProtocolError("the reply is no map")
    return reply
