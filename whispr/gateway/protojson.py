"""proto3 JSON with original field names, both ways. Pure.

The mapping is protobuf's own (protobuf.dev/programming-guides/json), written out here for two reasons. Errors
name the field by its path, and all of them at once. And one rule is ours: a `bytes content` field, which is
opaque to the server yet nearly always text, is shown as `text` when it is valid UTF-8 and as base64 `content`
otherwise; a request may give either, not both.

Well-known types (Timestamp and the rest of google.protobuf) keep protobuf's own conversion.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from whispr.gateway.descriptors import (
    CONTENT,
    TEXT,
    descriptor_of,
    enum_type,
    field_named,
    fields_of,
    holds_message,
    is_content,
    is_map,
    is_well_known,
    map_types,
    message_type,
)

Faults = dict[str, str]
"""Path of a field → what is wrong with it."""

_F = FieldDescriptor
_INT_BOUNDS = {
    _F.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _F.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _F.CPPTYPE_UINT32: (0, 2**32 - 1),
    _F.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOAT_MAX = 3.4028234663852886e38
_FLOAT_ROUNDS_TO_MAX = 3.40282356e38  # Printers that keep eight digits show the largest float32 as more.
_FLOAT_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_DIGITS_MAX = 40


class _FaultError(Exception):
    """One value does not fit its field; the message says how."""


def to_json(message: Message) -> dict[str, Any]:
    """Return `message` as JSON values: defaults included, unset messages and optionals left out."""
    shown: dict[str, Any] = {}
    for field in fields_of(descriptor_of(message)):
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if is_content(field):
            name, shown_value = _content_shown(value)
            shown[name] = shown_value
        else:
            shown[field.name] = _field_shown(field, value)
    return shown


def _content_shown(value: bytes) -> tuple[str, str]:
    try:
        return TEXT, value.decode()
    except UnicodeDecodeError:
        return CONTENT, base64.b64encode(value).decode()


def _field_shown(field: FieldDescriptor, value: Any) -> Any:
    if is_map(field):
        _, of = map_types(field)
        return {_key_shown(key): _shown(of, value[key]) for key in value}
    if field.is_repeated:
        return [_shown(field, item) for item in value]
    return _shown(field, value)


def _key_shown(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _shown(field: FieldDescriptor, value: Any) -> Any:
    if holds_message(field):
        if is_well_known(message_type(field)):
            return json_format.MessageToDict(value, preserving_proto_field_name=True)
        return to_json(value)
    if field.type == _F.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if field.type == _F.TYPE_ENUM:
        known = enum_type(field).values_by_number.get(value)
        return known.name if known is not None else value
    if field.cpp_type in (_F.CPPTYPE_INT64, _F.CPPTYPE_UINT64):
        return str(value)  # JavaScript's numbers end at 2**53.
    if field.cpp_type in (_F.CPPTYPE_FLOAT, _F.CPPTYPE_DOUBLE):
        return _float_shown(field, value)
    return value


def _float_shown(field: FieldDescriptor, value: float) -> float | str:
    if math.isfinite(value):
        return _shortest_float32(value) if field.cpp_type == _F.CPPTYPE_FLOAT else value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _shortest_float32(value: float) -> float:
    """Drop the digits that a float32 gained by being widened: 0.1, not 0.10000000149011612."""
    for digits in (6, 7, 8, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short) <= _FLOAT_MAX and struct.unpack("f", struct.pack("f", short))[0] == value:
            return short
    return value


def merge_json(message: Message, value: object, path: str = "") -> Faults:
    """Set the fields that the JSON object `value` gives; return what is wrong with it, by path.

    After faults the message is half filled and of no use.
    """
    if not isinstance(value, Mapping):
        return {path or "body": f"expected an object, not {_kind(value)}"}
    faults: Faults = {}
    seen: dict[str, str] = {}
    for name, item in value.items():
        where = f"{path}.{name}" if path else str(name)
        field = field_named(descriptor_of(message), name)
        if field is None:
            faults[where] = "no such field"
        elif item is None:
            continue  # proto3 JSON: null leaves a field unset.
        elif clash := _clash(field, name, seen):
            faults[where] = clash
        else:
            faults |= _set_field(message, field, item, where, as_text=name == TEXT and is_content(field))
    return faults


def _clash(field: FieldDescriptor, name: str, seen: dict[str, str]) -> str | None:
    """Note a field as given; say so when it, or another member of its oneof, was given before."""
    oneof = field.containing_oneof
    for key in {field.name, oneof.full_name if oneof is not None else field.name}:
        if key in seen:
            return f"give either {seen[key]} or {name}, not both"
        seen[key] = name
    return None


def _set_field(
    message: Message, field: FieldDescriptor, value: object, path: str, *, as_text: bool
) -> Faults:
    if is_map(field):
        return _set_map(message, field, value, path)
    if field.is_repeated:
        return _set_repeated(message, field, value, path)
    if holds_message(field):
        return _merge_message(getattr(message, field.name), value, path)
    try:
        setattr(message, field.name, _text(value).encode() if as_text else scalar(field, value))
    except _FaultError as fault:
        return {path: str(fault)}
    return {}


def _merge_message(target: Message, value: object, path: str) -> Faults:
    target.SetInParent()
    if not is_well_known(descriptor_of(target)):
        return merge_json(target, value, path)
    try:
        json_format.ParseDict(value, target)  # type: ignore[arg-type]  # any JSON value, not objects alone
    except (json_format.ParseError, TypeError, AttributeError, ValueError):
        return {path: f"not a {target.DESCRIPTOR.name}"}
    return {}


def _set_repeated(message: Message, field: FieldDescriptor, value: object, path: str) -> Faults:
    if not isinstance(value, list):
        return {path: f"expected a list, not {_kind(value)}"}
    target = getattr(message, field.name)
    faults: Faults = {}
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if item is None:
            faults[where] = "must not be null"
        elif holds_message(field):
            faults |= _merge_message(target.add(), item, where)
        else:
            try:
                target.append(scalar(field, item))
            except _FaultError as fault:
                faults[where] = str(fault)
    return faults


def _set_map(message: Message, field: FieldDescriptor, value: object, path: str) -> Faults:
    if not isinstance(value, Mapping):
        return {path: f"expected an object, not {_kind(value)}"}
    target = getattr(message, field.name)
    key_field, value_field = map_types(field)
    faults: Faults = {}
    for name, item in value.items():
        where = f"{path}[{name}]"
        try:
            key = scalar(key_field, name, from_text=True)
            if item is None:
                raise _FaultError("must not be null")
            if holds_message(value_field):
                faults |= _merge_message(target[key], item, where)
            else:
                target[key] = scalar(value_field, item)
        except _FaultError as fault:
            faults[where] = str(fault)
    return faults


def merge_query(message: Message, pairs: list[tuple[str, str]]) -> Faults:
    """Set fields from a query string: `a.b=1` for a nested field, a name again for each item of a list."""
    faults: Faults = {}
    seen: set[str] = set()
    for path, text in pairs:
        fault = set_from_text(message, path, text, again=path in seen)
        seen.add(path)
        if fault is not None:
            faults[path] = fault
    return faults


def set_from_text(message: Message, path: str, text: str, *, again: bool = False) -> str | None:
    """Set the field at a dotted `path` from text; return what is wrong, if anything."""
    target = message
    *parents, last = path.split(".")
    for name in parents:
        parent = field_named(descriptor_of(target), name)
        if parent is None or not holds_message(parent) or parent.is_repeated:
            return "no such parameter"
        target = getattr(target, parent.name)
    field = field_named(descriptor_of(target), last)
    if field is None:
        return "no such parameter"
    if again and not field.is_repeated:
        return "given twice"
    try:
        _set_text(target, field, text, as_text=last == TEXT and is_content(field))
    except _FaultError as fault:
        return str(fault)
    return None


def _set_text(target: Message, field: FieldDescriptor, text: str, *, as_text: bool) -> None:
    if holds_message(field):
        if field.is_repeated or not is_well_known(message_type(field)):
            raise _FaultError("cannot be given as a parameter")
        if _merge_message(getattr(target, field.name), text, field.name):
            raise _FaultError(f"not a {message_type(field).name}")
    elif field.is_repeated:
        getattr(target, field.name).append(scalar(field, text, from_text=True))
    else:
        setattr(target, field.name, text.encode() if as_text else scalar(field, text, from_text=True))


def scalar(field: FieldDescriptor, value: object, *, from_text: bool = False) -> Any:
    """Convert one JSON value, or with `from_text` a parameter's text, for a field that is not a message.

    Raises _FaultError.
    """
    if field.type == _F.TYPE_ENUM:
        return _enum(enum_type(field), value, from_text=from_text)
    if field.type == _F.TYPE_BYTES:
        return _bytes(value)
    return _CONVERSIONS[field.cpp_type](field, value, from_text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _FaultError(f"expected a string, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _FaultError("not valid Unicode (an unpaired surrogate)") from None
    return value


def _bytes(value: object) -> bytes:
    """Decode base64 in either alphabet, padded or not."""
    text = _text(value).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _FaultError("not valid base64") from None


def _bool(_: FieldDescriptor, value: object, from_text: bool) -> bool:
    if from_text and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise _FaultError("expected true or false")
    return value


def _integer(field: FieldDescriptor, value: object, _: bool) -> int:
    low, high = _INT_BOUNDS[field.cpp_type]
    number = _number(value, "an integer")
    if isinstance(number, float):
        if not number.is_integer():
            raise _FaultError("expected an integer")
        number = int(number)
    if not low <= number <= high:
        raise _FaultError(f"must be from {low} to {high}")
    return number


def _number(value: object, wanted: str) -> int | float:
    """Read a number, or one in a string; digits beyond reason are refused before they cost time."""
    if isinstance(value, str) and len(value) <= _DIGITS_MAX and (match := _NUMBER.fullmatch(value)):
        return float(value) if match[2] or match[3] else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FaultError(f"expected {wanted}")
    return value


def _float(field: FieldDescriptor, value: object, _: bool) -> float:
    if isinstance(value, str) and value in _FLOAT_NAMES:
        return _FLOAT_NAMES[value]
    try:
        number = float(_number(value, "a number"))
    except OverflowError:
        number = math.inf
    if math.isinf(number) or (field.cpp_type == _F.CPPTYPE_FLOAT and abs(number) > _FLOAT_ROUNDS_TO_MAX):
        raise _FaultError("out of range")
    return number


def _string(_: FieldDescriptor, value: object, __: bool) -> str:
    return _text(value)


def _enum(enum: EnumDescriptor, value: object, *, from_text: bool) -> int:
    if isinstance(value, str):
        if (known := enum.values_by_name.get(value)) is not None:
            return int(known.number)
        if not (from_text and value.isdecimal() and len(value) <= 10):
            names = ", ".join(enum.values_by_name)
            raise _FaultError(f"must be one of {names}")
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise _FaultError("expected a name or a number of the enum")
    return value


_CONVERSIONS: Mapping[int, Callable[[FieldDescriptor, object, bool], Any]] = {
    _F.CPPTYPE_BOOL: _bool,
    _F.CPPTYPE_STRING: _string,
    _F.CPPTYPE_FLOAT: _float,
    _F.CPPTYPE_DOUBLE: _float,
    **dict.fromkeys(_INT_BOUNDS, _integer),
}


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a string"),
        (list, "a list"),
    )
    return next((name for kinds, name in names if isinstance(value, kinds)), "an object")
