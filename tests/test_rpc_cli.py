"""`whispr rpc` against our own server and grpcio's, as somebody at a terminal sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trio
from grpc_reflection.v1alpha import reflection
from typer.testing import CliRunner

from whispr.cli import app
from whispr.errors import Code, WhisprError, invalid
from whispr.rpc import generate, protos
from whispr.rpc.call import current_call
from whispr.rpc.health import SERVING, HealthServicer
from whispr.rpc.reflection import reflected
from whispr.rpc.server import RpcServer
from whispr.rpc_console import JsonObjects, UsageError
from whispr.v1 import auth_pb2

ECHO = "whispr.test.echo.Echo"
REFLECTIONS = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The echo service of tests/rpc, generated anew; its file is in the default pool ever after."""
    before = {name: sys.modules.get(name) for name in ("echo_pb2", "echo_grpc")}
    folder = tmp_path_factory.mktemp("cli_echo")
    generate.generate(Path(__file__).parent / "rpc", ["echo.proto"], folder)
    sys.path.insert(0, str(folder))
    try:
        pb2, stubs = import_module("echo_pb2"), import_module("echo_grpc")
    finally:
        sys.path.remove(str(folder))
    yield SimpleNamespace(pb2=pb2, Message=pb2.Message, Servicer=stubs.EchoServicer)
    for name, module in before.items():
        if module is None:  # else the modules are those of a fixture that outlives this one
            del sys.modules[name]


def run(*arguments: str) -> Any:
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["rpc", *arguments])


async def cli(*arguments: str) -> Any:
    """Run it while a server runs in this one."""
    return await trio.to_thread.run_sync(partial(run, *arguments))


def objects(text: str) -> list[Any]:
    """The JSON objects printed one after the other."""
    found, decoder, text = [], json.JSONDecoder(), text.strip()
    while text:
        parsed, end = decoder.raw_decode(text)
        found.append(parsed)
        text = text[end:].strip()
    return found


@pytest.fixture
async def ours(echo: Any, nursery: trio.Nursery) -> str:
    """Our server with an Echo, health and reflection; its address."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            call = current_call()
            if input_message.text == "fail":
                raise invalid({"text": "not that"})
            if input_message.text == "wait":
                await trio.sleep_forever()
            call.set_initial([("first", "1")])
            call.set_trailing([("last-bin", b"\0\xff")])
            seen = ",".join(str(call.metadata.get(name)) for name in ("k", "k-bin", "authorization"))
            return echo.Message(
                text=f"{input_message.text} {seen}" if "k" in call.metadata else input_message.text
            )

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            for n in range(input_message.n):
                yield echo.Message(text=input_message.text, n=n)
            if input_message.text == "then fail":
                raise WhisprError(Code.DATA_LOSS, "nö")

        async def Join(self, input_messages: Any) -> Any:  # noqa: N802
            return echo.Message(text="".join([message.text async for message in input_messages]))

        async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for message in input_messages:
                yield message

    health = HealthServicer()
    health.set("", SERVING)
    server = RpcServer(reflected([Handlers(), health]))
    port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
    return f"127.0.0.1:{port}"


@contextmanager
def grpcio_server(echo: Any) -> Iterator[str]:
    """Grpcio's server with an Echo and its own reflection; its address."""

    def say(request: Any, context: grpc.ServicerContext) -> Any:
        if request.text == "fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "nö")
        return request

    def repeat(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
        for n in range(request.n):
            yield echo.Message(n=n)

    codec = (echo.Message.FromString, echo.Message.SerializeToString)
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say, *codec),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat, *codec),
        "Chat": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests, *codec),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, handlers),))
    reflection.enable_server_reflection([ECHO, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def test_list(ours: str) -> None:
    """Services, and the methods of one."""
    result = await cli("list", ours)
    assert result.stdout.split() == ["grpc.health.v1.Health", *REFLECTIONS, ECHO]
    result = await cli("list", ours, ECHO)
    assert result.stdout.split() == [
        f"{ECHO}/{name}" for name in ("Say", "Repeat", "Join", "Chat", "Ask", "Nothing")
    ]
    assert result.exit_code == 0


async def test_describe(ours: str) -> None:
    """Protos of services, methods, messages, fields and enums, as they could be written in a file."""
    assert (await cli("describe", ours, ECHO)).stdout == (
        f"{ECHO} is a service:\n"
        "service Echo {\n"
        "  rpc Say ( .whispr.test.echo.Message ) returns ( .whispr.test.echo.Message );\n"
        "  rpc Repeat ( .whispr.test.echo.Message ) returns ( stream .whispr.test.echo.Message );\n"
        "  rpc Join ( stream .whispr.test.echo.Message ) returns ( .whispr.test.echo.Message );\n"
        "  rpc Chat ( stream .whispr.test.echo.Message ) returns ( stream .whispr.test.echo.Message );\n"
        "  rpc Ask ( .whispr.test.echo.Message ) returns ( .whispr.test.echo.Message );\n"
        "  rpc Nothing ( .google.protobuf.Empty ) returns ( .whispr.test.echo.Message.Inner );\n"
        "}\n"
    )
    assert (await cli("describe", ours, "whispr.test.echo.Message")).stdout == (
        "whispr.test.echo.Message is a message:\n"
        "message Message {\n"
        "  string text = 1;\n"
        "  int32 n = 2;\n"
        "  optional bytes payload = 3;\n"
        "  message Inner {\n"
        "    string text = 1;\n"
        "  }\n"
        "}\n"
    )
    request = await cli("describe", ours, "grpc.reflection.v1.ServerReflectionRequest")
    assert "  oneof message_request {\n    string file_by_filename = 3;\n" in request.stdout
    enum = await cli("describe", ours, "grpc.health.v1.HealthCheckResponse.ServingStatus")
    assert "enum ServingStatus {\n  UNKNOWN = 0;\n  SERVING = 1;\n" in enum.stdout
    field = await cli("describe", ours, "whispr.test.echo.Message.payload")
    assert field.stdout == "whispr.test.echo.Message.payload is a field:\noptional bytes payload = 3;\n"
    method = await cli("describe", ours, f"{ECHO}/Join")
    assert method.stdout.startswith(f"{ECHO}.Join is a method:\nrpc Join ( stream ")
    assert (await cli("describe", ours)).stdout.count(" is a service:\n") == 4


async def test_calls_of_every_kind(ours: str, tmp_path: Path) -> None:
    """JSON in and out: one object, none, several, from the line or a file."""
    result = await cli("call", ours, f"{ECHO}/Say", "-d", '{"text": "ü", "n": 3}')
    assert (result.exit_code, objects(result.stdout)) == (0, [{"text": "ü"}])
    assert objects((await cli("call", ours, f"{ECHO}.Say")).stdout) == [{}]
    assert objects((await cli("call", ours, f"{ECHO}/Say", "--emit-defaults")).stdout) == [
        {"text": "", "n": 0}
    ]
    result = await cli("call", ours, f"/{ECHO}/Repeat", "-d", '{"text": "a", "n": 2}')
    assert objects(result.stdout) == [{"text": "a"}, {"text": "a", "n": 1}]
    result = await cli("call", ours, f"{ECHO}/Join", "-d", '{"text": "a"}\n{"text": "b"}')
    assert objects(result.stdout) == [{"text": "ab"}]
    file = tmp_path / "messages.json"
    file.write_text('{"text": "a"} {"text": "b"}')
    result = await cli("call", ours, f"{ECHO}/Chat", "-d", f"@{file}", "--compression", "gzip")
    assert objects(result.stdout) == [{"text": "a"}, {"text": "b"}]
    assert objects((await cli("call", ours, f"{ECHO}/Chat")).stdout) == []
    result = await cli("call", ours, "grpc.health.v1.Health/Check")
    assert objects(result.stdout) == [{"status": "SERVING"}]


async def test_metadata(ours: str) -> None:
    """Headers and the token go with the call; -v shows what comes back."""
    result = await cli(
        "call", ours, f"{ECHO}/Say", "-H", "K: a: b", "-H", "k-bin: AP8=", "--token", "t", "-v"
    )
    assert objects(result.stdout) == [{"text": r" a: b,b'\x00\xff',Bearer t"}]
    assert "Response headers:\nfirst: 1\n" in result.stderr
    assert "Response trailers:\nlast-bin: AP8\n" in result.stderr


async def test_errors_of_calls(ours: str) -> None:
    """Code, message and details on standard error; the exit code is 64 and the status."""
    result = await cli("call", ours, f"{ECHO}/Say", "-d", '{"text": "fail"}')
    assert result.exit_code == 64 + 3
    assert result.stdout == ""
    code, message, heading, bad, info = result.stderr.splitlines()[1:]
    assert (code, message, heading) == ("  Code: INVALID_ARGUMENT", "  Message: text: not that", "  Details:")
    assert json.loads(bad.partition(") ")[2]) == {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "field_violations": [{"field": "text", "description": "not that"}],
    }
    assert json.loads(info.partition(") ")[2])["reason"] == "invalid_payload"
    result = await cli("call", ours, f"{ECHO}/Repeat", "-d", '{"text": "then fail", "n": 1}', "-v")
    assert (result.exit_code, objects(result.stdout)) == (64 + 15, [{"text": "then fail"}])
    assert "Response headers:\n(empty)" in result.stderr
    assert "  Code: DATA_LOSS\n  Message: nö\n" in result.stderr


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[trio.Process]:
    """The command line in a process of its own, with pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = [sys.executable, "-m", "whispr.cli", "rpc", *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, line, check=False, capture_stderr=False, **pipes)
        )
        yield process


async def said(process: trio.Process) -> tuple[int, bytes]:
    """The exit code, and what was said on standard error."""
    assert process.stderr is not None
    told = b"".join([piece async for piece in process.stderr])
    return await process.wait(), told


async def test_a_conversation_over_standard_input(ours: str) -> None:
    """Each object is sent as it is typed, over lines if need be, and answered before the next."""
    async with command("call", ours, f"{ECHO}/Chat", "-d", "@-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for typed in (b'{"text": "\xc3\xbc"}\n', b'{"text":\n "b"}\n', b' {"n"', b": 3}\n"):
            await process.stdin.send_all(typed)
            if typed.endswith(b"\n"):
                answer = b""
                while not answer.endswith(b"}\n"):
                    piece = await process.stdout.receive_some()
                    assert piece, answer
                    answer += piece
        await process.stdin.aclose()
        assert await said(process) == (0, b"")


async def test_bad_json_in_a_conversation(ours: str) -> None:
    """What can become no JSON ends it at once, while standard input is still open."""
    async with command("call", ours, f"{ECHO}/Chat", "-d", "@-") as process:
        assert process.stdin is not None
        await process.stdin.send_all(b'{"text": oops}\n')
        code, told = await said(process)
        assert (code, told.startswith(b"whispr: -d: ")) == (2, True)


async def test_a_reader_that_has_seen_enough(ours: str) -> None:
    """As with `| head -1`: a stream ends quietly when nobody reads it any more."""
    async with command("call", ours, f"{ECHO}/Repeat", "-d", '{"text": "again", "n": 1000000}') as process:
        assert process.stdout is not None
        assert await process.stdout.receive_some(1)
        await process.stdout.aclose()
        assert await said(process) == (0, b"")


def test_json_in_lines() -> None:
    """Wherever lines end, the same objects come out, as soon as they are whole."""
    value = {"a": {"b": [1, 'x"y{', True, -1.5e3], "é😀": {}}, "c": []}
    lines = [f"{line}\n" for line in json.dumps(value, indent=1, ensure_ascii=False).splitlines()]
    cutter = JsonObjects()
    found = [list(cutter.feed(line)) for line in [*lines, *lines, "{} {}"]]
    cutter.end()
    whole: list[list[Any]] = [[]] * (len(lines) - 1) + [[value]]
    assert found == [*whole, *whole, [{}, {}]]


def test_json_that_is_not_whole() -> None:
    """Known at the end."""
    cutter = JsonObjects()
    assert list(cutter.feed('{"a": 1')) == []
    with pytest.raises(UsageError, match="not whole"):
        cutter.end()


async def test_deadlines(ours: str) -> None:
    """`--deadline` bounds all of it."""
    result = await cli("call", ours, f"{ECHO}/Say", "-d", '{"text": "wait"}', "--deadline", "0.3")
    assert result.exit_code == 64 + 4
    assert "Code: DEADLINE_EXCEEDED" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["call", f"{ECHO}/No"], 64 + 5, "no method 'No'"),
        (["call", "no.Such/Method"], 64 + 5, "no.Such"),
        (["call", "whispr.test.echo.Message/Say"], 64 + 5, "is not a service"),
        (["describe", "no.Such"], 64 + 5, "no.Such"),
        (["list", "whispr.test.echo.Message"], 2, "is a message, not a service"),
        (["call", "nonsense"], 2, "package.Service/Method"),
        (["call"], 2, "package.Service/Method"),
        (["call", f"{ECHO}/Say", "more"], 2, "unexpected: more"),
        (["call", f"{ECHO}/Say", "-d", "{"], 2, "-d: "),
        (["call", f"{ECHO}/Say", "-d", "[1]"], 2, "-d: "),
        (["call", f"{ECHO}/Say", "-d", '{"no": 1}'], 2, '"no"'),
        (["call", f"{ECHO}/Say", "-d", "{} {}"], 2, "takes one message, not 2"),
        (["call", f"{ECHO}/Say", "-d", "@/no/such/file"], 2, "-d: "),
        (["call", f"{ECHO}/Say", "-H", "nonsense"], 2, "'nonsense' is not 'name: value'"),
        (["call", f"{ECHO}/Say", "-H", "grpc-x: 1"], 2, "'grpc-x' is reserved"),
        (["call", f"{ECHO}/Say", "-H", "x-bin: !"], 2, "not base64"),
        (["call", f"{ECHO}/Say", "--compression", "br"], 2, "no such encoding"),
        (["list", "--cert", "/no/such.pem"], 2, "needs a key"),
        (["list", "--cacert", "/no/such.pem"], 2, "No such file"),
    ],
    ids=lambda value: " ".join(value[:2])[:30] if isinstance(value, list) else str(value),
)
async def test_what_cannot_be_done(ours: str, arguments: list[str], code: int, words: str) -> None:
    """A clear word and an exit code: 2 for the line itself, 64 and the status for what the server says."""
    result = await cli(arguments[0], ours, *arguments[1:])
    assert result.exit_code == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_server_without_reflection(echo: Any, nursery: trio.Nursery) -> None:
    """It says so, and so does one that is not there."""
    port = await nursery.start(RpcServer([echo.Servicer()]).serve_tcp, "127.0.0.1", 0)
    result = await cli("list", f"127.0.0.1:{port}")
    assert (result.exit_code, "the server has no reflection" in result.stderr) == (64 + 12, True)
    assert (await cli("list", "unix:/no/such/socket")).exit_code == 64 + 14


def test_targets_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, echo: Any) -> None:
    """A service of ours is found by its name, by a symbol of its, or, for anything else, by being there."""
    assert auth_pb2.DESCRIPTOR.name == "whispr/v1/auth.proto"  # now grpcio's reflection knows it
    monkeypatch.setenv("WHISPR_DATA_DIR", str(tmp_path))
    missing = run("list")
    assert (missing.exit_code, "ports.json" in missing.stderr) == (2, True)
    with grpcio_server(echo) as target:
        port = int(target.rpartition(":")[2])
        (tmp_path / "ports.json").write_text(json.dumps({"gateway": 1, "auth": port}))
        for arguments in (["list"], ["list", "auth"], ["list", ECHO]):
            assert ECHO in run(*arguments).stdout
        assert "rpc Login ( " in run("describe", "whispr.v1.AuthService.Login").stdout
        elsewhere = run("call", "whispr.v1.UserService/GetUser")
        assert (elsewhere.exit_code, "user does not run here" in elsewhere.stderr) == (2, True)


def test_grpcios_server(echo: Any) -> None:
    """Its reflection is v1alpha alone, which is found out; everything else is as with ours."""
    with grpcio_server(echo) as target:
        assert run("list", target).stdout.split() == [reflection.SERVICE_NAME, ECHO]
        assert "rpc Chat ( stream " in run("describe", target, ECHO).stdout
        assert objects(run("call", target, f"{ECHO}/Say", "-d", '{"text": "hi"}').stdout) == [{"text": "hi"}]
        assert len(objects(run("call", target, f"{ECHO}/Repeat", "-d", '{"n": 3}').stdout)) == 3
        answers = objects(run("call", target, f"{ECHO}/Chat", "-d", '{"n": 1}{"n": 2}').stdout)
        assert answers == [{"n": 1}, {"n": 2}]
        failed = run("call", target, f"{ECHO}/Say", "-d", '{"text": "fail"}')
        assert failed.exit_code == 64 + 5
        assert failed.stderr == "ERROR:\n  Code: NOT_FOUND\n  Message: nö\n"
        missing = run("call", target, f"{ECHO}/Join")
        assert (missing.exit_code, "UNIMPLEMENTED" in missing.stderr) == (64 + 12, True)


async def test_files_that_make_no_sense(nursery: trio.Nursery) -> None:
    """A server that lies about its files ends in an error, not in a loop."""
    response = protos.message("grpc.reflection.v1.ServerReflectionResponse")
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    from whispr.rpc.reflection import ReflectionServicer

    class Liar(ReflectionServicer):
        async def ServerReflectionInfo(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for request in input_messages:
                answer = response()
                match request.file_containing_symbol or request.file_by_filename:
                    case "loop.S":
                        files = [FileDescriptorProto(name="loop", dependency=["loop"])]
                    case "other.S":
                        files = [FileDescriptorProto(name="other", dependency=["needed"])]
                    case "endless.S":
                        files = [FileDescriptorProto(name="0", dependency=["1"])]
                    case name if name.isdecimal():
                        files = [FileDescriptorProto(name=name, dependency=[str(int(name) + 1)])]
                    case _:
                        files = []
                for file in files:
                    answer.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
                if request.file_containing_symbol == "garbage.S":
                    answer.file_descriptor_response.file_descriptor_proto.append(b"\xff\xff")
                yield answer

    port = await nursery.start(RpcServer([Liar([])]).serve_tcp, "127.0.0.1", 0)
    for symbol, code, words in (
        ("loop.S", Code.INTERNAL, "imports itself"),
        ("other.S", Code.INTERNAL, "another file than needed"),
        ("endless.S", Code.RESOURCE_EXHAUSTED, "more than 1000 files"),
        ("garbage.S", Code.INTERNAL, "something else than a file"),
        ("nothing.S", Code.NOT_FOUND, "nothing.S"),
    ):
        result = await cli("describe", f"127.0.0.1:{port}", symbol)
        assert (result.exit_code, words in result.stderr) == (64 + code, True), result.stderr
