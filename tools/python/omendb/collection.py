"""A collection: writes, reads and searches, numpy in and out."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from .values import pack

PointId = Union[int, str, uuid.UUID]
Vectors = Union[np.ndarray, Sequence[Sequence[float]], Dict[str, np.ndarray]]
BATCH_POINTS = 1000
BATCH_BYTES = 4 << 20
BATCH_SEARCHES = 1000
BATCH_HITS = 400_000


@dataclass(frozen=True)
class VectorField:
    """A named vector field of a schema."""
    dim: int
    metric: str = "cosine"


@dataclass
class WriteResult:
    """What a write did. ``sequence`` is the log position of the last shard touched; ``duplicate``: a retry whose first try
    had been applied already."""
    affected: int = 0
    sequence: int = 0
    duplicate: bool = False


@dataclass
class Point:
    """A stored point, or one hit of a search (then with ``score``)."""
    id: Union[int, uuid.UUID]
    version: int = 0
    payload: Optional[dict] = None
    vectors: Optional[Dict[str, np.ndarray]] = None
    shard_key: Any = None
    score: Optional[float] = None
    expires_ms: Optional[int] = None  # Unix time from which on it is absent

    @property
    def vector(self) -> Optional[np.ndarray]:
        """The unnamed field's vector."""
        return None if self.vectors is None else self.vectors.get("")


class Hits:
    """Result of one search: ``ids`` and ``scores`` as arrays, nearest first, or iterate over :class:`Point`.

    Attributes:
        higher_is_nearer: how to read scores (ip and cosine: yes; l2, a distance: no).
        engine_us: microseconds spent inside the storage engine.
        shards_asked, shards_total: of the request; a filter on the shard key leaves those that can hold a match.
        shards_missing: ids of shards that did not answer; empty unless ``allow_partial`` was given and needed.
        partial: whether there are any.
        stale: an ``eventual`` read was answered by a replica that knew it was behind, or was cut off from its leader.
        explain: how the request was answered, when that was asked for (PROTOCOL.md, "Explain"); else None.
    """

    def __init__(self, points: List[Point], higher_is_nearer: bool, engine_us: int, shards_missing=(), shards_asked=0,
                 shards_total=0, stale=False, explain=None):
        self._points = points
        self.shards_asked, self.shards_total = shards_asked, shards_total
        self.higher_is_nearer, self.engine_us = higher_is_nearer, engine_us
        self.shards_missing, self.stale = tuple(shards_missing), stale
        self.explain: Optional[dict] = explain

    @property
    def partial(self) -> bool:
        return bool(self.shards_missing)

    @property
    def ids(self) -> np.ndarray:
        ids = [p.id for p in self._points]
        return np.array(ids, dtype=object if any(isinstance(i, uuid.UUID) for i in ids) else np.uint64)

    @property
    def scores(self) -> np.ndarray:
        return np.array([p.score for p in self._points], dtype=np.float32)

    def __len__(self):
        return len(self._points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    def __getitem__(self, i):
        return self._points[i]

    def __repr__(self):
        return f"Hits({', '.join(f'{p.id}: {p.score:.4g}' for p in self._points[:5])}{', ...' if len(self) > 5 else ''})"


class Count(int):
    """A number of points. ``shards_missing``: ids of shards that did not answer; ``partial``: whether there are any; ``stale``: as
    in :class:`Hits`."""
    shards_missing: Tuple[int, ...] = ()
    stale: bool = False

    @property
    def partial(self) -> bool:
        return bool(self.shards_missing)


class Scroll:
    """An iterator over points. ``stale``, as in :class:`Hits`: of what came so far."""

    def __init__(self, pages: Iterator[Tuple[List[Point], bool]]):
        self.stale = False
        self._points = self._each(pages)

    def _each(self, pages) -> Iterator[Point]:
        for points, stale in pages:
            self.stale |= stale
            yield from points

    def __iter__(self) -> "Scroll":
        return self

    def __next__(self) -> Point:
        return next(self._points)


class Points(list):
    """Points by id. ``shards_missing``, ``partial`` and ``stale`` as in :class:`Count`."""
    shards_missing: Tuple[int, ...] = ()
    stale: bool = False

    @property
    def partial(self) -> bool:
        return bool(self.shards_missing)


# ---- to and from the wire ----

_ID_RANGE = "ids are numbers from 0 to 2**64 - 1, or UUIDs"


def as_id_list(ids):
    """Something that can be counted and cut: an array or range as it is, anything else as a list."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise ValueError(f"ids: want [n], got shape {ids.shape}")
        return ids
    if isinstance(ids, range):
        return ids
    if isinstance(ids, (str, bytes, int, uuid.UUID, np.integer)):
        raise ValueError(f"ids: want a list of ids, got {ids!r}")
    return list(ids)


def encode_ids(ids: Sequence[PointId]):
    """Numbers as packed u64, anything with a UUID as an array."""
    ids = as_id_list(ids)
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" or isinstance(ids, range):
        array = np.asarray(ids)
        if array.size and array.dtype.kind == "i" and array.min() < 0:
            raise ValueError(_ID_RANGE)
        if array.dtype.kind in "iu":  # a range past 2**63 becomes objects
            return array.astype("<u8").tobytes()
    ids = [encode_id(i) for i in ids]
    if any(isinstance(i, str) for i in ids):
        return ids
    return np.array(ids, dtype="<u8").tobytes()


def encode_id(i: PointId):
    if isinstance(i, (int, np.integer)) and not isinstance(i, bool):
        if not 0 <= i < 2**64:  # numpy before 2.0 would wrap it silently
            raise ValueError(f"{_ID_RANGE}; got {i}")
        return int(i)
    if isinstance(i, uuid.UUID):
        return str(i)
    if isinstance(i, str):
        return str(uuid.UUID(i))
    raise ValueError(f"an id is a number or a UUID, got {i!r}")


def decode_ids(ids) -> list:
    if isinstance(ids, bytes):
        return np.frombuffer(ids, dtype="<u8").tolist()
    return [uuid.UUID(i) if isinstance(i, str) else i for i in ids]


def as_floats(values, what: str) -> np.ndarray:
    if values is None or isinstance(values, (str, bytes)):
        raise ValueError(f"{what}: want numbers, got {values!r}")
    try:
        return np.ascontiguousarray(values, dtype="<f4")
    except (TypeError, ValueError) as e:
        raise ValueError(f"{what}: want numbers in rows of equal length: {e}") from None


def as_rows(vectors, count: int, what: str = "vectors") -> np.ndarray:
    rows = as_floats(vectors, what)
    if rows.ndim == 1 and count == 1:
        rows = rows[None, :]
    if count == 0 and rows.size == 0:
        return rows.reshape(0, 0)
    if rows.ndim != 2 or len(rows) != count:
        raise ValueError(f"{what}: want {count} rows of components, got shape {rows.shape}")
    return rows


def decode_points(group: dict) -> List[Point]:
    """A columnar group of points (PROTOCOL.md, "Points in replies")."""
    ids = decode_ids(group["ids"])
    points = [Point(i) for i in ids]
    if "versions" in group:
        for p, v in zip(points, np.frombuffer(group["versions"], dtype="<u8").tolist()):
            p.version = v
    if "expires_ms" in group:
        for p, t in zip(points, np.frombuffer(group["expires_ms"], dtype="<u8").tolist()):
            p.expires_ms = t or None
    if "scores" in group:
        for p, s in zip(points, np.frombuffer(group["scores"], dtype="<f4").tolist()):
            p.score = s
    for p, payload in zip(points, group.get("payloads") or ()):
        p.payload = payload
    for p, key in zip(points, group.get("keys") or ()):
        p.shard_key = key
    for field, data in (group.get("vectors") or {}).items():
        decode_column(points, field, data, (group.get("present") or {}).get(field))
    return points


def decode_column(points: List[Point], field: str, data: bytes, present: Optional[bytes]) -> None:
    """Rows of one vector field; `present` says which points have one."""
    having = points if present is None else [p for p, here in zip(points, present) if here]
    if not having:
        return
    for p, row in zip(having, np.frombuffer(data, dtype="<f4").reshape(len(having), -1)):
        if p.vectors is None:
            p.vectors = {}
        p.vectors[field] = row


class Collection:
    """A handle to one collection; obtained from :meth:`Client.collection`. Thread-safe."""

    def __init__(self, client, name: str):
        self.client, self.name = client, name

    def __repr__(self):
        return f"Collection({self.name!r})"

    # ---- writes: durable and visible when they return; each batch whole or not at all ----

    def upsert(self, ids: Sequence[PointId], vectors: Vectors, payloads: Optional[Sequence[Optional[dict]]] = None, *,
               ttl: Optional[float] = None, expires_ms: Union[None, int, Sequence[Optional[int]]] = None,
               wait: Optional[str] = None, batch_points: int = BATCH_POINTS) -> WriteResult:
        """Insert or replace points.

        Args:
            ids: [n] numbers (0..2**64-1) or UUIDs.
            vectors: [n][dim] array for the unnamed field, or ``{field: [n][dim] array}``.
            payloads: [n] dicts (or None each), JSON-shaped.
            ttl: seconds from now on after which the points are absent; written again without one, a point stays.
            expires_ms: the same as a Unix time in milliseconds, one for all or one (or None) each.
            wait: when to return: ``"committed"`` (default: on the disks of a majority, and visible), ``"indexed"`` (and in the
                index of each shard's leader), or ``"accepted"`` (in the leader's hands: it may be lost).
            batch_points: larger calls are cut into requests of at most this many points (and about 4 MiB); each request is
                atomic per shard, the call as a whole is not.

        Returns:
            the sum over the requests.
        """
        total = WriteResult()
        for request, _ in upsert_requests(self.name, ids, vectors, payloads, batch_points, expiry(ttl, expires_ms)):
            if wait is not None:
                request["wait"] = wait
            self._add(total, self._write(request))
        return total

    def delete(self, ids: Optional[Sequence[PointId]] = None, *, filter: Optional[dict] = None,
               shard_keys: Optional[Sequence] = None) -> WriteResult:
        """Delete points by id; ids that do not exist are no error. Or all that match ``filter``, as they are when the request
        comes: what is written while it runs is left alone."""
        if filter is not None:
            return self._by_filter("points.delete", ids, filter)
        return self._by_ids("points.delete", ids, shard_keys)

    def set_payload(self, ids: Optional[Sequence[PointId]], payloads: Union[dict, Sequence[dict]], *,
                    filter: Optional[dict] = None, shard_keys: Optional[Sequence] = None) -> WriteResult:
        """Merge members into the payloads of existing points; one dict for all, or one per point. With ``filter`` (and None for
        ids): one dict for all that match."""
        if filter is not None:
            return self._by_filter("points.set_payload", ids, filter, payloads=[payloads])
        return self._by_ids("points.set_payload", ids, shard_keys, payloads=payloads)

    def overwrite_payload(self, ids: Optional[Sequence[PointId]], payloads: Union[dict, Sequence[dict]], *,
                          filter: Optional[dict] = None, shard_keys: Optional[Sequence] = None) -> WriteResult:
        """Replace the payloads of existing points; ``filter`` as in :meth:`set_payload`."""
        if filter is not None:
            return self._by_filter("points.overwrite_payload", ids, filter, payloads=[payloads])
        return self._by_ids("points.overwrite_payload", ids, shard_keys, payloads=payloads)

    def delete_payload(self, ids: Optional[Sequence[PointId]], paths: Sequence[str], *,
                       filter: Optional[dict] = None, shard_keys: Optional[Sequence] = None) -> WriteResult:
        """Drop the members at ``paths`` from the payloads of existing points; ``filter`` as in :meth:`set_payload`."""
        if isinstance(paths, str):
            raise ValueError(f"paths: want a list of paths, got {paths!r}")
        if filter is not None:
            return self._by_filter("points.delete_payload", ids, filter, paths=list(paths))
        return self._by_ids("points.delete_payload", ids, shard_keys, paths=list(paths))

    def pipeline(self, *, in_flight: int = 64, on_ack=None):
        """Upserts with many requests in flight; see :class:`omendb.Pipeline`."""
        from .pipeline import Pipeline
        return Pipeline(self, in_flight=in_flight, on_ack=on_ack)

    # ---- reads ----

    def search(self, vector=None, *, k: int = 10, filter: Optional[dict] = None, id: Optional[PointId] = None,
               field: str = "", offset: int = 0, score_threshold: Optional[float] = None, with_payload=True,
               with_vectors=False, shard_key: Any = None, allow_partial: bool = False,
               exact: bool = False, explain: bool = False) -> Hits:
        """The ``k`` nearest points to ``vector``, or to the stored point ``id`` (which is left out).

        Args:
            filter: conditions as in PROTOCOL.md: ``{"must": [{"key": "year", "range": {"gte": 1990}}]}``.
            field: which vector field to search.
            offset: leave out the first so many.
            score_threshold: only scores at least (ip, cosine) or at most (l2) this.
            with_payload: True, False, a list of paths to keep, or ``{"exclude": [...]}``.
            with_vectors: True, False, or a list of field names.
            shard_key: of the point ``id``, when the collection has one.
            allow_partial: rather hits without the shards that cannot be reached than an error; see ``Hits.partial``.
            exact: look at every point rather than walk indexes.
            explain: tell how it was answered; see ``Hits.explain``.
        """
        one = {"k": k, "field": field, "offset": offset, "filter": filter, "score_threshold": score_threshold,
               "id": id, "key": shard_key, "exact": exact or None}
        return self._search([(vector, one)], with_payload, with_vectors, allow_partial, explain)[0]

    def search_batch(self, vectors, *, k: int = 10, filter: Optional[dict] = None, field: str = "", offset: int = 0,
                     score_threshold: Optional[float] = None, with_payload=True, with_vectors=False,
                     allow_partial: bool = False, exact: bool = False, explain: bool = False) -> List[Hits]:
        """One search per row of ``vectors``; they share the pass over the data. More than 1000 searches or 400,000 hits
        go out as several requests; ``Hits.explain`` is of the request that a search went out with."""
        rows = as_floats(vectors, "vectors")
        if rows.size == 0:
            return []
        if rows.ndim != 2:
            raise ValueError(f"vectors: want [n][dim], got shape {rows.shape}")
        one = {"k": k, "field": field, "offset": offset, "filter": filter, "score_threshold": score_threshold,
               "exact": exact or None}
        step = max(1, min(BATCH_SEARCHES, BATCH_HITS // max(1, int(k) + int(offset))))
        found: List[Hits] = []
        for first in range(0, len(rows), step):
            found += self._search([(row, one) for row in rows[first:first + step]], with_payload, with_vectors,
                                  allow_partial, explain)
        return found

    def get(self, ids: Sequence[PointId], *, shard_keys: Optional[Sequence] = None, with_payload=True,
            with_vectors=False, allow_partial: bool = False) -> Points:
        """Points by id, in the order asked; missing ones are left out. With ``allow_partial`` also those in shards that
        cannot be reached, and ``shards_missing`` of the result says which these are."""
        points, missing = Points(), set()
        for request, _ in self._requests_by_ids("points.get", ids, shard_keys):
            request.update(with_payload=with_payload, with_vectors=with_vectors)
            if allow_partial:
                request["allow_partial"] = True
            reply = self.client._call(request)
            points += decode_points(reply["points"])
            missing.update(reply.get("shards_missing", ()))
            points.stale |= reply.get("stale", False)
        points.shards_missing = tuple(sorted(missing))
        return points

    def scroll(self, *, filter: Optional[dict] = None, limit: Optional[int] = None, page: int = 1000, with_payload=True,
               with_vectors=False) -> "Scroll":
        """Iterate over all matching points in order of id, page by page; a point that is there throughout comes once."""
        return Scroll(self._pages(filter, limit, page, with_payload, with_vectors))

    def _pages(self, filter, limit, page, with_payload, with_vectors) -> Iterator[Tuple[List[Point], bool]]:
        """Points of each page, and whether they are stale."""
        cursor, left = None, limit
        while left is None or left > 0:
            request = {"op": "points.scroll", "collection": self.name, "limit": page if left is None else min(page, left),
                       "with_payload": with_payload, "with_vectors": with_vectors}
            if filter is not None:
                request["filter"] = filter
            if cursor is not None:
                request["cursor"] = cursor
            reply = self.client._call(request)
            points = decode_points(reply["points"])
            yield points, reply.get("stale", False)
            left = None if left is None else left - len(points)
            cursor = reply.get("cursor")
            if not cursor:
                return

    def count(self, filter: Optional[dict] = None, *, allow_partial: bool = False) -> Count:
        """Exact number of points, or of those that match; with ``allow_partial`` without the shards that cannot be reached
        (``shards_missing`` of the result)."""
        request = {"op": "points.count", "collection": self.name}
        if filter is not None:
            request["filter"] = filter
        if allow_partial:
            request["allow_partial"] = True
        reply = self.client._call(request)
        count = Count(reply["count"])
        count.shards_missing, count.stale = tuple(reply.get("shards_missing", ())), reply.get("stale", False)
        return count

    def describe(self) -> dict:
        return self.client.describe(self.name)

    def drop(self) -> None:
        self.client.drop_collection(self.name)

    # ---- plumbing ----

    def _write(self, request: dict) -> WriteResult:
        request["op_id"] = self.client.new_op_id()
        return decode_write(self.client._call(request))

    def _by_filter(self, op, ids, filter, **members) -> WriteResult:
        if ids is not None:
            raise ValueError("ids and filter exclude each other")
        return self._write({"op": op, "collection": self.name, "filter": filter, **members})

    @staticmethod
    def _add(total: WriteResult, one: WriteResult) -> None:
        total.affected += one.affected
        total.sequence = max(total.sequence, one.sequence)
        total.duplicate = total.duplicate or one.duplicate

    def _requests_by_ids(self, op, ids, shard_keys=None, payloads=None):
        """Requests of at most BATCH_POINTS points; columns of another length than ``ids`` are refused before any is sent."""
        ids = as_id_list(ids)
        columns = {"keys": shard_keys, "payloads": payloads}
        columns = {name: as_column(values, len(ids), name) for name, values in columns.items() if values is not None}
        for first in range(0, len(ids), BATCH_POINTS):
            part = slice(first, first + BATCH_POINTS)
            request = {"op": op, "collection": self.name, "ids": encode_ids(ids[part])}
            request.update((name, values[part]) for name, values in columns.items())
            yield request, len(ids[part])

    def _by_ids(self, op, ids, shard_keys, payloads=None, paths=None) -> WriteResult:
        ids = as_id_list(ids)
        if isinstance(payloads, dict):
            payloads = [payloads] * len(ids)
        total = WriteResult()
        for request, _ in self._requests_by_ids(op, ids, shard_keys, payloads):
            if paths is not None:
                request["paths"] = paths
            self._add(total, self._write(request))
        return total

    def _search(self, searches, with_payload, with_vectors, allow_partial=False, explain=False) -> List[Hits]:
        encoded = []
        for vector, one in searches:
            search = {name: value for name, value in one.items() if value is not None}
            if ("id" in search) == (vector is not None):
                raise ValueError("give a vector or an id")
            if "id" in search:
                search["id"] = encode_id(search["id"])
            else:
                query = as_floats(vector, "vector")
                if query.ndim != 1:
                    raise ValueError(f"vector: want [dim], got shape {query.shape}; search_batch takes several")
                search["vector"] = query.tobytes()
            search["with_payload"], search["with_vectors"] = with_payload, with_vectors
            encoded.append(search)
        request = {"op": "points.search", "collection": self.name, "searches": encoded}
        if allow_partial:
            request["allow_partial"] = True
        if explain:
            request["explain"] = True
        reply = self.client._call(request)
        return [Hits(decode_points(r), reply["higher_is_nearer"], reply.get("engine_us", 0), reply.get("shards_missing", ()),
                     reply.get("shards_asked", 0), reply.get("shards_total", 0), reply.get("stale", False),
                     reply.get("explain"))
                for r in reply["results"]]


def decode_write(reply: dict) -> WriteResult:
    sequence = max((t[2] for t in reply.get("tokens", ())), default=0)
    return WriteResult(reply.get("affected", 0), sequence, bool(reply.get("duplicate", False)))


def as_column(values, count: int, what: str) -> list:
    """A list with one value per point."""
    if isinstance(values, (str, bytes, dict)):
        raise ValueError(f"{what}: want a list of {count}, got {type(values).__name__}")
    values = list(values)
    if len(values) != count:
        raise ValueError(f"{what}: {len(values)} for {count} ids")
    return values


def expiry(ttl: Optional[float], expires_ms):
    """When points end, as the wire has it: made absolute once, so that a retry says the same."""
    if ttl is None:
        return expires_ms
    if expires_ms is not None:
        raise ValueError("ttl and expires_ms exclude each other")
    if not 0 < ttl < 1e12:
        raise ValueError(f"ttl: want a number of seconds above 0, got {ttl!r}")
    return int((time.time() + ttl) * 1000)


def upsert_requests(name: str, ids, vectors, payloads, batch_points: int,
                    expires_ms=None) -> Iterator[Tuple[dict, int]]:
    """Cut an upsert into requests of bounded size, each with its number of points; op ids are added by the sender."""
    ids = as_id_list(ids)
    columns = vectors if isinstance(vectors, dict) else {"": vectors}
    columns = {field: as_rows(rows, len(ids), f"vectors[{field!r}]" if field else "vectors")
               for field, rows in columns.items()}
    if payloads is not None:
        payloads = as_column(payloads, len(ids), "payloads")
    if expires_ms is not None and not isinstance(expires_ms, (int, np.integer)):
        expires_ms = [t if t is None else int(t) for t in as_column(expires_ms, len(ids), "expires_ms")]
    row_bytes = sum(rows.shape[1] * 4 for rows in columns.values()) or 1
    step = max(1, min(batch_points, BATCH_BYTES // row_bytes))
    first = 0
    while first < len(ids):
        count = min(step, len(ids) - first)
        if payloads is not None:
            count = _fitting(payloads, first, count, row_bytes)
        part = slice(first, first + count)
        request = {"op": "points.upsert", "collection": name, "ids": encode_ids(ids[part]),
                   "vectors": {field: rows[part].tobytes() for field, rows in columns.items()}}
        if payloads is not None:
            request["payloads"] = payloads[part]
        if expires_ms is not None:
            request["expires_ms"] = expires_ms[part] if isinstance(expires_ms, list) else int(expires_ms)
        yield request, count
        first += count


def _fitting(payloads: list, first: int, count: int, row_bytes: int) -> int:
    """How many of the points [first, first + count) go into a request of about BATCH_BYTES; at least one."""
    left = BATCH_BYTES
    for i in range(first, first + count):
        try:
            left -= row_bytes + len(pack(payloads[i]))
        except (TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"payloads[{i}]: {e}") from None
        if left < 0 and i > first:
            return i - first
    return count
