"""What a server says of itself, asked directly and by grpcio's own reflection client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import trio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from whispr.errors import Code
from whispr.rpc import protos
from whispr.rpc.health import HealthServicer
from whispr.rpc.reflection import reflected
from whispr.rpc.server import RpcServer
from whispr.testing import open_rpc_pair
from whispr.v1 import auth_pb2, options_pb2

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "whispr.test.echo.Echo",
]


@asynccontextmanager
async def asking(echo: Any, version: str) -> AsyncIterator[Any]:
    """A function that asks one question of a server's reflection and returns the answer."""
    package = f"grpc.reflection.{version}"
    request = protos.message(f"{package}.ServerReflectionRequest")
    response = protos.message(f"{package}.ServerReflectionResponse")
    async with open_rpc_pair(reflected([echo.Servicer(), HealthServicer()])) as pair:
        method = pair.channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo", request, response
        )
        async with method() as call:

            async def ask(**question: Any) -> Any:
                await call.send(request(**question))
                return await anext(call)

            yield ask


def files(answer: Any) -> list[str]:
    octets = answer.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(file).name for file in octets]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_services_are_listed(echo: Any, version: str) -> None:
    """All that is served, reflection included, in both versions; the question comes back with the answer."""
    async with asking(echo, version) as ask:
        answer = await ask(host="h", list_services="*")
    assert [service.name for service in answer.list_services_response.service] == SERVICES
    assert answer.valid_host == "h"
    assert answer.original_request.list_services == "*"


@pytest.mark.parametrize("symbol", ["Echo", "Echo.Say", "Message", "Message.Inner", "Message.text"])
async def test_a_symbol_is_found_with_what_its_file_imports(echo: Any, symbol: str) -> None:
    """Services, methods, messages and fields, nested ones too."""
    async with asking(echo, "v1") as ask:
        answer = await ask(file_containing_symbol=f"whispr.test.echo.{symbol}")
    assert files(answer) == ["echo.proto", "google/protobuf/empty.proto"]


async def test_imports_come_once_in_a_call(echo: Any) -> None:
    """The file asked for always comes; what the call has had before is not repeated."""
    async with asking(echo, "v1") as ask:
        await ask(file_by_filename="google/protobuf/empty.proto")
        assert files(await ask(file_by_filename="echo.proto")) == ["echo.proto"]
        assert files(await ask(file_by_filename="echo.proto")) == ["echo.proto"]
        assert files(await ask(file_by_filename="grpc/health/v1/health.proto")) == [
            "grpc/health/v1/health.proto"
        ]


async def test_extensions(echo: Any) -> None:
    """Numbers of a type's extensions, and the file that defines one."""
    number = options_pb2.DESCRIPTOR.extensions_by_name["access"].number
    options = "google.protobuf.MethodOptions"
    async with asking(echo, "v1") as ask:
        numbers = (await ask(all_extension_numbers_of_type=options)).all_extension_numbers_response
        found = await ask(file_containing_extension={"containing_type": options, "extension_number": number})
    assert numbers.base_type_name == options
    assert number in numbers.extension_number
    assert files(found)[0] == "whispr/v1/options.proto"


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_by_filename": "no.proto"}, Code.NOT_FOUND),
        ({"file_containing_symbol": "no.Such"}, Code.NOT_FOUND),
        ({"file_containing_symbol": ""}, Code.NOT_FOUND),
        ({"file_containing_symbol": "whispr.test.echo.Echo.No"}, Code.NOT_FOUND),
        ({"all_extension_numbers_of_type": "no.Such"}, Code.NOT_FOUND),
        (
            {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
            Code.NOT_FOUND,
        ),
        (
            {
                "file_containing_extension": {
                    "containing_type": "whispr.test.echo.Message",
                    "extension_number": -1,
                }
            },
            Code.NOT_FOUND,
        ),
        ({}, Code.INVALID_ARGUMENT),
    ],
)
async def test_what_is_not_there(echo: Any, question: dict[str, Any], code: Code) -> None:
    """An error message answers, and the call goes on."""
    async with asking(echo, "v1") as ask:
        answer = await ask(**question)
        assert answer.error_response.error_code == code
        assert answer.error_response.error_message
        assert files(await ask(file_by_filename="echo.proto"))


async def test_grpcios_reflection_client_learns_our_services() -> None:
    """The files of a service of ours build a pool of their own, options included."""

    def learn(port: int) -> tuple[list[str], Any]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = descriptor_pool.DescriptorPool(database)
            return list(database.get_services()), pool.FindServiceByName("whispr.v1.AuthService")

    from whispr.v1.auth_grpc import AuthServiceServicer

    server = RpcServer(reflected([AuthServiceServicer()]))
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        services, learnt = await trio.to_thread.run_sync(learn, port)
        nursery.cancel_scope.cancel(reason="the test is over")
    assert "whispr.v1.AuthService" in services
    ours = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]
    assert [method.full_name for method in learnt.methods] == [method.full_name for method in ours.methods]
    assert (
        learnt.methods[0].GetOptions().SerializeToString() == ours.methods[0].GetOptions().SerializeToString()
    )
