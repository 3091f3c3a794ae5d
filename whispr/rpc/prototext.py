"""Descriptors written as the proto that describes them, without comments and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    OneofDescriptor,
    ServiceDescriptor,
)

_SCALARS: dict[int, str] = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}
_KINDS: tuple[tuple[Any, str], ...] = (
    (ServiceDescriptor, "a service"),
    (MethodDescriptor, "a method"),
    (Descriptor, "a message"),
    (EnumDescriptor, "an enum"),
    (FieldDescriptor, "a field"),
)


def kind_of(descriptor: Any) -> str:
    """What it is, with its article: "a service"."""
    return next(kind for described, kind in _KINDS if isinstance(descriptor, described))


def prototext(descriptor: Any) -> str:
    """The proto of a service, method, message, enum or field."""
    if isinstance(descriptor, ServiceDescriptor):
        lines = _block(f"service {descriptor.name}", [_method(method) for method in descriptor.methods])
    elif isinstance(descriptor, MethodDescriptor):
        lines = [_method(descriptor)]
    elif isinstance(descriptor, Descriptor):
        lines = _message(descriptor)
    elif isinstance(descriptor, EnumDescriptor):
        lines = _enum(descriptor)
    else:
        lines = [_field(descriptor)]
    return "\n".join(lines)


def _block(head: str, inside: list[str]) -> list[str]:
    return [f"{head} {{", *(f"  {line}" for line in inside), "}"]


def _method(method: MethodDescriptor) -> str:
    takes = ("stream " if method.client_streaming else "") + f".{method.input_type.full_name}"
    gives = ("stream " if method.server_streaming else "") + f".{method.output_type.full_name}"
    return f"rpc {method.name} ( {takes} ) returns ( {gives} );"


def _enum(enum: EnumDescriptor) -> list[str]:
    return _block(f"enum {enum.name}", [f"{value.name} = {value.number};" for value in enum.values])


def _message(message: Descriptor) -> list[str]:
    inside = list(_members(message))
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            inside += _message(nested)
    for enum in message.enum_types:
        inside += _enum(enum)
    return _block(f"message {message.name}", inside)


def _members(message: Descriptor) -> Iterator[str]:
    told: set[str] = set()
    for field in message.fields:
        oneof = field.containing_oneof
        if oneof is None or _is_optional(oneof):
            yield _field(field)
        elif oneof.name not in told:
            told.add(oneof.name)
            yield from _block(f"oneof {oneof.name}", [_field(member) for member in oneof.fields])


def _is_optional(oneof: OneofDescriptor) -> bool:
    """Whether a oneof only stands for proto3's `optional`, as protoc names those."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def _field(field: FieldDescriptor) -> str:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        return f"map<{_type(key)}, {_type(value)}> {field.name} = {field.number};"
    oneof = field.containing_oneof
    label = (
        "repeated " if field.is_repeated else "optional " if oneof is not None and _is_optional(oneof) else ""
    )
    return f"{label}{_type(field)} {field.name} = {field.number};"


def _type(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    if named is not None:
        return f".{named.full_name}"
    return _SCALARS[field.type]
