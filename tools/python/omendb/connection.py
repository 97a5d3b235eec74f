"""One TCP connection speaking SP req/rep (PROTOCOL.md, "Transport"): many requests outstanding, replies in any order."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from concurrent.futures import Future
from typing import Dict, Optional

from .errors import OutcomeUnknown, ProtocolError, Unavailable

# Each side opens with 8 bytes: 00 'S' 'P' 00, protocol number (u16 big-endian), 00 00.
_HELLO_REQ = b"\x00SP\x00\x00\x30\x00\x00"
_HELLO_REP = b"\x00SP\x00\x00\x31\x00\x00"
MESSAGE_BYTES_MAX = 48 << 20


def parse_endpoint(endpoint: str):
    """``"tcp://host:port"`` or ``"host:port"`` to ``(host, port)``."""
    text = endpoint[len("tcp://"):] if endpoint.startswith("tcp://") else endpoint
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
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
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(_HELLO_REQ)
            if self._receive(len(_HELLO_REP)) != _HELLO_REP:
                raise ProtocolError(f"{endpoint} does not speak SP rep")
            self._socket.settimeout(None)
        except OSError as e:
            raise Unavailable(f"cannot reach {endpoint}: {e}") from None
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: Dict[int, Future] = {}
        self._closed = False
        self._reader = threading.Thread(target=self._read_replies, name="omendb-reader", daemon=True)
        self._reader.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, body: bytes) -> "Future[bytes]":
        """Send one request; the future gives the reply's bytes."""
        if len(body) > MESSAGE_BYTES_MAX:
            raise ValueError(f"request of {len(body)} bytes, the limit is {MESSAGE_BYTES_MAX}")
        future: "Future[bytes]" = Future()
        with self._lock:
            if self._closed:
                raise Unavailable(f"connection to {self.endpoint} is closed")
            request_id = 0x80000000 | (next(self._ids) & 0x7FFFFFFF)
            self._waiting[request_id] = future
            try:
                self._socket.sendall(struct.pack(">QI", len(body) + 4, request_id) + body)
                return future
            except OSError as e:
                # Part of the frame may be out: what the server makes of it cannot be known.
                self._waiting.pop(request_id, None)
                reason = f"connection to {self.endpoint} lost while sending: {e}"
        self._break(reason)
        raise OutcomeUnknown(reason)

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
