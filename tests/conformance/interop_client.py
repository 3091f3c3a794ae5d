"""The client of gRPC's interoperability tests, on our runtime.

`python -m tests.conformance.interop_client --server_port N [--test_case NAME]` runs one test, or all of them, and
fails with the first that fails. What each does is given by grpc/doc/interop-test-descriptions.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from tests.conformance.interop import ECHO_INITIAL, ECHO_TRAILING, generated
from whispr.errors import Code, WhisprError
from whispr.rpc.channel import Channel, open_channel

PB2, GRPC = generated().pb2, generated().grpc

Test = Callable[[Channel], Awaitable[None]]
RESPONSE_SIZES = (31415, 9, 2653, 58979)
REQUEST_SIZES = (27182, 8, 1828, 45904)
SOAK_CALLS = 200


def _payload(size: int) -> Any:
    return PB2.Payload(body=bytes(size))


def _simple(**more: Any) -> Any:
    return PB2.SimpleRequest(response_size=314159, payload=_payload(271828), **more)


def _asks(*sizes: int, payload: int = 0) -> Any:
    parameters = [PB2.ResponseParameters(size=size) for size in sizes]
    return PB2.StreamingOutputCallRequest(response_parameters=parameters, payload=_payload(payload))


@contextmanager
def _fails(code: Code, message: str | None = None) -> Iterator[None]:
    with pytest.raises(WhisprError) as caught:
        yield
    assert caught.value.code is code
    assert message is None or caught.value.message == message


async def empty_unary(channel: Channel) -> None:
    assert await GRPC.TestServiceStub(channel).EmptyCall(PB2.Empty()) == PB2.Empty()


async def large_unary(channel: Channel) -> None:
    reply = await GRPC.TestServiceStub(channel).UnaryCall(_simple())
    assert reply.payload == _payload(314159)


async def client_streaming(channel: Channel) -> None:
    async with GRPC.TestServiceStub(channel).StreamingInputCall() as call:
        for size in REQUEST_SIZES:
            await call.send(PB2.StreamingInputCallRequest(payload=_payload(size)))
        assert (await call.response()).aggregated_payload_size == sum(REQUEST_SIZES)


async def server_streaming(channel: Channel) -> None:
    async with GRPC.TestServiceStub(channel).StreamingOutputCall(_asks(*RESPONSE_SIZES)) as call:
        assert [len(reply.payload.body) async for reply in call] == list(RESPONSE_SIZES)


async def ping_pong(channel: Channel) -> None:
    async with GRPC.TestServiceStub(channel).FullDuplexCall() as call:
        for request, response in zip(REQUEST_SIZES, RESPONSE_SIZES, strict=True):
            await call.send(_asks(response, payload=request))
            assert len((await anext(call)).payload.body) == response
        await call.done_sending()
        assert [reply async for reply in call] == []


async def empty_stream(channel: Channel) -> None:
    async with GRPC.TestServiceStub(channel).FullDuplexCall() as call:
        await call.done_sending()
        assert [reply async for reply in call] == []


async def half_duplex(channel: Channel) -> None:
    async with GRPC.TestServiceStub(channel).HalfDuplexCall() as call:
        for size in RESPONSE_SIZES:
            await call.send(_asks(size))
        await call.done_sending()
        assert [len(reply.payload.body) async for reply in call] == list(RESPONSE_SIZES)


async def custom_metadata(channel: Channel) -> None:
    metadata = [(ECHO_INITIAL, "test_initial_metadata_value"), (ECHO_TRAILING, b"\xab\xab\xab")]
    async with GRPC.TestServiceStub(channel).FullDuplexCall(metadata=metadata) as call:
        await call.send(_asks(314159, payload=271828))
        assert len((await anext(call)).payload.body) == 314159
        await call.done_sending()
        assert [reply async for reply in call] == []
        assert (await call.initial_metadata()).get(ECHO_INITIAL) == "test_initial_metadata_value"
        assert call.trailing_metadata.get(ECHO_TRAILING) == b"\xab\xab\xab"


async def status_code_and_message(channel: Channel) -> None:
    wanted = PB2.EchoStatus(code=2, message="test status message")
    with _fails(Code.UNKNOWN, wanted.message):
        await GRPC.TestServiceStub(channel).UnaryCall(PB2.SimpleRequest(response_status=wanted))
    with _fails(Code.UNKNOWN, wanted.message):
        async with GRPC.TestServiceStub(channel).FullDuplexCall() as call:
            await call.send(PB2.StreamingOutputCallRequest(response_status=wanted))
            await call.done_sending()
            async for _ in call:
                pass


async def special_status_message(channel: Channel) -> None:
    told = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
    with _fails(Code.UNKNOWN, told):
        wanted = PB2.EchoStatus(code=2, message=told)
        await GRPC.TestServiceStub(channel).UnaryCall(PB2.SimpleRequest(response_status=wanted))


async def unimplemented_method(channel: Channel) -> None:
    with _fails(Code.UNIMPLEMENTED):
        await GRPC.TestServiceStub(channel).UnimplementedCall(PB2.Empty())


async def unimplemented_service(channel: Channel) -> None:
    with _fails(Code.UNIMPLEMENTED):
        await GRPC.UnimplementedServiceStub(channel).UnimplementedCall(PB2.Empty())


async def cancel_after_begin(channel: Channel) -> None:
    with trio.CancelScope() as scope:
        async with GRPC.TestServiceStub(channel).StreamingInputCall() as call:
            scope.cancel(reason="the test says so")
            await call.response()
    assert scope.cancelled_caught


async def cancel_after_first_response(channel: Channel) -> None:
    with trio.CancelScope() as scope:
        async with GRPC.TestServiceStub(channel).FullDuplexCall() as call:
            await call.send(_asks(31415, payload=27182))
            await anext(call)
            scope.cancel(reason="the test says so")
            await anext(call)
    assert scope.cancelled_caught


async def timeout_on_sleeping_server(channel: Channel) -> None:
    with trio.move_on_after(0.001) as scope:
        async with GRPC.TestServiceStub(channel).FullDuplexCall() as call:
            await call.send(PB2.StreamingOutputCallRequest(payload=_payload(27182)))
            await anext(call)
    assert scope.cancelled_caught


async def rpc_soak(channel: Channel) -> None:
    for _ in range(SOAK_CALLS):
        await large_unary(channel)


async def channel_soak(channel: Channel) -> None:
    for _ in range(SOAK_CALLS):
        async with open_channel(channel.target) as fresh:
            await large_unary(fresh)


async def client_compressed_unary(channel: Channel) -> None:
    stub = GRPC.TestServiceStub(channel)
    compressed, plain = PB2.BoolValue(value=True), PB2.BoolValue(value=False)
    with _fails(Code.INVALID_ARGUMENT):
        await stub.UnaryCall(_simple(expect_compressed=compressed))
    reply = await stub.UnaryCall(_simple(expect_compressed=compressed), compression="gzip")
    assert reply.payload == _payload(314159)
    assert (await stub.UnaryCall(_simple(expect_compressed=plain))).payload == _payload(314159)


async def client_compressed_streaming(channel: Channel) -> None:
    def part(size: int, compressed: bool) -> Any:
        return PB2.StreamingInputCallRequest(
            payload=_payload(size), expect_compressed=PB2.BoolValue(value=compressed)
        )

    stub = GRPC.TestServiceStub(channel)
    with _fails(Code.INVALID_ARGUMENT):
        async with stub.StreamingInputCall() as call:
            await call.send(part(27182, True))
            await call.response()
    async with stub.StreamingInputCall(compression="gzip") as call:
        await call.send(part(27182, True))
        await call.send(part(45904, False), compress=False)
        assert (await call.response()).aggregated_payload_size == 73086


async def server_compressed_unary(channel: Channel) -> None:
    stub = GRPC.TestServiceStub(channel)
    for compressed in (True, False):
        reply = await stub.UnaryCall(_simple(response_compressed=PB2.BoolValue(value=compressed)))
        assert reply.payload == _payload(314159)


async def server_compressed_streaming(channel: Channel) -> None:
    parameters = [
        PB2.ResponseParameters(size=31415, compressed=PB2.BoolValue(value=True)),
        PB2.ResponseParameters(size=92653, compressed=PB2.BoolValue(value=False)),
    ]
    request = PB2.StreamingOutputCallRequest(response_parameters=parameters)
    async with GRPC.TestServiceStub(channel).StreamingOutputCall(request) as call:
        assert [len(reply.payload.body) async for reply in call] == [31415, 92653]


async def concurrent_large_unary(channel: Channel) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(large_unary, channel)


TESTS: dict[str, Test] = {
    test.__name__: test
    for test in (
        empty_unary, large_unary, client_streaming, server_streaming, ping_pong, empty_stream, half_duplex,
        custom_metadata, status_code_and_message, special_status_message, unimplemented_method,
        unimplemented_service, cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_server,
        client_compressed_unary, client_compressed_streaming, server_compressed_unary, server_compressed_streaming,
        rpc_soak, channel_soak, concurrent_large_unary,
    )
}  # fmt: skip


async def run(port: int, names: list[str]) -> None:
    """Run the named tests against a server on this machine. Raises what a failing one raises."""
    for name in names:
        with trio.fail_after(60):
            async with open_channel(f"127.0.0.1:{port}", wait_for_ready=True) as channel:
                await TESTS[name](channel)
        print(f"passed {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server_port", type=int, required=True)
    parser.add_argument("--test_case", choices=sorted(TESTS), action="append")
    parser.add_argument("--skip", choices=sorted(TESTS), action="append", default=[])
    arguments = parser.parse_args()
    names = [name for name in arguments.test_case or TESTS if name not in arguments.skip]
    trio.run(run, arguments.server_port, names)


if __name__ == "__main__":
    main()
