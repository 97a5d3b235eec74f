"""Upserts with many requests in flight, each retried with its own op id until it is acknowledged."""

from __future__ import annotations

import threading
import time
from typing import Callable, List, Optional, Set

from .collection import BATCH_POINTS, Collection, WriteResult, as_id_list, decode_write, expiry, upsert_requests
from .errors import OmenError, OutcomeUnknown, outcome_of, should_retry

_LOOK_SECONDS = 0.5  # how often it is looked for a connection that has fallen silent
_ANSWER_GRACE = 0.5  # the server answers at the deadline itself; its answer says more than our own clock


class _Request:
    """One upsert on its way: its op id never changes, but for one that was refused because a clock is ahead."""

    def __init__(self, request: dict, ids: list, deadline: float):
        self.request, self.ids, self.deadline, self.attempt = request, ids, deadline, 0
        self.maybe_applied = self.renamed = False  # a try was sent and not answered; its op id was made anew
        self.connection, self.sent = None, 0.0  # of the last try
        self.error: Optional[OmenError] = None  # of the last try


class Pipeline:
    """Keeps up to ``in_flight`` upsert requests outstanding; a context manager.

    ``upsert`` returns at once and blocks only while the pipeline is full; leaving the block waits for everything. Requests
    that are on the way together are applied in any order: do not upsert one id twice in a pipeline. When the
    connection is lost, everything outstanding is sent again with the same op ids, so nothing is applied twice. The first
    failure that no retry can mend is raised by the next ``upsert`` or on leaving; what was outstanding then may or may not
    have been applied. A request without an answer after the client's ``timeout`` is such a failure.

    Args:
        in_flight: requests outstanding at most.
        on_ack: called as ``on_ack(ids, WriteResult)`` for each acknowledged request, from a thread of the client;
            it should be quick. What it raises ends the pipeline like a failure.
    """

    def __init__(self, collection: Collection, *, in_flight: int = 64,
                 on_ack: Optional[Callable[[List, WriteResult], None]] = None):
        self._collection, self._client = collection, collection.client
        self._in_flight, self._on_ack = in_flight, on_ack
        self._changed = threading.Condition()
        self._outstanding: Set[_Request] = set()
        self._again: List[_Request] = []
        self._error: Optional[BaseException] = None
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

    def upsert(self, ids, vectors, payloads=None, *, ttl=None, expires_ms=None, batch_points: int = BATCH_POINTS) -> None:
        """Queue an upsert; arguments as :meth:`Collection.upsert`."""
        ids = as_id_list(ids)
        first = 0
        for request, count in upsert_requests(self._collection.name, ids, vectors, payloads, batch_points,
                                              expiry(ttl, expires_ms)):
            request["op_id"] = self._client.new_op_id()
            item = _Request(request, ids[first:first + count], 0.0)
            with self._changed:
                if self._ended:
                    raise ValueError("the pipeline is closed")
                self._wait_while(lambda: len(self._outstanding) >= self._in_flight)
                self._raise_error()
                item.deadline = time.monotonic() + self._client.timeout
                self._outstanding.add(item)
            try:
                self._send(item)
            except BaseException:  # what cannot be encoded, a KeyboardInterrupt: nobody will answer
                self._end(item)
                raise
            first += count

    def close(self, raise_error: bool = True) -> None:
        """Wait for everything outstanding, at most until the timeouts of the requests."""
        try:
            with self._changed:
                self._wait_while(lambda: self._outstanding)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._retrier.join()
        if raise_error:
            self._raise_error()

    def _wait_while(self, condition) -> None:
        """With the lock held. Requests that nobody answers in time become the error."""
        while condition() and self._error is None:
            deadline = min((item.deadline for item in self._outstanding), default=None)
            left = None if deadline is None else deadline + _ANSWER_GRACE - time.monotonic()
            if left is None or left > 0:
                self._changed.wait(left)
            else:
                self._error = OutcomeUnknown(f"points.upsert: no answer within {self._client.timeout:g} s")

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self, item: _Request) -> None:
        try:
            connection = self._client._connected(item.deadline)
            body = self._client.encode(item.request, item.deadline)
            item.connection, item.sent = connection, time.monotonic()
            future = connection.send(body, item.deadline - item.sent)
        except OmenError as e:
            self._failed(item, e)
            return
        future.add_done_callback(lambda f: self._answered(item, f))

    def _answered(self, item: _Request, future) -> None:
        """On the thread that reads replies. Nothing may be raised here: nobody would see it, and all would wait."""
        try:
            result = decode_write(self._client.decode(future.result()))
        except OmenError as e:
            self._failed(item, e)
            return
        except Exception as e:
            self._end(item, e)
            return
        error = None
        if self._on_ack is not None:
            try:
                self._on_ack(item.ids, result)
            except Exception as e:
                error = e
        with self._changed:
            self._acknowledged += len(item.ids)
        self._end(item, error)

    def _end(self, item: _Request, error: Optional[BaseException] = None) -> None:
        with self._changed:
            self._outstanding.discard(item)
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    def _failed(self, item: _Request, error: OmenError) -> None:
        item.maybe_applied = item.maybe_applied or isinstance(error, OutcomeUnknown)
        anew = None if item.maybe_applied or item.renamed else self._client._op_id_anew(item.request, error)
        if anew is not None:
            item.request, item.renamed = anew, True
        elif not should_retry(error) or time.monotonic() >= item.deadline:
            self._end(item, outcome_of(error, item.maybe_applied))
            return
        with self._changed:
            item.error = error
            self._again.append(item)
            self._changed.notify_all()

    def _silent(self):
        """With the lock held: a connection on which a request waits and nothing was heard for half of a request's time, while
        there are other endpoints."""
        if len(self._client._endpoints) < 2 or not self._outstanding:
            return None
        oldest = min(self._outstanding, key=lambda item: item.sent)
        if oldest.connection is None or oldest.connection.closed:
            return None
        quiet = time.monotonic() - max(oldest.sent, oldest.connection.heard)
        return oldest.connection if quiet > max(1.0, self._client.timeout / 2) else None

    def _resend(self) -> None:
        """The retrying thread: everything that failed, after a pause, in the order it was first sent."""
        from .client import retry_pause
        while True:
            with self._changed:
                while not self._again and not self._ended and not self._silent():
                    self._changed.wait(_LOOK_SECONDS)
                if self._ended:
                    return
                items, self._again = self._again, []
                silent = self._silent()
            if silent is not None:
                self._client.leave(silent)
            if not items:
                continue
            items.sort(key=lambda item: item.request["op_id"][1])
            time.sleep(max(retry_pause(item.error, item.attempt) for item in items))
            for item in items:
                item.attempt += 1
                try:
                    self._send(item)
                except Exception as e:
                    self._end(item, e)
