"""Phoenix Channels v2 on the wire, pure: `Phoenix.Socket.V2.JSONSerializer` and phoenix.js's `serializer.js`.

A text frame is `[join_ref, ref, topic, event, payload]`. Client and server count refs as decimal strings; some
clients send numbers, which Phoenix echoes as they came, and so do we. Binary frames carry one-byte sizes, so
each field of theirs has at most 255 bytes:

    push, from a client   00 join_ref_size ref_size topic_size event_size   join_ref ref topic event data
    push, from a server   00 join_ref_size topic_size event_size            join_ref topic event data
    reply                 01 join_ref_size ref_size topic_size status_size  join_ref ref topic status data
    broadcast             02 topic_size event_size                          topic event data

The `encode_…` functions return complete, unmasked WebSocket frames (`frames.encode_frame`), ready for a socket. A
broadcast has null refs, so the same bytes serve every subscriber. A payload of type `bytes` makes a binary frame;
anything else is encoded as JSON by msgspec (dicts, lists, Structs, dataclasses, datetimes as RFC 3339, UUIDs;
`msgspec.Raw` for JSON that is encoded already).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from whispr.realtime.frames import BINARY, TEXT, encode_frame

Ref = str | int | None

_PUSH, _REPLY, _BROADCAST = 0, 1, 2
FIELD_BYTES_MAX = 255
"""Of a topic, an event or a ref in a binary frame, whose sizes are bytes; and of what a join has us keep."""
EMPTY: Mapping[str, object] = {}
"""The payload of what needs none."""


class MalformedMessage(Exception):  # noqa: N818  # a fact about the input; callers turn it into a close code
    """The frame is no Phoenix V2 message; the text says what is wrong with it."""


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """One message, either way. `payload` is decoded JSON, or bytes when it came in a binary frame."""

    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: Any


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


def decode(data: str | bytes) -> Message:
    """Decode what a client sent: text as JSON, bytes as a binary push.

    Raises MalformedMessage.
    """
    if isinstance(data, bytes):
        return _decode_client_push(data)
    return decode_text(data)


def decode_text(data: str) -> Message:
    """Decode a JSON frame of either direction. Raises MalformedMessage."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise MalformedMessage(f"not a [join_ref, ref, topic, event, payload] array: {error}") from None


def decode_from_server(data: str | bytes) -> Message:
    """Decode what a server sent, as a client does. A binary reply's payload is `{status, response: bytes}`.

    Raises MalformedMessage.
    """
    if isinstance(data, str):
        return decode_text(data)
    kind = data[0] if data else -1
    if kind == _PUSH:
        (join_ref, topic, event), body = _fields(data, 3)
        return Message(join_ref, None, topic, event, body)
    if kind == _REPLY:
        (join_ref, ref, topic, status), body = _fields(data, 4)
        return Message(join_ref, ref, topic, "phx_reply", {"status": status, "response": body})
    if kind == _BROADCAST:
        (topic, event), body = _fields(data, 2)
        return Message(None, None, topic, event, body)
    raise MalformedMessage("unknown kind of binary frame")


def binary_as_text(data: bytes) -> str:
    """Rewrite a server's binary frame as JSON for a client that can take text alone; bytes become `{"base64": …}`.

    Raises MalformedMessage.
    """
    message = decode_from_server(data)
    payload: object = message.payload
    if isinstance(payload, bytes):
        payload = {"base64": payload}  # msgspec writes bytes as base64
    else:
        payload = {**message.payload, "response": {"base64": message.payload["response"]}}
    text = (message.join_ref or None, message.ref or None, message.topic, message.event, payload)
    return _encode(text).decode()


def _decode_client_push(data: bytes) -> Message:
    if not data or data[0] != _PUSH:
        raise MalformedMessage("a client's binary frame must be a push (kind 0)")
    (join_ref, ref, topic, event), body = _fields(data, 4)
    return Message(join_ref or None, ref or None, topic, event, body)


def _fields(data: bytes, count: int) -> tuple[list[str], bytes]:
    """Split off `count` length-prefixed strings; the rest is the body."""
    sizes = data[1 : 1 + count]
    at = 1 + count
    if len(data) < at + sum(sizes) or len(sizes) < count:
        raise MalformedMessage("a binary frame is shorter than its fields")
    fields = []
    for size in sizes:
        try:
            fields.append(data[at : at + size].decode())
        except UnicodeDecodeError:
            raise MalformedMessage("a field of a binary frame is not valid UTF-8") from None
        at += size
    return fields, data[at:]


def _binary(kind: int, fields: tuple[str, ...], body: bytes) -> bytes:
    encoded = [field.encode() for field in fields]
    if any(len(field) > FIELD_BYTES_MAX for field in encoded):
        raise ValueError(f"a field of a binary frame may have at most {FIELD_BYTES_MAX} bytes")
    return b"".join((bytes((kind, *map(len, encoded))), *encoded, body))


def encode_reply(join_ref: Ref, ref: Ref, topic: str, status: str, response: object) -> bytes:
    """Answer a push or a join. A `bytes` response makes a binary reply."""
    if isinstance(response, bytes):
        fields = (_ref_text(join_ref), _ref_text(ref), topic, status)
        return encode_frame(BINARY, _binary(_REPLY, fields, response))
    reply = {"status": status, "response": response}
    return encode_frame(TEXT, _encode((join_ref, ref, topic, "phx_reply", reply)))


def encode_push(join_ref: Ref, topic: str, event: str, payload: object) -> bytes:
    """Address one joined channel: carries its join_ref and a null ref."""
    if isinstance(payload, bytes):
        return encode_frame(BINARY, _binary(_PUSH, (_ref_text(join_ref), topic, event), payload))
    return encode_frame(TEXT, _encode((join_ref, None, topic, event, payload)))


def encode_broadcast(topic: str, event: str, payload: object) -> bytes:
    """Build the one frame that serves every subscriber of the topic."""
    if isinstance(payload, bytes):
        return encode_frame(BINARY, _binary(_BROADCAST, (topic, event), payload))
    return encode_frame(TEXT, _encode((None, None, topic, event, payload)))


def encode_end(join_ref: Ref, topic: str, event: str, payload: object = EMPTY) -> bytes:
    """Build `phx_close` or `phx_error`: both refs are the join_ref of the channel that ended."""
    return encode_frame(TEXT, _encode((join_ref, join_ref, topic, event, payload)))


def encode_client_message(
    join_ref: Ref, ref: Ref, topic: str, event: str, payload: object
) -> tuple[int, bytes]:
    """Encode a client's message as (opcode, payload), still to be framed with a mask."""
    if isinstance(payload, bytes):
        return BINARY, _binary(_PUSH, (_ref_text(join_ref), _ref_text(ref), topic, event), payload)
    return TEXT, _encode((join_ref, ref, topic, event, payload))


def encode_json(payload: object) -> bytes:
    """Encode a payload alone, for carrying it to another node."""
    return _encode(payload)


def _ref_text(ref: Ref) -> str:
    return "" if ref is None else str(ref)
