"""The protos of gRPC's own services: health and reflection.

They are built here rather than generated, in a descriptor pool of our own: their canonical modules belong to
packages of grpcio, and one pool holds a file of a given name once. So both may be used in one process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import purerpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

POOL: Final = descriptor_pool.DescriptorPool()
"""Everything below, and nothing else."""

_FIELD = re.compile(
    r"(?:(?P<oneof>\w+): )?(?P<repeated>repeated )?(?P<type>[\w.]+) (?P<name>\w+) = (?P<number>\d+)"
)
_METHOD = re.compile(
    r"(?P<name>\w+)\((?P<sends>stream )?(?P<request>\w+)\) -> (?P<streams>stream )?(?P<response>\w+)"
)

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
}


def _add_file(
    name: str,
    messages: Mapping[str, tuple[str, ...]],
    service: str,
    methods: tuple[str, ...],
    enums: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Describe a file of the pool; `messages`: name → fields, `enums`: Message.Enum → names from 0 on."""
    package = name.rpartition("/")[0].replace("/", ".")
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for field in fields:
            _add_field(message, field, package, enums or {})
    for enum_name, values in (enums or {}).items():
        owner, _, own_name = enum_name.partition(".")
        enum = next(message for message in file.message_type if message.name == owner).enum_type.add(
            name=own_name
        )
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    described = file.service.add(name=service)
    for method in methods:
        match = _METHOD.fullmatch(method)
        assert match is not None, method
        described.method.add(
            name=match["name"],
            input_type=f".{package}.{match['request']}",
            output_type=f".{package}.{match['response']}",
            client_streaming=bool(match["sends"]),
            server_streaming=bool(match["streams"]),
        )
    POOL.Add(file)


def _add_field(
    message: descriptor_pb2.DescriptorProto, text: str, package: str, enums: Mapping[str, tuple[str, ...]]
) -> None:
    match = _FIELD.fullmatch(text)
    assert match is not None, text
    kind = match["type"]
    field = message.field.add(
        name=match["name"],
        number=int(match["number"]),
        label=_Field.LABEL_REPEATED if match["repeated"] else _Field.LABEL_OPTIONAL,
    )
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind in enums else _Field.TYPE_MESSAGE
        field.type_name = f".{package}.{kind}"
    if match["oneof"]:
        names = [oneof.name for oneof in message.oneof_decl]
        if match["oneof"] not in names:
            names.append(match["oneof"])
            message.oneof_decl.add(name=match["oneof"])
        field.oneof_index = names.index(match["oneof"])


def message(full_name: str) -> type[Any]:
    """The class of a message of the pool."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def service(full_name: str, handlers: object) -> purerpc.Service:
    """A service of the pool whose methods are the attributes of `handlers` with the same names."""
    built = purerpc.Service(full_name)
    for method in POOL.FindServiceByName(full_name).methods:
        cardinality = purerpc.Cardinality.get_cardinality_for(
            request_stream=method.client_streaming, response_stream=method.server_streaming
        )
        signature = purerpc.RPCSignature(
            cardinality,
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        built.add_method(method.name, getattr(handlers, method.name), signature)
    return built


_add_file(
    "grpc/health/v1/health.proto",
    {
        "HealthCheckRequest": ("string service = 1",),
        "HealthCheckResponse": ("HealthCheckResponse.ServingStatus status = 1",),
    },
    "Health",
    (
        "Check(HealthCheckRequest) -> HealthCheckResponse",
        "Watch(HealthCheckRequest) -> stream HealthCheckResponse",
    ),
    {"HealthCheckResponse.ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")},
)

for _version in ("v1", "v1alpha"):
    _add_file(
        f"grpc/reflection/{_version}/reflection.proto",
        {
            "ServerReflectionRequest": (
                "string host = 1",
                "message_request: string file_by_filename = 3",
                "message_request: string file_containing_symbol = 4",
                "message_request: ExtensionRequest file_containing_extension = 5",
                "message_request: string all_extension_numbers_of_type = 6",
                "message_request: string list_services = 7",
            ),
            "ExtensionRequest": ("string containing_type = 1", "int32 extension_number = 2"),
            "ServerReflectionResponse": (
                "string valid_host = 1",
                "ServerReflectionRequest original_request = 2",
                "message_response: FileDescriptorResponse file_descriptor_response = 4",
                "message_response: ExtensionNumberResponse all_extension_numbers_response = 5",
                "message_response: ListServiceResponse list_services_response = 6",
                "message_response: ErrorResponse error_response = 7",
            ),
            "FileDescriptorResponse": ("repeated bytes file_descriptor_proto = 1",),
            "ExtensionNumberResponse": ("string base_type_name = 1", "repeated int32 extension_number = 2"),
            "ListServiceResponse": ("repeated ServiceResponse service = 1",),
            "ServiceResponse": ("string name = 1",),
            "ErrorResponse": ("int32 error_code = 1", "string error_message = 2"),
        },
        "ServerReflection",
        ("ServerReflectionInfo(stream ServerReflectionRequest) -> stream ServerReflectionResponse",),
    )
