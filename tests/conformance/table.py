"""The vocabulary of the conformance table: how a request is said, what is sent, and what must come back."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.raw import (
    ACK,
    PING,
    block,
    frame,
    headers,
)

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5

Fields = tuple[tuple[str, str | bytes], ...]

STREAMS_MAX = 8
"""The server's limit of concurrent streams."""

FRAME_BYTES = 16384
"""The server's limit of a frame's payload."""


@dataclass(frozen=True)
class Dialect:
    """How the suite says "a request"."""

    name: str
    get: Fields
    post: Fields
    message: bytes
    """A body that suits `post`."""

    def request(self, stream: int = 1, *more: tuple[str, str | bytes], end: bool = True) -> bytes:
        """A request in one HEADERS frame."""
        return headers(stream, block(*self.get, *more), end=end)

    def posting(self, stream: int = 1, *more: tuple[str, str | bytes]) -> bytes:
        """A request with a body to come."""
        return headers(stream, block(*self.post, *more), end=False)

    def without(self, name: str) -> Fields:
        """The request's fields but one."""
        return tuple(field for field in self.get if field[0] != name)

    def instead(self, name: str, value: str) -> Fields:
        """The request's fields, one of another value."""
        return tuple((key, value if key == name else old) for key, old in self.get)


def _fields(method: str, path: str, *more: tuple[str, str | bytes]) -> Fields:
    return ((":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost:1"), *more)


_CALL = _fields(
    "POST", "/whispr.test.echo.Echo/Join", ("te", "trailers"), ("content-type", "application/grpc")
)

DIALECTS = (
    Dialect("http", _fields("GET", "/"), _fields("POST", "/"), b"test"),
    Dialect("grpc", _CALL, _CALL, b"\0\0\0\0\x02\x10\x01"),
)

# --- What must come back ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoneAway:
    """GOAWAY with one of these codes (section 5.4.1), and the connection closed."""

    codes: tuple[str, ...]


@dataclass(frozen=True)
class StreamFault:
    """RST_STREAM with the code, or a connection error of it (section 5.4.2 leaves the choice).

    After RST_STREAM the connection must still work.
    """

    stream: int
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Response:
    """A whole response on each of these streams; nothing is reset, and the connection goes on."""

    streams: tuple[int, ...]


@dataclass(frozen=True)
class Alive:
    """No error and no response; the connection answers a PING afterwards."""


@dataclass(frozen=True)
class Says:
    """This very frame, among others, and no error."""

    kind: int
    flags: int
    payload: bytes


@dataclass(frozen=True)
class Wait:
    """A step: go on once a whole response has come on the stream."""

    stream: int = 1


@dataclass(frozen=True)
class WaitForData:
    """A step: go on once so many bytes of DATA in all have come on the stream, and check that no more do."""

    stream: int
    size: int


@dataclass(frozen=True)
class Settle:
    """A step: go on once the server has dealt with everything so far."""


Expected = GoneAway | StreamFault | Response | Alive | Says
Step = bytes | Wait | WaitForData | Settle


@dataclass(frozen=True)
class Case:
    """One promise."""

    section: str
    name: str
    steps: tuple[Step, ...]
    expected: Expected
    handshake: bool = True
    """Preface and SETTINGS go first."""


def fatal(*codes: str) -> GoneAway:
    return GoneAway(codes)


def fault(*codes: str, stream: int = 1) -> StreamFault:
    return StreamFault(stream, codes)


def answered(*streams: int) -> Response:
    return Response(streams or (1,))


ALIVE, SETTLE = Alive(), Settle()
PONG = Says(PING, ACK, b"h2suite!")
P = frame(PING, 0, 0, b"h2suite!")
PROTOCOL, SIZE, CLOSED, FLOW = "PROTOCOL_ERROR", "FRAME_SIZE_ERROR", "STREAM_CLOSED", "FLOW_CONTROL_ERROR"
COMPRESSION, CALM, REFUSED = "COMPRESSION_ERROR", "ENHANCE_YOUR_CALM", "REFUSED_STREAM"

Row = tuple[str, str, Step | tuple[Step, ...], Expected] | tuple[str, str, bytes, Expected, bool]
"""Section, name, what is sent, what must come back, and whether the handshake goes first."""
