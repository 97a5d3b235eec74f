"""One TCP connection speaking SP req/rep (PROTOCOL.md, "Transport"): many requests outstanding, replies in any order."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from concurrent.futures import Future
from typing import Dict, Optional, Tuple

from .errors import DeadlineExceeded, OutcomeUnknown, ProtocolError, Unavailable

# Each side opens with 8 bytes: 00 'S' 'P' 00, protocol number (u16 big-endian), 00 00.
_HELLO_REQ = b"\x00SP\x00\x00\x30\x00\x00"
_HELLO_REP = b"\x00SP\x00\x00\x31\x00\x00"
MESSAGE_BYTES_MAX = 48 << 20
SILENCE_SECONDS = 15.0  # a request timed out and nothing was heard for so long: the connection is dead


def parse_endpoint(endpoint: str) -> Tuple[str, int]:
    """``"tcp://host:port"`` or ``"host:port"`` to ``(host, port)``."""
    text = endpoint[len("tcp://"):] if endpoint.startswith("tcp://") else endpoint
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"endpoint wants host:port, got {endpoint!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


class Connection:
    """Sends from any thread; one reader thread completes the futures.

    A future fails with :class:`OutcomeUnknown` when the connection is lost after its request was sent: whether the
    server acted cannot be known.
    """

    def __init__(self, endpoint: str, connect_timeout: float):
        self.endpoint = endpoint
        try:
            self._socket = socket.create_connection(parse_endpoint(endpoint), connect_timeout)
        except OSError as e:
            raise Unavailable(f"cannot reach {endpoint}: {e}") from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(_HELLO_REQ)
            if self._receive(len(_HELLO_REP)) != _HELLO_REP:
                raise ProtocolError(f"{endpoint} does not speak SP rep")
            self._socket.settimeout(None)
        except BaseException as e:
            self._socket.close()
            if isinstance(e, OSError):
                raise Unavailable(f"cannot reach {endpoint}: {e}") from None
            raise
        self._sending = threading.Lock()  # held while a frame goes out; never together with waiting for a reply
        self._lock = threading.Lock()  # of what follows; never held over a system call that may block
        self.heard = time.monotonic()
        self._ids = itertools.count(1)
        self._waiting: Dict[int, Future] = {}
        self._closed = False
        self._reader = threading.Thread(target=self._read_replies, name="omendb-reader", daemon=True)
        self._reader.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, body: bytes, timeout: float = 30.0) -> "Future[bytes]":
        """Send one request; the future gives the reply's bytes.

        Replies are read while this waits for room: a server that is full reads on only when its replies are taken.

        Raises:
            Unavailable, DeadlineExceeded: nothing was sent.
            OutcomeUnknown: the connection broke, or took nothing for ``timeout`` seconds, amid sending.
        """
        if len(body) > MESSAGE_BYTES_MAX:
            raise ValueError(f"request of {len(body)} bytes, the limit is {MESSAGE_BYTES_MAX}")
        if not self._sending.acquire(timeout=max(0.0, timeout)):
            raise DeadlineExceeded(f"{self.endpoint} takes no more requests")
        future: "Future[bytes]" = Future()
        request_id, reason = None, "interrupted"
        try:
            with self._lock:
                if self._closed:
                    raise Unavailable(f"connection to {self.endpoint} is closed")
                request_id = 0x80000000 | (next(self._ids) & 0x7FFFFFFF)
                self._waiting[request_id] = future
            self._limit_send(timeout)
            self._socket.sendall(struct.pack(">QI", len(body) + 4, request_id) + body)
            request_id = None  # it is out as a whole
            return future
        except OSError as e:
            reason = str(e)
        finally:
            self._sending.release()
            if request_id is not None:  # part of the frame may be out, also when a KeyboardInterrupt came
                with self._lock:
                    self._waiting.pop(request_id, None)
                self._break(f"connection to {self.endpoint} lost while sending: {reason}")
        raise OutcomeUnknown(f"connection to {self.endpoint} lost while sending: {reason}")

    def _limit_send(self, timeout: float) -> None:
        """A peer that takes nothing for so long ends the send with an OSError. The receiving side is not affected."""
        us = int(max(0.05, timeout) * 1e6)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", us // 1000000, us % 1000000))
        except (OSError, AttributeError):
            pass  # not on this platform: TCP's own limit holds

    def give_up_if_silent(self) -> None:
        """After a request timed out: close a connection on which nothing has been heard for long, so that the next
        request goes over a new one, maybe to another endpoint."""
        if time.monotonic() - self.heard > SILENCE_SECONDS:
            self._break(f"{self.endpoint} has been silent for {SILENCE_SECONDS:g} s")

    def close(self) -> None:
        self._break(f"connection to {self.endpoint} was closed")
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=5)

    def _receive(self, count: int) -> bytes:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            n = self._socket.recv_into(view[got:])
            if n == 0:
                raise OSError("closed by the server")
            got += n
        return bytes(data)

    def _read_replies(self) -> None:
        reason = "closed"
        try:
            while True:
                (length,) = struct.unpack(">Q", self._receive(8))
                if length < 4 or length > MESSAGE_BYTES_MAX + 4:
                    raise OSError(f"frame of {length} bytes")
                frame = self._receive(length)
                self.heard = time.monotonic()
                (request_id,) = struct.unpack(">I", frame[:4])
                with self._lock:
                    future = self._waiting.pop(request_id, None)
                if future is not None:
                    future.set_result(frame[4:])
        except OSError as e:
            reason = str(e)
        self._break(f"connection to {self.endpoint} lost: {reason}")

    def _break(self, reason: str) -> None:
        """Close and fail everything outstanding. Futures are completed outside the lock: their callbacks may send."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                self._socket.close()
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(OutcomeUnknown(reason))


def connect_any(endpoints, first: int, timeout: float) -> "tuple[Connection, int]":
    """Connect to the first endpoint that answers, starting at position ``first``."""
    last: Optional[Exception] = None
    for i in range(len(endpoints)):
        position = (first + i) % len(endpoints)
        try:
            return Connection(endpoints[position], timeout), position
        except (Unavailable, ProtocolError) as e:
            last = e
    raise last if last is not None else Unavailable("no endpoints")
