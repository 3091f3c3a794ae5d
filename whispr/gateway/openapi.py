"""OpenAPI 3.1 of the REST API, from the same descriptors and annotations that serve it. Pure.

Descriptions are the comments of the .proto files. They are not in the generated modules, so the generator
keeps the descriptors with their source positions in `whispr/v1/descriptors.binpb`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from whispr.gateway.descriptors import (
    TEXT,
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
from whispr.gateway.transcode import Route
from whispr.v1 import options_pb2

Comments = Mapping[str, str]
"""Full name of a message, field, service or method → its comment."""

Schema = dict[str, Any]

_F = FieldDescriptor
_SCALARS: Mapping[int, Schema] = {
    _F.CPPTYPE_BOOL: {"type": "boolean"},
    _F.CPPTYPE_STRING: {"type": "string"},
    _F.CPPTYPE_FLOAT: {"type": "number"},
    _F.CPPTYPE_DOUBLE: {"type": "number"},
    _F.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    _F.CPPTYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    _F.CPPTYPE_INT64: {"type": "string", "format": "int64"},
    _F.CPPTYPE_UINT64: {"type": "string", "format": "uint64"},
}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$"},
}
_ERRORS = {
    "400": "The request is malformed, or not possible in the present state of things",
    "401": "There is no valid access token, or the credentials given do not do",
    "403": "The caller may not do this",
    "404": "There is no such thing, or the caller may not know of it",
    "409": "The name or id is taken",
    "429": "Over a limit; Retry-After says when to come back",
    "503": "Something that the service depends on is away; Retry-After says when to come back",
}

ERROR_SCHEMA: Schema = {
    "type": "object",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "integer", "description": "The gRPC status code."},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "description": "google.rpc details: ErrorInfo (reason), BadRequest, RetryInfo.",
            "items": {"type": "object", "required": ["@type"], "properties": {"@type": {"type": "string"}}},
        },
    },
}


def load_comments() -> Comments:
    """Read the comments of our protos."""
    raw = resources.files("whispr.v1").joinpath("descriptors.binpb").read_bytes()
    return comments_of(FileDescriptorSet.FromString(raw).file)


def comments_of(files: Iterable[FileDescriptorProto]) -> Comments:
    """Collect leading comments by full name (descriptor.proto, SourceCodeInfo)."""
    found: dict[str, str] = {}
    for file in files:
        names = dict(_places(file))
        for place in file.source_code_info.location:
            name, text = names.get(tuple(place.path)), place.leading_comments.strip()
            if name and text:
                found[name] = "\n".join(line.strip() for line in text.splitlines())
    return found


def _places(file: FileDescriptorProto) -> Iterable[tuple[tuple[int, ...], str]]:
    for index, message in enumerate(file.message_type):
        path = (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index)
        name = f"{file.package}.{message.name}"
        yield path, name
        for at, field in enumerate(message.field):
            yield (*path, DescriptorProto.FIELD_FIELD_NUMBER, at), f"{name}.{field.name}"
    for index, service in enumerate(file.service):
        path = (FileDescriptorProto.SERVICE_FIELD_NUMBER, index)
        name = f"{file.package}.{service.name}"
        yield path, name
        for at, method in enumerate(service.method):
            yield (*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, at), f"{name}.{method.name}"


def document(routes: Iterable[Route], comments: Comments, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of `routes`."""
    writer = _Writer(comments)
    paths: dict[str, dict[str, Any]] = {}
    tags: dict[str, str] = {}
    seen: set[str] = set()
    for route in routes:
        operation = writer.operation(route, first=route.path not in seen)
        seen.add(route.path)
        tags[operation["tags"][0]] = comments.get(route.service, "")
        paths.setdefault(route.template, {})[route.http_method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Whispr",
            "version": version,
            "description": "Chat, presence and live audio. JSON is proto3 JSON with snake_case names.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in sorted(tags.items())],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(writer.schemas.items())) | {"Error": ERROR_SCHEMA},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


class _Writer:
    """Writes operations, and the schemas that they turn out to need."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments
        self.schemas: dict[str, Schema] = {}

    def operation(self, route: Route, *, first: bool) -> dict[str, Any]:
        """Describe one route. An RPC's further routes get operation ids of their own."""
        method, service = route.method, route.service.rpartition(".")[2]
        suffix = "" if first else "_" + re.sub(r"\W+", "_", route.template).strip("_")
        operation: dict[str, Any] = {
            "operationId": f"{service}_{method.name}{suffix}",
            "tags": [service.removesuffix("Service")],
            "summary": _spaced(method.name),
            "parameters": list(self._parameters(route)),
            "responses": self._responses(route),
        }
        if comment := self._comments.get(method.full_name):
            operation["description"] = comment
        if route.body:
            operation["requestBody"] = self._request_body(route)
        if _access(method) != options_pb2.PUBLIC:
            operation["security"] = [{"bearer": []}]
        return operation

    def _parameters(self, route: Route) -> Iterable[dict[str, Any]]:
        if route.reads_one:
            yield {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}}
        bound = {segment.variable for segment in route.segments if segment.variable}
        message = route.method.input_type
        for name in [segment.variable for segment in route.segments if segment.variable]:
            field = field_named(message, name)
            assert field is not None, "the route was checked when it was made"
            yield self._parameter(field, "path") | {"required": True}
        if route.body == "*":
            return
        for field in fields_of(message):
            if field.name not in bound | {route.body} and (not holds_message(field) or _has_text_form(field)):
                yield self._parameter(field, "query")

    def _parameter(self, field: FieldDescriptor, where: str) -> dict[str, Any]:
        schema = self._field(field)
        text = schema.pop("description", "")
        parameter: dict[str, Any] = {"name": field.name, "in": where, "schema": schema}
        return parameter | ({"description": text} if text else {})

    def _request_body(self, route: Route) -> dict[str, Any]:
        message = route.method.input_type
        if route.body == "*":
            bound = {segment.variable for segment in route.segments}
            schema = self._object(message, leave_out=bound) if bound - {""} else self._reference(message)
        else:
            field = field_named(message, route.body)
            assert field is not None, "the route was checked when it was made"
            schema = self._field(field)
        return {"required": bool(message.fields), "content": {"application/json": {"schema": schema}}}

    def _responses(self, route: Route) -> dict[str, Any]:
        answer = {"application/json": {"schema": self._reference(route.method.output_type)}}
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        failures = {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
        done: dict[str, Any] = {"description": "Done", "content": answer}
        if not route.reads_one:
            return {"200": done, **failures}
        tag = {"ETag": {"schema": {"type": "string"}, "description": "For If-None-Match."}}
        return {
            "200": done | {"headers": tag},
            "304": {"description": "It is as If-None-Match says", "headers": tag},
            **failures,
        }

    def _reference(self, message: Descriptor) -> Schema:
        if is_well_known(message):
            return dict(_WELL_KNOWN.get(message.full_name, {}))
        name = message.full_name.removeprefix("whispr.v1.")
        if name not in self.schemas:
            self.schemas[name] = {}  # Taken before it is filled: messages may contain themselves.
            self.schemas[name] = self._object(message)
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, message: Descriptor, leave_out: Iterable[str] = ()) -> Schema:
        properties: dict[str, Any] = {}
        for field in fields_of(message):
            if field.name in leave_out:
                continue
            properties[field.name] = self._field(field)
            if is_content(field):
                properties[TEXT] = {"type": "string", "description": "The content, where it is valid UTF-8."}
        schema: Schema = {"type": "object", "properties": properties}
        if comment := self._comments.get(message.full_name):
            schema["description"] = comment
        return schema

    def _field(self, field: FieldDescriptor) -> Schema:
        schema = self._shape(field)
        comment = self._comments.get(field.full_name)
        return schema | {"description": comment} if comment else schema

    def _shape(self, field: FieldDescriptor) -> Schema:
        if is_map(field):
            _, value = map_types(field)
            return {"type": "object", "additionalProperties": self._value(value)}
        if field.is_repeated:
            return {"type": "array", "items": self._value(field)}
        return self._value(field)

    def _value(self, field: FieldDescriptor) -> Schema:
        if holds_message(field):
            return self._reference(message_type(field))
        if field.type == _F.TYPE_ENUM:
            return {"type": "string", "enum": list(enum_type(field).values_by_name)}
        if field.type == _F.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        return dict(_SCALARS[field.cpp_type])


def _has_text_form(field: FieldDescriptor) -> bool:
    return not field.is_repeated and message_type(field).full_name in _WELL_KNOWN


def _access(method: MethodDescriptor) -> int:
    options = method.GetOptions()
    return int(options.Extensions[options_pb2.access])  # type: ignore[index]  # the .pyi says FieldDescriptor


def _spaced(name: str) -> str:
    """`GetUserInfo` → `Get user info`."""
    words = re.findall(r"[A-Z][a-z0-9]*", name)
    return " ".join(word if index == 0 else word.lower() for index, word in enumerate(words))
