"""One error type for the whole product: a gRPC status code, a message, and google.rpc details.

Every layer raises `WhisprError`; the edges translate it. gRPC sends it as `grpc-status` with
`grpc-status-details-bin`, REST as `{code, message, details}`, a WebSocket as
`{status: "error", response: {reason, …}}`. An error therefore always says three things: what happened
(`code`), why in words a caller can act on (`message`), and, for programs, a stable `reason`.

`fault` says whose doing it was: the caller's, ours, or that of something we depend on. Logging and
breakers read it: a caller's mistake is never an error line and never trips a breaker.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "whispr"
"""The `domain` of every `google.rpc.ErrorInfo` this product emits."""

MessageT = TypeVar("MessageT", bound=Message)


class Code(enum.IntEnum):
    """gRPC status codes (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Fault(enum.Enum):
    """Whose doing an error is."""

    CALLER = "caller"
    SERVICE = "service"
    DEPENDENCY = "dependency"


_SERVICE_FAULTS = frozenset({Code.UNKNOWN, Code.UNIMPLEMENTED, Code.INTERNAL, Code.DATA_LOSS})
_DEPENDENCY_FAULTS = frozenset({Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE})


class WhisprError(Exception):
    """A failed operation: status `code`, human `message`, google.rpc `details`."""

    by_peer = False
    """Whether the other end of a call said so, which is then alive, and not our end of the connection."""
    pushback_s: float | None = None
    """Seconds after which a gRPC server lets the call be tried again; negative for never (gRFC A6)."""

    def __init__(self, code: Code, message: str, details: Iterable[Message] = ()) -> None:
        assert code is not Code.OK, "OK is not an error"
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    def __repr__(self) -> str:
        return f"WhisprError({self.code.name}, {self.message!r}, reason={self.reason!r})"

    @property
    def fault(self) -> Fault:
        """Whose doing it was, read off the code."""
        if self.code in _SERVICE_FAULTS:
            return Fault.SERVICE
        if self.code in _DEPENDENCY_FAULTS:
            return Fault.DEPENDENCY
        return Fault.CALLER

    def detail(self, kind: type[MessageT]) -> MessageT | None:
        """Return the first detail of the given message type, or None."""
        return next((detail for detail in self.details if isinstance(detail, kind)), None)

    @property
    def reason(self) -> str:
        """The stable machine-readable reason: that of `ErrorInfo`, else the code's name in lower case."""
        info = self.detail(ErrorInfo)
        return info.reason if info is not None else self.code.name.lower()

    @property
    def facts(self) -> Mapping[str, str]:
        """The `ErrorInfo` metadata: what the reason needs to be understood, such as `until` of a mute."""
        info = self.detail(ErrorInfo)
        return dict(info.metadata) if info is not None else {}

    @property
    def retry_after_s(self) -> float | None:
        """Seconds to wait before trying again, when the error says so."""
        info = self.detail(RetryInfo)
        return info.retry_delay.ToTimedelta().total_seconds() if info is not None else None

    @property
    def fields(self) -> Mapping[str, str]:
        """Field path → what is wrong with it, for INVALID_ARGUMENT."""
        bad = self.detail(BadRequest)
        return {v.field: v.description for v in bad.field_violations} if bad is not None else {}

    def to_status(self) -> Status:
        """Pack into `google.rpc.Status`, as carried by `grpc-status-details-bin`."""
        status = Status(code=int(self.code), message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return status

    @classmethod
    def from_status(cls, status: Status) -> WhisprError:
        """Unpack a `google.rpc.Status`; details of unknown types, and those that do not parse, stay packed."""
        return cls(_code_of(status.code), status.message, [_unpacked(detail) for detail in status.details])


_KNOWN_DETAILS: tuple[type[Message], ...] = (BadRequest, ErrorInfo, RetryInfo)


def _code_of(number: int) -> Code:
    """Map a peer's status number to a Code; numbers outside the table mean UNKNOWN (statuscodes.md)."""
    if number == Code.OK:
        return Code.UNKNOWN
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def _unpacked(packed: Any) -> Message:
    for kind in _KNOWN_DETAILS:
        if packed.TypeName() == kind.DESCRIPTOR.full_name:
            message = kind()
            try:
                packed.Unpack(message)
            except DecodeError:
                return packed  # a peer may send anything, and the error itself is still worth having
            return message
    return packed


def _info(reason: str, facts: Mapping[str, str] | None = None) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain=DOMAIN, metadata=dict(facts or {}))


def _retry(after_s: float) -> RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(max(0, round(after_s * 1000)))
    return RetryInfo(retry_delay=delay)


def invalid(fields: Mapping[str, str], reason: str = "invalid_payload") -> WhisprError:
    """INVALID_ARGUMENT naming every offending field, as `invalid({"password": "at least 8 characters"})`."""
    bad = BadRequest()
    for field, description in fields.items():
        bad.field_violations.add(field=field, description=description)
    message = "; ".join(f"{field}: {description}" for field, description in fields.items())
    return WhisprError(Code.INVALID_ARGUMENT, message, [bad, _info(reason)])


def unauthenticated(message: str, reason: str = "unauthorized") -> WhisprError:
    """UNAUTHENTICATED: we do not know who is calling (missing, expired, forged or revoked token)."""
    return WhisprError(Code.UNAUTHENTICATED, message, [_info(reason)])


def denied(message: str, reason: str = "forbidden", facts: Mapping[str, str] | None = None) -> WhisprError:
    """PERMISSION_DENIED: we know who is calling, and they may not."""
    return WhisprError(Code.PERMISSION_DENIED, message, [_info(reason, facts)])


def not_found(what: str, identifier: str) -> WhisprError:
    """NOT_FOUND, also said of things the caller may not know exist."""
    info = _info("not_found", {"resource": what})
    return WhisprError(Code.NOT_FOUND, f"no such {what}: {identifier}", [info])


def exists(message: str, reason: str, facts: Mapping[str, str] | None = None) -> WhisprError:
    """ALREADY_EXISTS: the name or id is taken."""
    return WhisprError(Code.ALREADY_EXISTS, message, [_info(reason, facts)])


def conflict(message: str, reason: str, facts: Mapping[str, str] | None = None) -> WhisprError:
    """FAILED_PRECONDITION: well-formed and allowed, but not in the present state of things."""
    return WhisprError(Code.FAILED_PRECONDITION, message, [_info(reason, facts)])


def exhausted(
    message: str,
    retry_after_s: float | None = None,
    reason: str = "rate_limited",
    facts: Mapping[str, str] | None = None,
) -> WhisprError:
    """RESOURCE_EXHAUSTED: over a limit; says when to come back, if coming back helps."""
    details: list[Message] = [_info(reason, facts)]
    if retry_after_s is not None:
        details.append(_retry(retry_after_s))
    return WhisprError(Code.RESOURCE_EXHAUSTED, message, details)


def unavailable(
    message: str,
    retry_after_s: float = 1.0,
    facts: Mapping[str, str] | None = None,
    reason: str = "unavailable",
) -> WhisprError:
    """UNAVAILABLE: something we depend on is away; nothing was done or it is safe to ask again.

    Where neither is certain the facts say so: rpc channels put `processed` there, "no" or "maybe".
    """
    return WhisprError(Code.UNAVAILABLE, message, [_info(reason, facts), _retry(retry_after_s)])


def internal(message: str) -> WhisprError:
    """INTERNAL: our own fault. The message must tell the caller nothing of our insides."""
    return WhisprError(Code.INTERNAL, message, [_info("internal")])
