"""Client: endpoints, fail-over, op ids, retries, session tokens. What a request means is in collection.py."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Dict, List, Optional, Sequence, Union

from .collection import Collection, VectorField
from .connection import Connection, connect_any, parse_endpoint
from .errors import (AlreadyExists, ClientClosed, DeadlineExceeded, InvalidRequest, OmenError, OutcomeUnknown, StaleTokens,
                     Unavailable, VersionMismatch, from_reply, outcome_of, should_retry)
from .values import pack, unpack

PROTOCOL_VERSION = 1
_TOKENS_MAX = 1024
_ATTEMPT_SECONDS_MIN = 1.0


def connect(endpoints: Union[str, Sequence[str]] = "127.0.0.1:7700", *, api_key: Optional[str] = None,
            timeout: float = 30.0, consistency: str = "session") -> "Client":
    """A :class:`Client` of one or several endpoints; fails over between them. Use it as a context manager.

    Args:
        endpoints: ``"host:port"``, ``"tcp://host:port"``, several with commas, or a list.
        api_key: sent with every request when the server asks for one.
        timeout: seconds a call may take over all its retries.
        consistency: of reads: ``"session"`` (you see what you wrote), ``"eventual"`` or ``"linearizable"``.

    Raises:
        Unavailable: no endpoint answers.
    """
    return Client(endpoints, api_key=api_key, timeout=timeout, consistency=consistency)


class Client:
    """A connection to a database. Thread-safe. See :func:`connect`."""

    def __init__(self, endpoints, *, api_key=None, timeout=30.0, consistency="session"):
        if isinstance(endpoints, str):
            endpoints = endpoints.split(",")
        self._endpoints = [e.strip() for e in endpoints]
        if not self._endpoints:
            raise ValueError("no endpoints")
        for endpoint in self._endpoints:
            parse_endpoint(endpoint)
        if consistency not in ("session", "eventual", "linearizable"):
            raise ValueError("consistency is session, eventual or linearizable")
        self._api_key, self.timeout, self._consistency = api_key, timeout, consistency
        self._lock = threading.Lock()
        self._connection: Optional[Connection] = None
        self._endpoint = 0
        self._closed = False
        self._client_id = int.from_bytes(os.urandom(8), "big") | 1
        self._sequence = itertools.count(1)
        self._incarnation: Optional[int] = None
        self._tokens: Dict[int, int] = {}  # shard -> sequence
        self._server_clock: Optional[float] = None  # its wall clock less our monotonic one, as hello told
        self._by_server = False  # issue times are by the server's clock: ours is ahead of the leader's
        self.server: dict = {}
        self._connected(time.monotonic() + timeout)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self) -> None:
        """Close the connection; outstanding writes end with :class:`OutcomeUnknown`."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ---- collections ----

    def create_collection(self, name: str, dim: Optional[int] = None, *, metric: str = "cosine",
                          fields: Optional[Dict[str, VectorField]] = None, shard_key: Optional[str] = None,
                          shards: int = 1, replication: int = 1, recall_target: Optional[float] = None,
                          profile: Optional[str] = None, options: Optional[dict] = None,
                          exist_ok: bool = False) -> Collection:
        """Create a collection.

        Args:
            name: letters, digits, ``_ . -``; at most 128 bytes.
            dim: components of the one unnamed vector field; or give ``fields``.
            metric: ``"cosine"``, ``"l2"`` or ``"ip"``, of the unnamed field.
            fields: several named vector fields: ``{"title": VectorField(384), "image": VectorField(512, "l2")}``.
            shard_key: payload path whose value decides the shard.
            shards: how many, 1..256.
            replication: copies of each shard on different nodes, 1..7.
            recall_target: what searches shall reach; None: what the profile says, else 0.95.
            profile: ``"speed"``, ``"balanced"`` or ``"quality"``.
            options: single values over the profile's: ``{"write_mode": "stream_only", "index_delay_ms": 10_000}``, or
                ``{"segments": "payload_aware", "tenant_path": "user.id"}`` for many tenants; all are in PROTOCOL.md.
            exist_ok: return the existing collection instead of raising :class:`AlreadyExists`.
        """
        if (dim is None) == (fields is None):
            raise ValueError("give dim or fields")
        vectors = fields if fields is not None else {"": VectorField(dim, metric)}
        request = {"op": "collection.create", "collection": name, "shards": shards, "replication": replication,
                   "vectors": {n: {"dim": f.dim, "metric": f.metric} for n, f in vectors.items()}}
        if shard_key is not None:
            request["shard_key"] = shard_key
        if recall_target is not None:
            request["recall_target"] = recall_target
        if profile is not None or options:
            request["options"] = {**({} if profile is None else {"profile": profile}), **(options or {})}
        try:
            self._change(request)
        except AlreadyExists:
            if not exist_ok:
                raise
        return self.collection(name)

    def set_options(self, name: str, *, profile: Optional[str] = None, **options) -> None:
        """Change options of a collection, for what is indexed from now on; ``recall_target`` at once. Names and values as in
        :meth:`create_collection`: ``db.set_options("docs", recall_target=0.99)``."""
        if profile is not None:
            options["profile"] = profile
        self._change({"op": "collection.set", "collection": name, "options": options})

    def collection(self, name: str) -> Collection:
        """A handle to a collection or alias; nothing is asked of the server yet."""
        return Collection(self, name)

    def collections(self) -> List[dict]:
        """Descriptions of all collections."""
        return self._call({"op": "collection.list"})["collections"]

    def describe(self, name: str) -> dict:
        """Schema, shards, points and sizes of one collection."""
        return self._call({"op": "collection.describe", "collection": name})["collections"][0]

    def drop_collection(self, name: str) -> None:
        """Remove a collection and its data."""
        self._change({"op": "collection.drop", "collection": name})

    def set_alias(self, alias: str, collection: str) -> None:
        """Point ``alias`` at a collection; replaces what it pointed at."""
        self._change({"op": "alias.set", "alias": alias, "collection": collection})

    def drop_alias(self, alias: str) -> None:
        self._change({"op": "alias.drop", "alias": alias})

    def status(self) -> dict:
        """The server's own report: version, uptime, collections, log."""
        return self._call({"op": "status"})["status"]

    # ---- the cluster ----

    def cluster(self, do: str, **members) -> dict:
        """What concerns the whole cluster: ``db.cluster("rebalance", apply=True)``. PROTOCOL.md lists the actions and their
        members; ``omenctl`` has a command for each.

        Raises:
            OutcomeUnknown: a change that may have been made and was asked for again, with its op id, until the timeout; or a
                ``leader_transfer``, which has none and is sent once. Look at :meth:`cluster_status`.
        """
        request = {"op": "cluster", "request": {"do": do, **members}}
        if changes_cluster(request) and do != "leader_transfer":
            request["op_id"] = self.new_op_id()
        return self._call(request)["reply"]

    def cluster_status(self) -> dict:
        """Nodes, shards with their replicas, operations and their history."""
        return self.cluster("status")

    # ---- requests ----

    def _change(self, request: dict) -> dict:
        """A change of collections or aliases: made once, however often it is sent."""
        return self._call({**request, "op_id": self.new_op_id()})

    def new_op_id(self) -> List[int]:
        """[client, seq, issue time]: a write or change that carries it is applied once, however often it is sent."""
        now = self._server_clock + time.monotonic() if self._by_server else time.time()
        return [self._client_id, next(self._sequence), int(now * 1000)]

    def _op_id_anew(self, request: dict, error: OmenError) -> Optional[dict]:
        """The request under a new id, when it was refused, before anything was begun, because its issue time is ahead of the leader's
        clock: our clock, or the server's when we went by that, is wrong. From now on issue times are by the other one."""
        if not (isinstance(error, InvalidRequest) and error.field == "op_id[2]" and not error.partial and self._server_clock is not None and
                request.get("op_id", [0])[0] == self._client_id):
            return None
        with self._lock:
            anew = self.new_op_id()
            if anew[2] + 1000 >= request["op_id"][2]:  # else another thread has changed over already
                self._by_server = not self._by_server
                anew = self.new_op_id()
        return {**request, "op_id": anew}

    def encode(self, request: dict, deadline: float) -> bytes:
        """Envelope and msgpack; vectors and other buffers go out as they are."""
        envelope = {"v": PROTOCOL_VERSION, **request,
                    "deadline_ms": max(1, min(3_600_000, int((deadline - time.monotonic()) * 1000)))}
        if self._api_key is not None:
            envelope["key"] = self._api_key
        if str(request["op"]).startswith("points."):
            envelope["consistency"] = self._consistency
            with self._lock:
                tokens = [[self._incarnation, shard, seq] for shard, seq in self._tokens.items()]
            if tokens and self._consistency == "session":
                envelope["tokens"] = tokens
        return pack(envelope)

    def decode(self, body: bytes) -> dict:
        """A reply's map; raises the typed error when it says so."""
        if not body:  # what a server sends that has no memory for a reply
            raise OutcomeUnknown("the server answered with nothing")
        reply = unpack(body)
        if not reply.get("ok"):
            error = from_reply(reply.get("error", {}))
            error.partial = any(shard[1] == 0 for shard in reply.get("shards", ()))
            if isinstance(error, StaleTokens):
                with self._lock:
                    self._tokens = {}
            raise error
        self._remember(reply.get("tokens", ()))
        return reply

    def _remember(self, tokens) -> None:
        """Keep the highest sequence per shard; tokens of another incarnation go (the cluster was restored)."""
        with self._lock:
            for incarnation, shard, sequence in tokens:
                if incarnation != self._incarnation:
                    self._incarnation, self._tokens = incarnation, {}
                self._tokens[shard] = max(sequence, self._tokens.pop(shard, 0))  # last used goes last
            while len(self._tokens) > _TOKENS_MAX:
                self._tokens.pop(next(iter(self._tokens)))

    def _connected(self, deadline: float) -> Connection:
        """The living connection, made anew when it is lost."""
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._connection is not None and not self._connection.closed:
                return self._connection
            timeout = max(0.05, min(5.0, deadline - time.monotonic()))
            connection, self._endpoint = connect_any(self._endpoints, self._endpoint, timeout)
            self._connection = connection
        hello = {"v": 1, "op": "hello", "versions": [1, PROTOCOL_VERSION], "client": "omendb-python/0.1.0"}
        try:
            sent = time.monotonic()
            reply = unpack(connection.send(pack(hello), timeout).result(timeout))
            if reply.get("now_ms"):
                self._server_clock = reply["now_ms"] / 1000 - (sent + time.monotonic()) / 2
        except (FutureTimeout, OutcomeUnknown, DeadlineExceeded) as e:
            connection.close()
            with self._lock:
                self._endpoint += 1  # a server that accepts and says nothing: try another one first
            raise Unavailable(f"{connection.endpoint} does not answer: {e}") from None
        if not reply.get("ok"):
            connection.close()
            raise from_reply(reply.get("error", {}))
        if reply["version"] != PROTOCOL_VERSION:
            connection.close()
            raise VersionMismatch(f"the server speaks version {reply['version']}")
        self.server = reply
        return connection

    def _call(self, request: dict, timeout: Optional[float] = None) -> dict:
        """Send, wait, retry what a retry can mend (with the same op id) until the timeout."""
        timeout = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        maybe_applied = renamed = False  # a try of a write was sent and not answered; its op id was made anew
        once = changes_cluster(request) and "op_id" not in request  # a second try might do it twice
        for attempt in itertools.count():
            connection = None
            try:
                connection = self._connected(deadline)
                sent = time.monotonic()
                future = connection.send(self.encode(request, deadline), deadline - sent)
                return self.decode(self._result(connection, future, sent, deadline))
            except FutureTimeout:
                connection.give_up_if_silent()
                cause = OutcomeUnknown if "op_id" in request or once else DeadlineExceeded
                raise cause(f"{request['op']}: no answer within {timeout:g} s") from None
            except OmenError as e:
                if once and isinstance(e, OutcomeUnknown):
                    raise
                maybe_applied = maybe_applied or (isinstance(e, OutcomeUnknown) and "op_id" in request)
                if not maybe_applied and not renamed and (anew := self._op_id_anew(request, e)):
                    request, renamed = anew, True
                    continue
                pause = retry_pause(e, attempt)
                if not should_retry(e) or time.monotonic() + pause >= deadline:
                    raise outcome_of(e, maybe_applied) from e.__cause__
                time.sleep(pause)
        raise AssertionError("unreachable")


    def _result(self, connection: Connection, future, sent: float, deadline: float) -> bytes:
        """The reply's bytes. With several endpoints, one that says nothing at all for half of the time is given up: its
        machine may have stopped without a word. All that wait on that connection go elsewhere then."""
        patience = max(_ATTEMPT_SECONDS_MIN, (deadline - sent) / 2)
        while len(self._endpoints) > 1:
            heard, now = max(sent, connection.heard), time.monotonic()
            if heard + patience >= deadline:
                break
            if heard + patience <= now:
                self.leave(connection)
                break
            try:
                return future.result(heard + patience - now)
            except FutureTimeout:
                continue
        return future.result(max(0.0, deadline - time.monotonic()))

    def leave(self, connection: Connection) -> None:
        """Give a silent connection up; the next one is tried at another endpoint."""
        with self._lock:
            if self._connection is connection:
                self._endpoint += 1
        connection.close()


def changes_cluster(request: dict) -> bool:
    """Whether it is asked of the cluster to do something, not just to tell."""
    if request["op"] != "cluster":
        return False
    asked = request["request"]
    return not (asked["do"] == "status" or (asked["do"] == "version" and "hold" not in asked) or (asked["do"] == "rebalance" and not asked.get("apply")) or
                (asked["do"] == "node_drain" and asked.get("dry_run")))


def retry_pause(error: OmenError, attempt: int) -> float:
    """Seconds before the next try: what the server says, else exponential up to a second; jittered either way."""
    base = error.retry_after or min(1.0, 0.01 * 2 ** min(attempt, 10))
    return base * random.uniform(0.5, 1.0) if not error.retry_after else base * random.uniform(1.0, 1.3)
