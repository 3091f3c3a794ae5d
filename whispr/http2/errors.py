"""What can be wrong with a connection or a stream (RFC 9113 section 7)."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD

    @classmethod
    def of(cls, number: int) -> ErrorCode:
        """Read a code off the wire; unknown ones are treated as INTERNAL_ERROR (section 7)."""
        try:
            return cls(number)
        except ValueError:
            return cls.INTERNAL_ERROR


class ProtocolError(Exception):
    """The peer broke a rule that ends the connection (section 5.4.1). Stays inside this package."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


class StreamError(Exception):
    """The peer broke a rule that ends one stream (section 5.4.2). Stays inside this package."""

    def __init__(self, stream_id: int, code: ErrorCode, message: str) -> None:
        super().__init__(f"stream {stream_id}: {code.name}: {message}")
        self.stream_id = stream_id
        self.code = code
        self.message = message


class LocalError(Exception):
    """This side asked for something the protocol does not allow, such as DATA after END_STREAM."""
