"""What `whispr rpc` does with a server, once the command line is understood."""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from whispr.errors import Code, WhisprError
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.prototext import kind_of, prototext
from whispr.rpc.reflection_client import Learnt
from whispr.rpc.tls import TlsFiles
from whispr.rpc.wire import encode_binary

EXIT_BASE = 64
"""A failed call's exit code is this and its status, as grpcurl's is."""

Headers = list[tuple[str, str | bytes]]


class UsageError(Exception):
    """The command line asks for something that makes no sense."""


@dataclass(frozen=True)
class Server:
    """Where to connect, and what to show there."""

    target: str
    metadata: Headers
    tls: TlsFiles | None


@dataclass(frozen=True)
class CallOptions:
    """How to make a call, and what to tell of it."""

    compression: str | None
    defaults: bool
    """Show fields without a value."""
    verbose: bool
    """Show metadata."""


@dataclass(frozen=True)
class Connected:
    """A server being worked with."""

    channel: Channel
    learnt: Learnt
    metadata: Headers


Work = Callable[[Connected], Coroutine[Any, Any, None]]


async def run(work: Work, server: Server, deadline_s: float | None) -> int:
    """Do `work` with a server; the process's exit code. Raises UsageError."""
    pool = None
    try:
        with trio.fail_after(float("inf") if deadline_s is None else deadline_s):
            async with open_channel(server.target, tls=server.tls) as channel:
                learnt = Learnt(channel, server.metadata)
                pool = learnt.pool
                await work(Connected(channel, learnt, server.metadata))
    except trio.TooSlowError:
        error = WhisprError(Code.DEADLINE_EXCEEDED, f"not done within {deadline_s:g} s")
    except WhisprError as raised:
        error = raised
    except ValueError as problem:  # of the target, the metadata, or the name of an encoding
        raise UsageError(str(problem)) from problem
    else:
        return 0
    print("\n".join(_told(error, pool)), file=sys.stderr)
    return EXIT_BASE + error.code


def _told(error: WhisprError, pool: DescriptorPool | None) -> Iterable[str]:
    yield "ERROR:"
    yield f"  Code: {error.code.name}"
    yield f"  Message: {error.message}"
    if error.details:
        yield "  Details:"
    for number, detail in enumerate(error.details, 1):
        yield f"  {number}) {json.dumps(_detail(detail, pool), ensure_ascii=False)}"


def _detail(detail: Any, pool: DescriptorPool | None) -> Any:
    name = detail.DESCRIPTOR.full_name
    try:
        shown = json_format.MessageToDict(detail, preserving_proto_field_name=True, descriptor_pool=pool)
    except (TypeError, KeyError):  # packed, and of a type that nobody here knows
        return {"@type": detail.type_url, "value": base64.b64encode(detail.value).decode()}
    return shown if name == "google.protobuf.Any" else {"@type": f"type.googleapis.com/{name}", **shown}


# --- Looking --------------------------------------------------------------------------------------------------


async def list_names(symbol: str, server: Connected) -> None:
    """Print the services, or the methods of one."""
    if not symbol:
        print("\n".join(await server.learnt.services()))
        return
    service = await server.learnt.symbol(symbol)
    if not isinstance(service, ServiceDescriptor):
        raise UsageError(f"{symbol} is {kind_of(service)}, not a service")
    print("\n".join(f"{service.full_name}/{method.name}" for method in service.methods))


async def describe(symbol: str, server: Connected) -> None:
    """Print the proto of a symbol, or of every service."""
    for name in [symbol.replace("/", ".")] if symbol else await server.learnt.services():
        found = await server.learnt.symbol(name)
        print(f"{found.full_name} is {kind_of(found)}:\n{prototext(found)}")


# --- Calling --------------------------------------------------------------------------------------------------


async def call(symbol: str, text: str | None, options: CallOptions, server: Connected) -> None:
    """Call a method with messages out of JSON; print the answers as JSON.

    Without a `text`, JSON is read from standard input: a stream's messages are sent as their last line is typed.
    """
    service, separator, name = symbol.rpartition("/" if "/" in symbol else ".")
    if not separator:
        raise UsageError("say which method: package.Service/Method")
    method = await server.learnt.method(service, name)
    messages = _requests(method, _typed() if text is None else _given(text), server.learnt.pool)
    if not method.client_streaming:
        only = [message async for message in messages]
        if len(only) > 1:
            raise UsageError(f"{method.full_name} takes one message, not {len(only)}")
        messages = _all(only or [message_factory.GetMessageClass(method.input_type)()])
    # To the wire every call is a stream each way; it is the server that counts the messages.
    stub = server.channel.stream_stream(
        f"/{service}/{name}",
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )

    def show(message: Message) -> None:
        text = json_format.MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=options.defaults,
            ensure_ascii=False,
            descriptor_pool=server.learnt.pool,
        )
        print(text, flush=True)

    async with stub(metadata=server.metadata, compression=options.compression) as started:
        error = await _converse(started, messages, show)
        if options.verbose and not isinstance(error, UsageError):
            await _show_metadata(started)
        if error is not None:
            raise error


class JsonObjects:
    """Cuts text into the JSON values that follow one another in it, as its lines come."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> Iterable[Any]:
        """Yield the values that `text` completes. Raises UsageError for what can become no JSON."""
        self._text = (self._text + text).lstrip()
        while self._text:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError as error:
                # What is only unfinished fails at its end, or at the beginning of its last string.
                if error.pos < len(self._text.rstrip()) and not error.msg.startswith("Unterminated string"):
                    raise UsageError(f"-d: {error}") from error
                return
            self._text = self._text[end:].lstrip()
            yield value

    def end(self) -> None:
        """No more comes. Raises UsageError when something is unfinished."""
        if self._text:
            raise UsageError(f"-d: not whole: {self._text[:40]}")


async def _given(text: str) -> AsyncIterator[Any]:
    objects = JsonObjects()
    for value in objects.feed(text):
        yield value
    objects.end()


async def _typed() -> AsyncIterator[Any]:
    objects, decoder, line = JsonObjects(), codecs.getincrementaldecoder("utf-8")("replace"), ""
    # Not through sys.stdin, whose lock an abandoned thread would still hold when Python ends.
    read = partial(os.read, sys.stdin.fileno(), 64 * 1024)
    while octets := await trio.to_thread.run_sync(read, abandon_on_cancel=True):
        lines, newline, line = (line + decoder.decode(octets)).rpartition("\n")
        for value in objects.feed(lines + newline):
            yield value
    for value in objects.feed(line):
        yield value
    objects.end()


async def _all(messages: Iterable[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


async def _requests(
    method: MethodDescriptor, objects: AsyncIterator[Any], pool: DescriptorPool
) -> AsyncIterator[Message]:
    request = message_factory.GetMessageClass(method.input_type)
    async for value in objects:
        try:
            yield json_format.ParseDict(value, request(), descriptor_pool=pool)
        except json_format.ParseError as error:
            raise UsageError(f"-d: {error}") from error


async def _converse(
    started: Any, messages: AsyncIterator[Message], show: Callable[[Message], None]
) -> WhisprError | UsageError | None:
    """Send and receive at once, for a server may answer early; how the call ended."""
    misuse: list[UsageError] = []

    async def send() -> None:
        try:
            async for message in messages:
                await started.send(message)
            await started.done_sending()
        except UsageError as error:
            misuse.append(error)
            nursery.cancel_scope.cancel(reason="there is nothing good to send")
        except WhisprError:
            pass  # whoever receives is told as well

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            async for message in started:
                show(message)
        except WhisprError as error:
            return error
        except BrokenPipeError:
            # Whoever read our output has seen enough. What Python still flushes at its end must not fail anew.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        finally:
            nursery.cancel_scope.cancel(reason="the call has ended")
    return misuse[0] if misuse else None


async def _show_metadata(started: Any) -> None:
    with contextlib.suppress(WhisprError):  # of a call that ended before its head
        _print_metadata("Response headers", await started.initial_metadata())
    _print_metadata("Response trailers", started.trailing_metadata)


def _print_metadata(title: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    lines = [
        f"{name}: {value if isinstance(value, str) else encode_binary(value)}" for name, value in metadata
    ]
    print("\n".join([f"{title}:", *(lines or ["(empty)"])]), file=sys.stderr)
