"""The body of a long-poll client's POST. Pure.

phoenix.js sends ndjson: a message a line, JSON that begins with `[` (or `{` in version 1), or base64 of a binary
frame. Its older releases sent one JSON message as `application/json`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode

from whispr.realtime.handshake import Refused
from whispr.realtime.limits import Limits


def read_lines(body: bytes, limits: Limits, *, lines: bool) -> list[str | bytes]:
    """Return the messages of a body; without `lines` it is one JSON message. Raises Refused."""
    if len(body) > limits.poll_body_bytes:
        raise _too_large(f"a POST may have at most {limits.poll_body_bytes} bytes")
    found = body.splitlines() if lines else [body]
    if len(found) > limits.poll_lines:
        raise _too_large(f"a POST may have at most {limits.poll_lines} messages")
    return [_message(line, limits.frame_bytes, text=not lines) for line in found if line]


def _message(line: bytes, bytes_max: int, *, text: bool) -> str | bytes:
    message: str | bytes
    if text or line[0] in b"[{":
        try:
            message = line.decode()
        except UnicodeDecodeError:
            raise Refused(400, "invalid_payload", "a message is not valid UTF-8") from None
    else:
        try:
            message = b64decode(line, validate=True)
        except binascii.Error:
            raise Refused(400, "invalid_payload", "a message is neither JSON nor base64") from None
    if len(line if isinstance(message, str) else message) > bytes_max:
        raise _too_large(f"a message may have at most {bytes_max} bytes")
    return message


def _too_large(message: str) -> Refused:
    return Refused(413, "message_too_large", message)
