"""What gRPC says on top of HTTP/2, without I/O.

Timeouts, metadata, messages, statuses, and what the errors of the layers below mean to a caller. The rules
are those of grpc/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import urllib.parse
from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from whispr.errors import Code, WhisprError, exhausted
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Fields, Headers, list_bytes
from whispr.http2.queued import PIECE_BYTES, Data
from whispr.rpc.compression import Encoding

CONTENT_TYPE = "application/grpc+proto"

MetadataValue = str | bytes
"""Text (printable ASCII), or bytes for names ending in `-bin`."""

MetadataPairs = Iterable[tuple[str, MetadataValue]]

# --- Timeouts ---------------------------------------------------------------------------------------------

_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])\Z")
_EIGHT_DIGITS = 10**8


def parse_timeout(text: str) -> float:
    """`grpc-timeout` in seconds. Raises ValueError when it is not at most 8 digits and a unit."""
    match = _TIMEOUT.match(text)
    if match is None:
        raise ValueError(f"grpc-timeout {text!r} is not at most 8 digits and one of H M S m u n")
    return int(match[1]) * _UNIT_S[match[2]]


def format_timeout(seconds: float) -> str:
    """`grpc-timeout` for what is left, rounded up.

    From 0.1 s on it counts milliseconds, which lets calls that start moments after the same
    `fail_after(5)` send the same header block, and the peer find it in its cache.
    """
    if seconds < 0.1:
        return f"{max(0, math.ceil(seconds * 1e6))}u"
    for unit in ("m", "S", "M", "H"):
        count = math.ceil(seconds / _UNIT_S[unit])
        if count < _EIGHT_DIGITS:
            return f"{count}{unit}"
    return f"{_EIGHT_DIGITS - 1}H"


# --- Text of a status -------------------------------------------------------------------------------------

_PLAIN = "".join(chr(octet) for octet in range(0x20, 0x7F) if chr(octet) != "%")
_MESSAGE_CHARS_MAX = 1024
_MESSAGE_QUOTED_MAX = 2432
"""Longer messages are cut, so that a status always fits a peer's header list."""


def quote_message(message: str) -> str:
    """Percent-encode `grpc-message`, as much of it as may be sent."""
    message = message[:_MESSAGE_CHARS_MAX]
    quoted = urllib.parse.quote(message, safe=_PLAIN, errors="replace")
    while len(quoted) > _MESSAGE_QUOTED_MAX:
        # Between characters: half of one would arrive as garbage.
        message = message[: len(message) * _MESSAGE_QUOTED_MAX // len(quoted)]
        quoted = urllib.parse.quote(message, safe=_PLAIN, errors="replace")
    return quoted


def unquote_message(text: str) -> str:
    """Decode `grpc-message`; what is not valid stays as it is, for an error must not hide an error.

    Some servers send UTF-8 without encoding it, which header values hold as Latin-1.
    """
    octets = urllib.parse.unquote_to_bytes(text.encode("latin-1", "replace"))
    return octets.decode("utf-8", "replace")


# --- Metadata ---------------------------------------------------------------------------------------------

_NAME = re.compile(r"[0-9a-z_.-]+\Z")
_TEXT = re.compile(r"[\x20-\x7e]*\Z")
_NOT_METADATA = frozenset({"te", "content-type"})
_NOT_SENT = _NOT_METADATA | {
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
}
"""Names that mean something to HTTP: a peer would refuse the whole call for them (RFC 9113 section 8.2.2)."""


def encode_binary(value: bytes) -> str:
    """A `-bin` value: base64 without padding."""
    return base64.b64encode(value).rstrip(b"=").decode()


def decode_binary(text: str) -> bytes:
    """A `-bin` value, padded or not. Raises ValueError when it is not base64."""
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except ValueError as error:  # binascii.Error, or characters that are not ASCII
        raise ValueError(f"not base64: {text[:40]!r}") from error


def metadata_fields(pairs: MetadataPairs) -> list[tuple[str, str]]:
    """Application metadata as header fields. Raises ValueError naming what may not be sent."""
    return [(name, _metadata_field(name, value)) for name, value in pairs]


def _metadata_field(name: str, value: MetadataValue) -> str:
    if not _NAME.match(name):
        raise ValueError(f"metadata name {name!r}: only 0-9 a-z _ . - are allowed")
    if name.startswith("grpc-") or name in _NOT_SENT:
        raise ValueError(f"metadata name {name!r} is reserved")
    if name.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(f"metadata {name!r}: names ending in -bin carry bytes")
        return encode_binary(value)
    if not isinstance(value, str) or not _TEXT.match(value):
        raise ValueError(f"metadata {name!r}: only printable ASCII is allowed; use a -bin name for bytes")
    return value.strip(" ")


PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"


def metadata_pairs(fields: Fields) -> list[tuple[str, MetadataValue]]:
    """Application metadata among received fields. Raises ValueError on a bad `-bin` value.

    Of gRPC's own, applications see how often a call was made before (gRFC A6, "Exposed Retry Metadata").
    """
    pairs: list[tuple[str, MetadataValue]] = []
    for name, value in fields:
        if name in _NOT_METADATA or (name.startswith((":", "grpc-")) and name != PREVIOUS_ATTEMPTS):
            continue
        if name.endswith("-bin"):
            # Equal names may have been joined by a proxy; base64 has no commas of its own.
            pairs += [(name, decode_binary(part.strip())) for part in value.split(",")]
        else:
            pairs.append((name, value))
    return pairs


# --- Messages ---------------------------------------------------------------------------------------------

_PREFIX = struct.Struct(">BL")
PREFIX_BYTES = _PREFIX.size


def frame_message(message: bytes) -> bytes:
    """A message with its prefix, uncompressed."""
    return _PREFIX.pack(0, len(message)) + message


def framed(message: bytes) -> Data:
    """The same, but a long message is not copied for it."""
    return frame_message(message) if len(message) < PIECE_BYTES else (_PREFIX.pack(0, len(message)), message)


def frame_encoded(message: bytes, encoding: Encoding) -> bytes:
    """A message with its prefix, compressed if that is worth it."""
    compressed = encoding.compress(message)
    if compressed is None:
        return frame_message(message)
    return _PREFIX.pack(1, len(compressed)) + compressed


class Compressed(bytes):
    """A message that came with the compressed flag, as it came."""

    __slots__ = ()


class MessageReader:
    """Cuts DATA back into messages; holds at most one incomplete message."""

    __slots__ = ("_compressed", "_missing", "_parts", "_prefix", "encoding", "message_bytes_max")

    def __init__(self, message_bytes_max: int) -> None:
        self.message_bytes_max = message_bytes_max
        self._prefix = b""
        """What has come of an incomplete prefix."""
        self._missing = 0
        """Bytes still to come of an incomplete message."""
        self._parts: list[bytes | bytearray | memoryview] = []
        """What has come of it. They are joined once, at its end."""
        self._compressed = False
        """Whether it is flagged."""
        self.encoding: Encoding | None = None
        """The peer's `grpc-encoding`. Messages that are flagged come out as `Compressed`, still to be expanded."""

    @property
    def incomplete(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._missing > 0 or bool(self._prefix)

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Return the messages that `data` completes.

        Raises WhisprError: RESOURCE_EXHAUSTED at the prefix of a message over the limit, INTERNAL at a
        compressed one when no encoding was agreed.
        """
        messages: list[bytes] = []
        if self._missing:
            missing = self._missing
            if len(data) < missing:
                self._hold(data)
                return messages
            messages.append(self._completed(data[:missing]))
            data = data[missing:]
        elif self._prefix:
            data, self._prefix = self._prefix + data, b""
        at, available = 0, len(data)
        while available - at >= PREFIX_BYTES:
            flag, size = self._read_prefix(data, at)
            start = at + PREFIX_BYTES
            at = start + size
            if at > available:
                self._compressed = flag == 1
                self._missing = size
                self._hold(data[start:])
                return messages
            message = bytes(data[start:at])
            messages.append(Compressed(message) if flag else message)
        self._prefix = bytes(data[at:])
        return messages

    def _read_prefix(self, data: bytes | memoryview, at: int) -> tuple[int, int]:
        flag, size = _PREFIX.unpack_from(data, at)
        if flag and (flag != 1 or self.encoding is None):
            raise WhisprError(Code.INTERNAL, "compressed message without an agreed grpc-encoding")
        if size > self.message_bytes_max:
            told = f"message of {size} bytes is over the limit of {self.message_bytes_max}"
            raise WhisprError(Code.RESOURCE_EXHAUSTED, told)
        return flag, size

    def _hold(self, data: bytes | memoryview) -> None:
        """Keep what has come of a message: short parts together, for each by itself would take more than it has."""
        self._missing -= len(data)
        parts = self._parts
        if len(data) < PIECE_BYTES:
            if parts and isinstance(last := parts[-1], bytearray):
                last += data
            else:
                parts.append(bytearray(data))
        else:
            # A view holds all of what it is a view of.
            apart = isinstance(data, memoryview) and len(data) * 2 < memoryview(data.obj).nbytes
            parts.append(bytes(data) if apart else data)

    def _completed(self, last: bytes | memoryview) -> bytes:
        message = b"".join((*self._parts, last))
        self._parts = []
        self._missing = 0
        return Compressed(message) if self._compressed else message


# --- Statuses ---------------------------------------------------------------------------------------------

_STATUS_BYTES_MAX = 7 * 1024 + 512
"""Of a message and details together. Details beyond it are left out: peers may refuse trailers over 8 KiB, and
the code matters more."""

HTTP_CODES: Mapping[int, Code] = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
"""What an HTTP status without `grpc-status` means (grpc/doc/http-grpc-status-mapping.md); others: UNKNOWN."""

RESET_CODES: Mapping[ErrorCode, Code] = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}
"""What RST_STREAM means to a caller (PROTOCOL-HTTP2.md, "HTTP2 Transport Mapping"); others: INTERNAL."""


def status_fields(error: WhisprError | None) -> list[tuple[str, str]]:
    """The fields that end a call; None is OK."""
    if error is None:
        return [("grpc-status", "0")]
    message = quote_message(error.message)
    fields = [("grpc-status", str(int(error.code))), ("grpc-message", message)]
    if error.details:
        details = encode_binary(error.to_status().SerializeToString())
        if len(message) + len(details) <= _STATUS_BYTES_MAX:
            fields.append(("grpc-status-details-bin", details))
    return fields


def ending_fields(
    error: WhisprError | None, trailing: list[tuple[str, str]], list_bytes_max: int
) -> list[tuple[str, str]]:
    """The fields that end a call, with trailing metadata, in a list that the peer takes.

    What would be too large is left out, first the metadata and then the details: a peer that cannot read the
    trailers would not even learn the code. A call that would have been OK is not, without its metadata.
    """
    fields = status_fields(error) + trailing
    size = list_bytes(fields)
    if size <= list_bytes_max:
        return fields
    fields = status_fields(error or too_large(size, list_bytes_max))
    # The code and the message may have to do; that much every peer takes.
    return fields if list_bytes(fields) <= list_bytes_max else fields[:2]


def too_large(size: int, list_bytes_max: int) -> WhisprError:
    """The error of metadata that the peer would not take."""
    told = f"metadata of {size} bytes in all is over the {list_bytes_max} that the client takes"
    return exhausted(told, reason="metadata_too_large")


def read_status(trailers: Headers) -> WhisprError | None:
    """The outcome in trailers; None is OK. Trailers without a status mean UNKNOWN."""
    text = trailers.get("grpc-status")
    if text == "0":
        return None
    error = _read_error(text, trailers)
    error.by_peer = True
    error.pushback_s = _read_pushback(trailers.get("grpc-retry-pushback-ms"))
    return error


def _read_error(text: str | None, trailers: Headers) -> WhisprError:
    if text is None:
        return WhisprError(Code.UNKNOWN, "the server ended the call without a grpc-status")
    message = unquote_message(trailers.get("grpc-message") or "")
    code = _read_code(text)
    details = _read_details(trailers.get("grpc-status-details-bin"))
    if details is not None and details.code == code:
        return WhisprError.from_status(details)
    return WhisprError(code, message)


def _read_code(text: str) -> Code:
    """The code of a `grpc-status` that is not "0"; what is no such code is UNKNOWN."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 3 else -1
    return Code(number) if 0 < number <= max(Code) else Code.UNKNOWN


def _read_pushback(text: str | None) -> float | None:
    """Seconds of `grpc-retry-pushback-ms`; what is no number of milliseconds means never (gRFC A6, pushback)."""
    if text is None:
        return None
    return int(text) / 1000 if text.isascii() and text.isdecimal() and len(text) < 10 else -1.0


def _read_details(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status.FromString(decode_binary(text))
    except (ValueError, DecodeError):
        return None  # broken details are no reason to lose the status itself


def read_response(headers: Headers) -> WhisprError | None:
    """What is wrong with the head of a response, when it is not a gRPC one."""
    status = int(headers.get(":status") or "0")
    content_type = headers.get("content-type")
    if status == 200 and is_grpc(content_type):
        return None
    if status != 200 and headers.get("grpc-status") not in (None, "0"):
        return read_status(headers)
    if status != 200:
        return WhisprError(HTTP_CODES.get(status, Code.UNKNOWN), f"the server answered HTTP status {status}")
    return WhisprError(Code.UNKNOWN, f"the server answered with content-type {content_type!r}")


def is_grpc(content_type: str | None) -> bool:
    """Whether a content-type is gRPC with protobuf messages."""
    if content_type is None:
        return False
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("application/grpc", "application/grpc+proto")


def reset_error(code: ErrorCode, message: str) -> WhisprError:
    """What a reset stream means to its caller."""
    return WhisprError(RESET_CODES.get(code, Code.INTERNAL), message)
