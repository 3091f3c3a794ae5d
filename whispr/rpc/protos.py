"""The protos of gRPC's own services: health, reflection and channelz.

They are built here rather than generated, in a descriptor pool of our own: their canonical modules belong to
packages of grpcio, and one pool holds a file of a given name once. So both may be used in one process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import purerpc
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)

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
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
}


def _add_file(
    name: str,
    messages: Mapping[str, tuple[str, ...]],
    service: str,
    methods: tuple[str, ...],
    enums: Mapping[str, tuple[str, ...]] | None = None,
    imports: tuple[Any, ...] = (),
) -> None:
    """Describe a file of the pool; `messages`: name → fields, `enums`: Message.Enum → names from 0 on.

    A message in another is Outer.Inner, and comes after it. `imports`: generated modules of protobuf's own types.
    """
    package = name.rpartition("/")[0].replace("/", ".")
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for imported in imports:
        POOL.AddSerializedFile(imported.DESCRIPTOR.serialized_pb)
        file.dependency.append(imported.DESCRIPTOR.name)
    for message_name, fields in messages.items():
        outer, _, inner = message_name.partition(".")
        kinds = file.message_type
        if inner:
            kinds = next(known for known in kinds if known.name == outer).nested_type
        message = kinds.add(name=inner or outer)
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
        field.type_name = f".{kind}" if kind.startswith("google.") else f".{package}.{kind}"
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

_CHILDREN = (
    "repeated ChannelRef channel_ref = 3",
    "repeated SubchannelRef subchannel_ref = 4",
    "repeated SocketRef socket_ref = 5",
)

_add_file(
    "grpc/channelz/v1/channelz.proto",
    {
        "Channel": ("ChannelRef ref = 1", "ChannelData data = 2", *_CHILDREN),
        "Subchannel": ("SubchannelRef ref = 1", "ChannelData data = 2", *_CHILDREN),
        "ChannelConnectivityState": ("ChannelConnectivityState.State state = 1",),
        "ChannelData": (
            "ChannelConnectivityState state = 1",
            "string target = 2",
            "ChannelTrace trace = 3",
            "int64 calls_started = 4",
            "int64 calls_succeeded = 5",
            "int64 calls_failed = 6",
            "google.protobuf.Timestamp last_call_started_timestamp = 7",
        ),
        "ChannelTraceEvent": (
            "string description = 1",
            "ChannelTraceEvent.Severity severity = 2",
            "google.protobuf.Timestamp timestamp = 3",
            "child_ref: ChannelRef channel_ref = 4",
            "child_ref: SubchannelRef subchannel_ref = 5",
        ),
        "ChannelTrace": (
            "int64 num_events_logged = 1",
            "google.protobuf.Timestamp creation_timestamp = 2",
            "repeated ChannelTraceEvent events = 3",
        ),
        "ChannelRef": ("int64 channel_id = 1", "string name = 2"),
        "SubchannelRef": ("int64 subchannel_id = 7", "string name = 8"),
        "SocketRef": ("int64 socket_id = 3", "string name = 4"),
        "ServerRef": ("int64 server_id = 5", "string name = 6"),
        "Server": ("ServerRef ref = 1", "ServerData data = 2", "repeated SocketRef listen_socket = 3"),
        "ServerData": (
            "ChannelTrace trace = 1",
            "int64 calls_started = 2",
            "int64 calls_succeeded = 3",
            "int64 calls_failed = 4",
            "google.protobuf.Timestamp last_call_started_timestamp = 5",
        ),
        "Socket": (
            "SocketRef ref = 1",
            "SocketData data = 2",
            "Address local = 3",
            "Address remote = 4",
            "Security security = 5",
            "string remote_name = 6",
        ),
        "SocketData": (
            "int64 streams_started = 1",
            "int64 streams_succeeded = 2",
            "int64 streams_failed = 3",
            "int64 messages_sent = 4",
            "int64 messages_received = 5",
            "int64 keep_alives_sent = 6",
            "google.protobuf.Timestamp last_local_stream_created_timestamp = 7",
            "google.protobuf.Timestamp last_remote_stream_created_timestamp = 8",
            "google.protobuf.Timestamp last_message_sent_timestamp = 9",
            "google.protobuf.Timestamp last_message_received_timestamp = 10",
            "google.protobuf.Int64Value local_flow_control_window = 11",
            "google.protobuf.Int64Value remote_flow_control_window = 12",
            "repeated SocketOption option = 13",
        ),
        "Address": (
            "address: Address.TcpIpAddress tcpip_address = 1",
            "address: Address.UdsAddress uds_address = 2",
            "address: Address.OtherAddress other_address = 3",
        ),
        "Address.TcpIpAddress": ("bytes ip_address = 1", "int32 port = 2"),
        "Address.UdsAddress": ("string filename = 1",),
        "Address.OtherAddress": ("string name = 1", "google.protobuf.Any value = 2"),
        "Security": ("model: Security.Tls tls = 1", "model: Security.OtherSecurity other = 2"),
        "Security.Tls": (
            "cipher_suite: string standard_name = 1",
            "cipher_suite: string other_name = 2",
            "bytes local_certificate = 3",
            "bytes remote_certificate = 4",
        ),
        "Security.OtherSecurity": ("string name = 1", "google.protobuf.Any value = 2"),
        "SocketOption": ("string name = 1", "string value = 2", "google.protobuf.Any additional = 3"),
        "GetTopChannelsRequest": ("int64 start_channel_id = 1", "int64 max_results = 2"),
        "GetTopChannelsResponse": ("repeated Channel channel = 1", "bool end = 2"),
        "GetServersRequest": ("int64 start_server_id = 1", "int64 max_results = 2"),
        "GetServersResponse": ("repeated Server server = 1", "bool end = 2"),
        "GetServerRequest": ("int64 server_id = 1",),
        "GetServerResponse": ("Server server = 1",),
        "GetServerSocketsRequest": (
            "int64 server_id = 1",
            "int64 start_socket_id = 2",
            "int64 max_results = 3",
        ),
        "GetServerSocketsResponse": ("repeated SocketRef socket_ref = 1", "bool end = 2"),
        "GetChannelRequest": ("int64 channel_id = 1",),
        "GetChannelResponse": ("Channel channel = 1",),
        "GetSubchannelRequest": ("int64 subchannel_id = 1",),
        "GetSubchannelResponse": ("Subchannel subchannel = 1",),
        "GetSocketRequest": ("int64 socket_id = 1", "bool summary = 2"),
        "GetSocketResponse": ("Socket socket = 1",),
    },
    "Channelz",
    tuple(
        f"{name}({name}Request) -> {name}Response"
        for name in (
            "GetTopChannels",
            "GetServers",
            "GetServer",
            "GetServerSockets",
            "GetChannel",
            "GetSubchannel",
            "GetSocket",
        )
    ),
    {
        "ChannelConnectivityState.State": (
            "UNKNOWN",
            "IDLE",
            "CONNECTING",
            "READY",
            "TRANSIENT_FAILURE",
            "SHUTDOWN",
        ),
        "ChannelTraceEvent.Severity": ("CT_UNKNOWN", "CT_INFO", "CT_WARNING", "CT_ERROR"),
    },
    (any_pb2, timestamp_pb2, wrappers_pb2),
)
