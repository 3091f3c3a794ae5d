"""Stubs and servicers made by purerpc's own plugin run on our channel and server."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from purerpc.protoc_plugin.plugin import generate_single_proto

from whispr.errors import Code, WhisprError
from whispr.testing import open_rpc_pair


@pytest.fixture(scope="module")
def stock(echo: Any) -> Iterator[Any]:
    """The module that purerpc's plugin makes of the Echo service."""
    file = FileDescriptorProto()
    echo.pb2.DESCRIPTOR.CopyToProto(file)
    del file.service[0].method[-1:]  # its plugin knows no nested types
    kinds = {f".{file.package}.{message.name}": file.name for message in file.message_type}
    request = CodeGeneratorRequest(proto_file=[file])
    path = Path(echo.folder) / "stock_echo.py"
    path.write_text(generate_single_proto(request.proto_file[0], kinds))
    sys.path.insert(0, str(path.parent))
    try:
        yield import_module("stock_echo")
    finally:
        sys.path.remove(str(path.parent))
        del sys.modules["stock_echo"]


@pytest.fixture
def stock_handlers(echo: Any, stock: Any) -> Any:
    class Handlers(stock.EchoServicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            if input_message.text == "fail":
                raise WhisprError(Code.ABORTED, "no")
            return echo.Message(n=input_message.n + 1)

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            for n in range(input_message.n):
                yield echo.Message(n=n)

        async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for message in input_messages:
                yield message

    return Handlers()


async def test_its_stubs_make_all_kinds_of_calls(echo: Any, stock: Any, handlers: Any) -> None:
    """As purerpc's users write them."""

    async def messages() -> AsyncIterator[Any]:
        for n in range(3):
            yield echo.Message(text=str(n), n=n)

    async with open_rpc_pair([handlers]) as pair:
        stub = stock.EchoStub(pair.channel)
        assert (await stub.Say(echo.Message(n=1), metadata=[("k", "v")])).n == 2
        assert [message.n async for message in stub.Repeat(echo.Message(n=3))] == [0, 1, 2]
        assert (await stub.Join(messages())).text == "012"
        stream = await stub.Chat()
        await stream.send_message(echo.Message(n=5))
        assert (await stream.receive_message()).n == 5
        await stream.close()
        assert await stream.receive_message() is None


async def test_its_servicers_serve_our_stubs(echo: Any, stock_handlers: Any) -> None:
    """Handlers written for purerpc, and its defaults for those not written."""
    async with open_rpc_pair([stock_handlers]) as pair:
        stub = echo.Stub(pair.channel)
        assert (await stub.Say(echo.Message(n=1))).n == 2
        async with stub.Repeat(echo.Message(n=2)) as call:
            assert [message.n async for message in call] == [0, 1]
        async with stub.Join() as call:
            with pytest.raises(WhisprError) as caught:
                await call.response()
        assert caught.value.code is Code.UNIMPLEMENTED


async def test_an_error_after_a_message_is_an_error_to_its_stubs(
    echo: Any, stock: Any, stock_handlers: Any
) -> None:
    """Purerpc reported success; here the status wins. Errors are WhisprError."""
    async with open_rpc_pair([stock_handlers]) as pair:
        with pytest.raises(WhisprError) as caught:
            await stock.EchoStub(pair.channel).Say(echo.Message(text="fail"))
        assert caught.value.code is Code.ABORTED


async def test_cancelling_its_stub_cancels_the_handler(echo: Any, stock: Any) -> None:
    """Purerpc sent no RST_STREAM."""
    begun, ended = trio.Event(), trio.Event()

    class Handlers(stock.EchoServicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    async with open_rpc_pair([Handlers()]) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stock.EchoStub(pair.channel).Say, echo.Message())
            await begun.wait()
            nursery.cancel_scope.cancel(reason="the client has lost interest")
        await ended.wait()
