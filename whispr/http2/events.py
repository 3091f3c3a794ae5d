"""What `Connection.receive` reports."""

from __future__ import annotations

from dataclasses import dataclass

from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Headers


@dataclass(slots=True)
class HeadersReceived:
    """A request, on a server; a response or its trailers, on a client. Well-formed and within limits."""

    stream_id: int
    headers: Headers
    end_stream: bool
    trailers: bool


@dataclass(slots=True)
class DataReceived:
    """Bytes of a body. Give them back with `Connection.consume` once they are no longer held."""

    stream_id: int
    data: bytes | memoryview
    end_stream: bool


@dataclass(slots=True)
class RequestReceived:
    """A request that came in one piece: its head, and its whole body, which ended the stream.

    Stands for HeadersReceived and DataReceived, where the owner asked for it. The body counts as unread until
    it is consumed or the stream closes.
    """

    stream_id: int
    headers: Headers
    data: bytes


@dataclass(slots=True)
class ResponseReceived:
    """A response that came in one piece: head, body, trailers, and with them the end of its stream.

    Stands for HeadersReceived, DataReceived and HeadersReceived, where the owner asked for it.
    """

    stream_id: int
    headers: Headers
    data: bytes
    trailers: Headers


@dataclass(slots=True)
class StreamReset:
    """A stream ended early: by the peer's RST_STREAM, or by ours because of what the peer sent."""

    stream_id: int
    code: ErrorCode
    remote: bool
    message: str


@dataclass(slots=True)
class SettingsReceived:
    """The peer's settings changed; `Connection.streams_allowed` may have."""


@dataclass(slots=True)
class PingAcknowledged:
    """The peer answered our PING."""

    data: bytes


@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no new streams, and has not looked at ours above `last_stream_id`."""

    last_stream_id: int
    code: ErrorCode
    debug: bytes


@dataclass(slots=True)
class ConnectionFailed:
    """The peer broke the protocol. The GOAWAY is in the output; nothing more will be received or sent."""

    code: ErrorCode
    message: str


Event = (
    HeadersReceived
    | DataReceived
    | RequestReceived
    | ResponseReceived
    | StreamReset
    | SettingsReceived
    | PingAcknowledged
    | GoAwayReceived
    | ConnectionFailed
)
