"""The server of gRPC's interoperability tests, on our runtime.

`python -m tests.conformance.interop_server [--port N]` serves on 127.0.0.1 and prints the port, until it is told to
end (SIGTERM). What each method does is given by grpc/doc/interop-test-descriptions.md.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import AsyncIterator
from typing import Any

import trio

from tests.conformance.interop import ECHO_INITIAL, ECHO_TRAILING, generated
from whispr.errors import Code, WhisprError
from whispr.rpc.call import current_call
from whispr.rpc.reflection import reflected
from whispr.rpc.server import RpcServer

PB2, GRPC = generated().pb2, generated().grpc


class TestService(GRPC.TestServiceServicer):  # type: ignore[misc, name-defined]  # a class made at run time
    """What the tests expect of a server. Methods not overridden answer UNIMPLEMENTED, as they should."""

    async def EmptyCall(self, input_message: Any) -> Any:  # noqa: N802
        _echo_metadata()
        return PB2.Empty()

    async def UnaryCall(self, input_message: Any) -> Any:  # noqa: N802
        _echo_metadata()
        _expect_compression(input_message)
        _echo_status(input_message)
        if input_message.response_compressed.value:
            current_call().compression = "gzip"
        return PB2.SimpleResponse(payload=_payload(input_message.response_size), server_id="whispr")

    CacheableUnaryCall = UnaryCall

    async def StreamingOutputCall(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
        _echo_metadata()
        if any(wanted.compressed.value for wanted in input_message.response_parameters):
            current_call().compression = "gzip"
        async for response in _responses(input_message):
            yield response

    async def StreamingInputCall(self, input_messages: Any) -> Any:  # noqa: N802
        _echo_metadata()
        size = 0
        async for message in input_messages:
            _expect_compression(message)
            size += len(message.payload.body)
        return PB2.StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
        _echo_metadata()
        async for message in input_messages:
            async for response in _responses(message):
                yield response

    async def HalfDuplexCall(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
        _echo_metadata()
        for message in [message async for message in input_messages]:
            async for response in _responses(message):
                yield response


def _payload(size: int) -> Any:
    return PB2.Payload(body=bytes(size))


async def _responses(request: Any) -> AsyncIterator[Any]:
    _echo_status(request)
    for wanted in request.response_parameters:
        if wanted.interval_us:
            await trio.sleep(wanted.interval_us / 1e6)
        current_call().compress = wanted.compressed.value
        yield PB2.StreamingOutputCallResponse(payload=_payload(wanted.size))


def _echo_metadata() -> None:
    call = current_call()
    initial, trailing = call.metadata.get(ECHO_INITIAL), call.metadata.get(ECHO_TRAILING)
    if initial is not None:
        call.set_initial([(ECHO_INITIAL, initial)])
    if trailing is not None:
        call.set_trailing([(ECHO_TRAILING, trailing)])


def _echo_status(request: Any) -> None:
    if request.response_status.code:
        raise WhisprError(Code(request.response_status.code), request.response_status.message)


def _expect_compression(request: Any) -> None:
    if request.HasField("expect_compressed"):
        received = current_call().received_compressed
        if request.expect_compressed.value is not received:
            raise WhisprError(Code.INVALID_ARGUMENT, f"compressed: {received}")


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    server = RpcServer(reflected([TestService()]))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            print(await nursery.start(server.serve_tcp, "127.0.0.1", port), flush=True)
            async for _ in signals:
                break
            with trio.move_on_after(1):
                await server.drain()
            nursery.cancel_scope.cancel(reason="told to end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    trio.run(serve, parser.parse_args().port)


if __name__ == "__main__":
    main()
