"""Typed errors: one class per error name of PROTOCOL.md, all under :class:`OmenError`."""

from __future__ import annotations


class OmenError(Exception):
    """Any failure of a request.

    Attributes:
        code: number of the error on the wire (0 when it arose in this client).
        name: its stable name, e.g. ``"not_found"``.
        field: path of the field at fault, e.g. ``"searches[0].k"``, or ``""``.
        message: one sentence.
        retry_after: seconds after which a retry makes sense (``Busy`` only, else 0).
    """

    name = "error"

    def __init__(self, message: str, *, code: int = 0, name: str = "", field: str = "", retry_after: float = 0.0):
        self.code = code
        self.name = name or type(self).name
        self.field = field
        self.message = message
        self.retry_after = retry_after
        self.partial = False  # of a write: some shards have carried it out
        super().__init__(f"{field}: {message}" if field else message)


class InvalidRequest(OmenError):
    """The request is wrong; ``field`` names where."""
    name = "invalid"


class NotFound(OmenError):
    """No such collection, alias, or point to search with."""
    name = "not_found"


class AlreadyExists(OmenError):
    """The name is taken."""
    name = "exists"


class TooBig(OmenError):
    """A documented limit is exceeded."""
    name = "too_big"


class ProtocolError(OmenError):
    """Bytes that are no message of the protocol."""
    name = "protocol"


class VersionMismatch(OmenError):
    """Client and server share no protocol version."""
    name = "version"


class AuthenticationFailed(OmenError):
    """No or unknown API key."""
    name = "unauthenticated"


class PermissionDenied(OmenError):
    """The key's role does not allow this."""
    name = "forbidden"


class Busy(OmenError):
    """Over an admission limit now; retried automatically until the timeout."""
    name = "busy"


class DeadlineExceeded(OmenError):
    """The deadline passed before the answer."""
    name = "deadline_exceeded"


class OutcomeUnknown(OmenError):
    """A write whose outcome cannot be known: it may or may not have been applied."""
    name = "outcome_unknown"


class OperationExpired(OutcomeUnknown):
    """A retry came so late that the server cannot tell any more whether the write was applied; it will not be now."""
    name = "op_expired"


class DiskFull(OmenError):
    """The server's disk (or budget) is full: writes are refused, reads go on."""
    name = "full"


class Corrupt(OmenError):
    """Bytes on the server's disk fail their checksum; file and offset are named."""
    name = "corrupt"


class Unavailable(OmenError):
    """No endpoint answers."""
    name = "unavailable"


class StaleTokens(InvalidRequest):
    """The session tokens are of another incarnation: the database was restored or made anew. The client forgets them and
    sends again by itself, so a caller does not see this."""


class ClientClosed(Unavailable):
    """This client was closed; nothing was sent."""


class ServerError(OmenError):
    """Anything else the server could not do."""
    name = "internal"


_CLASSES = {
    1: InvalidRequest, 2: NotFound, 3: AlreadyExists, 4: TooBig, 5: ProtocolError, 6: VersionMismatch,
    7: AuthenticationFailed, 8: PermissionDenied, 9: Busy, 10: DeadlineExceeded, 11: OutcomeUnknown,
    12: OperationExpired, 13: DiskFull, 14: Corrupt, 19: Unavailable, 20: OutcomeUnknown,
}

def should_retry(error: OmenError) -> bool:
    """Lost connections and what the server calls retryable."""
    if isinstance(error, ClientClosed):
        return False
    if isinstance(error, StaleTokens):
        return True
    return error.code in RETRYABLE or (error.code == 0 and isinstance(error, (Unavailable, OutcomeUnknown)))


def outcome_of(error: OmenError, maybe_applied: bool) -> OmenError:
    """What the last try's error says of a write whose earlier tries may have been applied: that "nothing was begun" now
    (unavailable, busy, full ..) says nothing of them. An invalid request was refused then as well; had a change been made, its
    repetition would have been told so rather than that the name is taken or gone."""
    if not maybe_applied or isinstance(error, (OutcomeUnknown, InvalidRequest, TooBig, NotFound, AlreadyExists)):
        return error
    return OutcomeUnknown(f"an earlier try may have been applied; the last one ended with {error.name}: {error}")


# What a retry of the very same request can mend without anybody changing anything (PROTOCOL.md, retry rules).
RETRYABLE = {9, 11, 17, 18, 19, 20}


def from_reply(error: dict) -> OmenError:
    """The exception for a reply's ``error`` map."""
    code = int(error.get("code", 0))
    kind = _CLASSES.get(code, ServerError)
    if kind is InvalidRequest and error.get("field", "").startswith("tokens["):
        kind = StaleTokens
    return kind(
        error.get("message", ""), code=code, name=error.get("name", ""), field=error.get("field", ""),
        retry_after=error.get("retry_after_ms", 0) / 1000.0)
