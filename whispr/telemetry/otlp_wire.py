"""Spans in OTLP's protobuf, written by hand: the generated classes take four times as long for each span.

The layout is that of `opentelemetry/proto/trace/v1/trace.proto` in protobuf's wire format
(https://protobuf.dev/programming-guides/encoding/), which its tests read back with the generated classes. Most of
what a span says has been said before, as its name and its attributes, and is kept as it was written then. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

from whispr.errors import Code
from whispr.telemetry.tracing import AttributeValue, Span

_TIMES = Struct("<BBBQBQ")
_DOUBLE = Struct("<d")
_KIND, _STARTED, _ENDED = 0x30, 0x39, 0x41
_FLAGS = b"\x85\x01" + (1).to_bytes(4, "little")
"""Field 16, fixed32: sampled."""


def spans(ended: Iterable[Span]) -> bytes:
    """The fields `spans` of a `ScopeSpans`, which may be joined to one that has none."""
    return b"".join(field(2, _span(span)) for span in ended)


def field(number: int, content: bytes) -> bytes:
    """A field that has a length: a message, a string, bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _span(span: Span) -> bytes:
    context = span.context
    parts = [
        b"\x0a\x10", bytes.fromhex(context.trace_id), b"\x12\x08", bytes.fromhex(context.span_id),
        _name(span.name), _TIMES.pack(_KIND, span.kind, _STARTED, span.begun_ns, _ENDED, span.ended_ns), _FLAGS,
    ]  # fmt: skip
    if span.parent_id:
        parts += (b"\x22\x08", bytes.fromhex(span.parent_id))
    if context.state:
        parts.append(field(3, context.state.encode()))
    parts += [_attribute(key, value) for key, value in span.attributes.items()]
    if span.code is not Code.OK:
        parts.append(_failed(span.code.name))
    return b"".join(parts)


@lru_cache(1024)
def _name(name: str) -> bytes:
    return field(5, name.encode("utf-8", "replace"))


@lru_cache(64)
def _failed(code: str) -> bytes:
    return field(15, field(2, code.encode()) + b"\x18\x02")


@lru_cache(8192, typed=True)
def _attribute(key: str, value: AttributeValue) -> bytes:
    return field(9, field(1, key.encode()) + field(2, _value(value)))


def _value(value: AttributeValue) -> bytes:
    """An `AnyValue`; an integer of more than 64 bits is cut to them."""
    if isinstance(value, str):
        return field(1, value.encode("utf-8", "replace"))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    return b"\x21" + _DOUBLE.pack(value)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
