"""Upserts with many requests in flight, each retried with its own op id until it is acknowledged."""

from __future__ import annotations

import threading
import time
from typing import Callable, List, Optional

from .collection import BATCH_POINTS, Collection, WriteResult, decode_write, upsert_requests
from .errors import OmenError, OutcomeUnknown


class _Request:
    """One upsert on its way: its op id never changes."""

    def __init__(self, request: dict, ids: list, deadline: float):
        self.request, self.ids, self.deadline, self.attempt = request, ids, deadline, 0


class Pipeline:
    """Keeps up to ``in_flight`` upsert requests outstanding; a context manager.

    ``upsert`` returns at once and blocks only while the pipeline is full; leaving the block waits for everything. When the
    connection is lost, everything outstanding is sent again with the same op ids, so nothing is applied twice. The first
    failure that no retry can mend is raised by the next ``upsert`` or on leaving.

    Args:
        in_flight: requests outstanding at most.
        on_ack: called as ``on_ack(ids, WriteResult)`` for each acknowledged request, from a thread of the client;
            it should be quick.
    """

    def __init__(self, collection: Collection, *, in_flight: int = 64,
                 on_ack: Optional[Callable[[List, WriteResult], None]] = None):
        self._collection, self._client = collection, collection.client
        self._in_flight, self._on_ack = in_flight, on_ack
        self._changed = threading.Condition()
        self._outstanding = 0
        self._again: List[_Request] = []
        self._error: Optional[OmenError] = None
        self._ended = False
        self._acknowledged = 0
        self._retrier = threading.Thread(target=self._resend, name="omendb-retries", daemon=True)
        self._retrier.start()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        self.close(raise_error=exc_type is None)

    @property
    def acknowledged(self) -> int:
        """Points acknowledged so far."""
        return self._acknowledged

    def upsert(self, ids, vectors, payloads=None, *, batch_points: int = BATCH_POINTS) -> None:
        """Queue an upsert; arguments as :meth:`Collection.upsert`."""
        ids = list(ids)
        first = 0
        for request in upsert_requests(self._collection.name, ids, vectors, payloads, batch_points):
            count = len(request["payloads"]) if payloads is not None else self._count_of(request)
            request["op_id"] = self._client.new_op_id()
            with self._changed:
                while self._outstanding >= self._in_flight and self._error is None:
                    self._changed.wait()
                self._raise_error()
                self._outstanding += 1
            self._send(_Request(request, ids[first:first + count], time.monotonic() + self._client.timeout))
            first += count

    def close(self, raise_error: bool = True) -> None:
        """Wait for everything outstanding."""
        with self._changed:
            while self._outstanding > 0 and self._error is None:
                self._changed.wait()
            self._ended = True
            self._changed.notify_all()
        self._retrier.join()
        if raise_error:
            self._raise_error()

    @staticmethod
    def _count_of(request: dict) -> int:
        ids = request["ids"]
        return len(ids) // 8 if isinstance(ids, bytes) else len(ids)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self, item: _Request) -> None:
        try:
            connection = self._client._connected(item.deadline)
            future = connection.send(self._client.encode(item.request, item.deadline))
        except OmenError as e:
            self._failed(item, e)
            return
        future.add_done_callback(lambda f: self._answered(item, f))

    def _answered(self, item: _Request, future) -> None:
        try:
            result = decode_write(self._client.decode(future.result()))
        except OmenError as e:
            self._failed(item, e)
            return
        if self._on_ack is not None:
            self._on_ack(item.ids, result)
        with self._changed:
            self._acknowledged += len(item.ids)
            self._outstanding -= 1
            self._changed.notify_all()

    def _failed(self, item: _Request, error: OmenError) -> None:
        from .client import should_retry
        with self._changed:
            if should_retry(error) and time.monotonic() < item.deadline:
                item.error = error
                self._again.append(item)
            else:
                self._error = error if self._error is None else self._error
                self._outstanding -= 1
            self._changed.notify_all()

    def _resend(self) -> None:
        """The retrying thread: everything that failed, after a pause, in the order it was first sent."""
        from .client import retry_pause
        while True:
            with self._changed:
                while not self._again and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                items, self._again = self._again, []
            items.sort(key=lambda item: item.request["op_id"][1])
            time.sleep(max(retry_pause(item.error, item.attempt) for item in items))
            for item in items:
                item.attempt += 1
                self._send(item)
