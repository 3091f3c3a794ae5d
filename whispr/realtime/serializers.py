"""The two forms in which Phoenix messages travel: version 2, arrays and binary frames, and version 1, objects. Pure.

    V2   [join_ref, ref, topic, event, payload]                     whispr.realtime.protocol
    V1   {"topic", "event", "payload", "ref"}                       Phoenix.Socket.V1.JSONSerializer

Version 1 is what a client speaks that asks for no `vsn`. It knows neither join_ref nor binary frames: a client may
say its join_ref but is told none, and bytes reach it as `{"base64": …}`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from whispr.realtime import protocol
from whispr.realtime.frames import TEXT, encode_frame
from whispr.realtime.protocol import EMPTY, MalformedMessage, Message, Ref


class Serializer(Protocol):
    """Decodes what a client says, and encodes complete frames for it."""

    @property
    def plain(self) -> Serializer:
        """The serializer whose broadcasts these are, before they are `packed`."""

    def packed(self, frame: bytes) -> bytes:
        """Turn a frame of `plain` into this serializer's."""

    def decode(self, data: str | bytes) -> Message:
        """Decode one message. Raises MalformedMessage."""

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: object) -> bytes:
        """Answer a push or a join."""

    def push(self, join_ref: Ref, topic: str, event: str, payload: object) -> bytes:
        """Address one joined channel."""

    def broadcast(self, topic: str, event: str, payload: object) -> bytes:
        """Build the one frame that serves every subscriber of the topic."""

    def end(self, join_ref: Ref, topic: str, event: str, payload: object = EMPTY) -> bytes:
        """Build `phx_close` or `phx_error`."""


class _Unpacked:
    """Frames as they are encoded."""

    @property
    def plain(self) -> Serializer:
        """This serializer itself."""
        return self  # type: ignore[return-value]  # each subclass has the rest

    def packed(self, frame: bytes) -> bytes:
        """Return the frame as it is."""
        return frame


class _Version2(_Unpacked):
    """Arrays and binary frames."""

    decode = staticmethod(protocol.decode)
    reply = staticmethod(protocol.encode_reply)
    push = staticmethod(protocol.encode_push)
    broadcast = staticmethod(protocol.encode_broadcast)
    end = staticmethod(protocol.encode_end)


class _Object(msgspec.Struct, frozen=True):
    """A message of version 1."""

    topic: str
    event: str
    payload: object = None
    ref: Ref = None
    join_ref: Ref = None


_decode_object = msgspec.json.Decoder(_Object).decode


class _Version1(_Unpacked):
    """Objects."""

    def decode(self, data: str | bytes) -> Message:
        """Decode one message. Raises MalformedMessage."""
        if isinstance(data, bytes):
            raise MalformedMessage("version 1 of the protocol has no binary frames")
        try:
            said = _decode_object(data)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise MalformedMessage(f"not a {{topic, event, payload, ref}} object: {error}") from None
        return Message(said.join_ref, said.ref, said.topic, said.event, said.payload)

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: object) -> bytes:
        """Answer a push or a join."""
        del join_ref
        return _object(topic, "phx_reply", {"status": status, "response": _text(response)}, ref)

    def push(self, join_ref: Ref, topic: str, event: str, payload: object) -> bytes:
        """Address one joined channel."""
        del join_ref
        return _object(topic, event, payload, None)

    def broadcast(self, topic: str, event: str, payload: object) -> bytes:
        """Build the one frame that serves every subscriber of the topic."""
        return _object(topic, event, payload, None)

    def end(self, join_ref: Ref, topic: str, event: str, payload: object = EMPTY) -> bytes:
        """Build `phx_close` or `phx_error`."""
        return _object(topic, event, payload, join_ref)


def _object(topic: str, event: str, payload: object, ref: Ref) -> bytes:
    message = {"topic": topic, "event": event, "payload": _text(payload), "ref": ref}
    return encode_frame(TEXT, protocol.encode_json(message))


def _text(payload: object) -> object:
    return {"base64": payload} if isinstance(payload, bytes) else payload  # msgspec writes bytes as base64


V2: Serializer = _Version2()
V1: Serializer = _Version1()
