"""Questions that the gateway asks of protobuf descriptors, with one type for each kind of answer.

protobuf's descriptors are classes of its C extension at run time and other classes to a type checker; the
casts for that are here and nowhere else.
"""

from __future__ import annotations

from typing import Final, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

CONTENT: Final = "content"
TEXT: Final = "text"


def descriptor_of(message: Message) -> Descriptor:
    """Return the type of a message."""
    return cast(Descriptor, message.DESCRIPTOR)


def fields_of(message: Descriptor) -> list[FieldDescriptor]:
    """Return the fields of a message type, in the order they are declared in."""
    return cast("list[FieldDescriptor]", list(message.fields))


def message_type(field: FieldDescriptor) -> Descriptor:
    """Return the message type of a field that holds messages."""
    assert field.message_type is not None, f"{field.full_name} holds no message"
    return field.message_type


def enum_type(field: FieldDescriptor) -> EnumDescriptor:
    """Return the enum of a field that holds one."""
    assert field.enum_type is not None, f"{field.full_name} holds no enum"
    return field.enum_type


def holds_message(field: FieldDescriptor) -> bool:
    """Whether a field holds messages; a map does."""
    return field.type == FieldDescriptor.TYPE_MESSAGE


def is_content(field: FieldDescriptor) -> bool:
    """Whether a field is shown as `text` when it can be."""
    return field.name == CONTENT and field.type == FieldDescriptor.TYPE_BYTES and not field.is_repeated


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a `map<…>`."""
    return holds_message(field) and bool(message_type(field).GetOptions().map_entry)


def map_types(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Return the key and the value of a map, as fields."""
    entry = message_type(field).fields_by_name
    return entry["key"], entry["value"]


def is_well_known(message: Descriptor) -> bool:
    """Whether a message has a JSON form of its own."""
    return message.full_name.startswith("google.protobuf.")


def field_named(message: Descriptor, name: str) -> FieldDescriptor | None:
    """Find a field by its own name, its camelCase name, or `text` for `content`."""
    field = message.fields_by_name.get(name) or message.fields_by_camelcase_name.get(name)
    if field is None and name == TEXT:
        content = message.fields_by_name.get(CONTENT)
        field = content if content is not None and is_content(content) else None
    return field
