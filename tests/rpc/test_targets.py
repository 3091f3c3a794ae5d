"""What a channel's target may be, and how calls spread over the addresses it stands for."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from whispr.errors import Code, WhisprError
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.targets import Endpoint, parse_target

QUICK = RpcLimits(backoff_s=0.02, backoff_s_max=0.02)


@pytest.mark.parametrize(
    ("target", "endpoints", "authority"),
    [
        ("127.0.0.1:80", [Endpoint("127.0.0.1", 80)], "127.0.0.1:80"),
        ("[::1]:80", [Endpoint("::1", 80)], "[::1]:80"),
        ("chat.internal:50053", [Endpoint("chat.internal", 50053)], "chat.internal:50053"),
        ("dns:chat:1", [Endpoint("chat", 1)], "chat:1"),
        ("dns:///chat:1", [Endpoint("chat", 1)], "chat:1"),
        ("unix:/run/x", [Endpoint("localhost", path="/run/x")], "localhost"),
        ("unix:///run/x", [Endpoint("localhost", path="/run/x")], "localhost"),
        ("unix:x", [Endpoint("localhost", path="x")], "localhost"),
        (
            "a:1, [::1]:2,unix:/x",
            [Endpoint("a", 1), Endpoint("::1", 2), Endpoint("localhost", path="/x")],
            "a:1",
        ),
    ],
)
def test_targets(target: str, endpoints: list[Endpoint], authority: str) -> None:
    """Every form there is, and what requests to it carry as :authority."""
    parsed = parse_target(target)
    assert list(parsed) == endpoints
    assert parsed[0].authority == authority


@pytest.mark.parametrize(
    "target",
    [
        "",
        "a",
        "a:",
        ":1",
        "a:65536",
        "a:-1",
        "a:٣",
        "::1:80",
        "unix:",
        "a:1,",
        "dns://8.8.8.8/a:1",
        "dns:///a",
    ],
)
def test_targets_that_cannot_be_read(target: str) -> None:
    """The error names the target as it was given."""
    with pytest.raises(ValueError, match="target") as caught:
        parse_target(target)
    assert repr(target) in str(caught.value)


class Named:
    """An Echo that answers with its own name, on a port or path of its own."""

    def __init__(self, echo: Any, name: str) -> None:
        class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
            async def Say(self, input_message: Any) -> Any:  # noqa: N802
                return echo.Message(text=name)

            async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
                async for _ in input_messages:
                    yield echo.Message(text=name)

        self.handlers = Handlers()
        self.scope = trio.CancelScope()
        self.port = 0

    async def serve(
        self, host: str = "127.0.0.1", *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """On the port it had before, if it had one."""
        with trio.CancelScope() as self.scope:
            async with trio.open_nursery() as nursery:
                self.port = await nursery.start(RpcServer([self.handlers]).serve_tcp, host, self.port)
                task_status.started(self.port)
                await trio.sleep_forever()

    def stop(self) -> None:
        self.scope.cancel(reason="the test stops the server")


@asynccontextmanager
async def named(echo: Any, *names: str) -> AsyncIterator[list[Named]]:
    async with trio.open_nursery() as nursery:
        servers = [Named(echo, name) for name in names]
        for server in servers:
            await nursery.start(server.serve)
        yield servers
        nursery.cancel_scope.cancel(reason="done")


async def say(stub: Any, echo: Any, times: int) -> list[str]:
    return [(await stub.Say(echo.Message())).text for _ in range(times)]


async def until(condition: Callable[[], Any]) -> None:
    """Try until it is so: what happens in another process or socket says no word when it has."""
    with trio.fail_after(10):
        while not await condition():  # noqa: ASYNC110  # there is no event to wait for
            await trio.sleep(0.005)


async def test_calls_take_turns_among_a_lists_addresses(echo: Any) -> None:
    """Both serve alike; when one dies the other serves alone; when it is back, both again."""
    async with named(echo, "a", "b") as (a, b), trio.open_nursery() as again:
        async with open_channel(f"127.0.0.1:{a.port},127.0.0.1:{b.port}", limits=QUICK) as channel:
            stub = echo.Stub(channel)
            await until(lambda: both(stub, echo))
            assert sorted(await say(stub, echo, 10)) == ["a"] * 5 + ["b"] * 5
            a.stop()
            await until(lambda: only(stub, echo, "b"))
            assert await say(stub, echo, 5) == ["b"] * 5
            await again.start(a.serve)
            await until(lambda: both(stub, echo))
            assert sorted(await say(stub, echo, 10)) == ["a"] * 5 + ["b"] * 5
        again.cancel_scope.cancel(reason="done")


async def both(stub: Any, echo: Any) -> bool:
    return set(await say(stub, echo, 2)) == {"a", "b"}


async def only(stub: Any, echo: Any, name: str) -> bool:
    try:
        return set(await say(stub, echo, 3)) == {name}
    except WhisprError:  # a call that was on its way to the one that died
        return False


class Names(trio.abc.HostnameResolver):
    """A resolver that knows what the test tells it, and counts its look-ups."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.asked = 0

    async def getaddrinfo(  # type: ignore[override]  # only what a channel asks for
        self, host: bytes, port: int, *_: int, **__: int
    ) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        known = self.addresses.get(host.decode())
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.fixture
async def names() -> Names:
    """The resolver of the running test."""
    resolver = Names()
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


async def test_names_are_looked_up_again_when_connecting_again(echo: Any, names: Names) -> None:
    """A service that moves to another address is followed, once its connection is lost."""
    async with trio.open_nursery() as nursery:
        old, new = Named(echo, "old"), Named(echo, "new")
        new.port = await nursery.start(old.serve, "127.0.0.2")
        await nursery.start(new.serve, "127.0.0.3")
        names.addresses["chat.test"] = ["127.0.0.2"]
        async with open_channel(f"dns:///chat.test:{old.port}", limits=QUICK) as channel:
            stub = echo.Stub(channel)
            assert await say(stub, echo, 3) == ["old"] * 3
            assert names.asked == 1
            names.addresses["chat.test"] = ["127.0.0.3"]
            assert await say(stub, echo, 3) == ["old"] * 3
            old.stop()
            await until(lambda: only(stub, echo, "new"))
        nursery.cancel_scope.cancel(reason="done")


async def test_an_address_that_is_gone_finishes_its_calls(echo: Any, names: Names) -> None:
    """It gets no new ones once a look-up, for whatever reason, has not found it; calls on it go on."""
    async with trio.open_nursery() as nursery:
        leaves, stays = Named(echo, "leaves"), Named(echo, "stays")
        stays.port = await nursery.start(leaves.serve, "127.0.0.2")
        await nursery.start(stays.serve, "127.0.0.3")
        names.addresses["chat.test"] = ["127.0.0.2", "127.0.0.4"]
        async with open_channel(f"chat.test:{leaves.port}", limits=QUICK) as channel:
            stub = echo.Stub(channel)
            await until(lambda: only(stub, echo, "leaves"))
            async with stub.Chat() as call:
                await call.send(echo.Message())
                assert (await anext(call)).text == "leaves"
                names.addresses["chat.test"] = ["127.0.0.3"]
                # Nobody listens at its second address, so the channel looks the name up again.
                await until(lambda: only(stub, echo, "stays"))
                await call.send(echo.Message())
                assert (await anext(call)).text == "leaves"
        nursery.cancel_scope.cancel(reason="done")


async def test_calls_spread_over_the_addresses_of_a_name(echo: Any, names: Names) -> None:
    """One that refuses connections is left out; calls do not fail for it."""
    async with trio.open_nursery() as nursery:
        first, second = Named(echo, "a"), Named(echo, "b")
        second.port = await nursery.start(first.serve, "127.0.0.2")
        await nursery.start(second.serve, "127.0.0.3")
        names.addresses["chat.test"] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        async with open_channel(f"chat.test:{first.port}", limits=QUICK) as channel:
            stub = echo.Stub(channel)
            await until(lambda: both(stub, echo))
            assert set(await say(stub, echo, 20)) == {"a", "b"}
        nursery.cancel_scope.cancel(reason="done")


async def test_names_that_do_not_exist(echo: Any, names: Names) -> None:
    """UNAVAILABLE naming the host, with backoff; waiting for ready outlasts it."""
    async with named(echo, "late") as (server,):  # noqa: SIM117  # the second needs the first
        async with open_channel(f"late.test:{server.port}", limits=QUICK) as channel:
            stub = echo.Stub(channel)
            with pytest.raises(WhisprError, match=r"cannot resolve late\.test") as caught:
                await stub.Say(echo.Message())
            assert (caught.value.code, caught.value.facts) == (Code.UNAVAILABLE, {"processed": "no"})
            replies = []

            async def wait() -> None:
                replies.append(await stub.Say(echo.Message(), wait_for_ready=True))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.05)
                assert not replies
                names.addresses["late.test"] = ["127.0.0.1"]
    assert replies


async def test_one_bad_entry_of_a_list_spoils_nothing(echo: Any, names: Names, tmp_path: Path) -> None:
    """Neither a name that does not exist nor a path where nobody listens."""
    async with named(echo, "good") as (server,):
        target = f"gone.test:1,unix:{tmp_path}/nobody,127.0.0.1:{server.port}"
        async with open_channel(target, limits=QUICK) as channel:
            assert await say(echo.Stub(channel), echo, 5) == ["good"] * 5


async def test_every_address_failing_is_told(echo: Any, tmp_path: Path) -> None:
    """The error names each address and what was wrong with it."""
    async with open_channel(f"unix:{tmp_path}/x,unix:{tmp_path}/y", limits=QUICK) as channel:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(channel).Say(echo.Message())
    for name in ("x", "y"):
        assert f"unix:{tmp_path}/{name}: [Errno 2] No such file or directory" in caught.value.message


async def test_servers_replaced_one_after_the_other_fail_no_call(echo: Any) -> None:
    """Two servers are drained and started again in turn, several times, under load: every call is answered."""
    going = True
    answered = 0

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            if input_message.n % 3 == 0:
                await trio.sleep(0.002)
            return input_message

    async def call(stub: Any) -> None:
        nonlocal answered
        while going:
            assert (await stub.Say(echo.Message(n=answered))).n >= 0
            answered += 1

    async def more_than(count: int) -> bool:
        return answered > count

    async with trio.open_nursery() as servers:
        running = [RpcServer([Handlers()]) for _ in range(2)]
        ports = [await servers.start(server.serve_tcp, "127.0.0.1", 0) for server in running]
        target = ",".join(f"127.0.0.1:{port}" for port in ports)
        async with open_channel(target, limits=QUICK) as channel, trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(call, echo.Stub(channel))
            for turn in range(8):
                await until(partial(more_than, answered + 50))
                await running[turn % 2].drain()
                running[turn % 2] = RpcServer([Handlers()])
                await servers.start(running[turn % 2].serve_tcp, "127.0.0.1", ports[turn % 2])
                await until(lambda: both_connected(channel))
            going = False
        servers.cancel_scope.cancel(reason="done")
    assert answered > 400


async def both_connected(channel: Channel) -> bool:
    return len(channel.connections) == 2


# --- Unix sockets, and the number of connections ------------------------------------------------------------


async def test_a_socket_left_by_a_killed_process_is_replaced(
    echo: Any, handlers: Any, tmp_path: Path
) -> None:
    """Nobody answers on it, so it is in nobody's way."""
    path = tmp_path / "rpc.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    assert path.is_socket()
    async with trio.open_nursery() as nursery:
        await nursery.start(RpcServer([handlers]).serve_unix, path)
        assert path.stat().st_mode & 0o077 == 0
        async with open_channel(f"unix:{path}") as channel:
            assert (await echo.Stub(channel).Say(echo.Message(n=1))).n == 2
        nursery.cancel_scope.cancel(reason="done")
    assert not path.exists()


async def test_a_socket_in_use_or_another_file_is_not(handlers: Any, tmp_path: Path) -> None:
    """A second server fails and the first goes on; a file of another kind stays as it is."""
    path, file = tmp_path / "rpc.sock", tmp_path / "notes"
    file.write_text("keep me")
    async with trio.open_nursery() as nursery:
        await nursery.start(RpcServer([handlers]).serve_unix, path)
        for taken in (path, file):
            with pytest.raises(OSError, match="Address already in use"):
                await RpcServer([handlers]).serve_unix(taken)
        assert path.is_socket()
        assert file.read_text() == "keep me"
        nursery.cancel_scope.cancel(reason="done")


async def test_connections_beyond_the_limit_are_closed(echo: Any, handlers: Any) -> None:
    """The third of two is closed as it comes; those within the limit serve on; room is given back."""
    server = RpcServer([handlers], limits=RpcLimits(accepted_connections_max=2))
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            await echo.Stub(channel).Say(echo.Message())
            idle = await trio.open_tcp_stream("127.0.0.1", port)
            assert await idle.receive_some()
            for _ in range(5):
                assert not await first_bytes(port)
            await echo.Stub(channel).Say(echo.Message())
            await idle.aclose()
            await until(lambda: first_bytes(port))
        nursery.cancel_scope.cancel(reason="done")


async def first_bytes(port: int) -> bytes:
    """What a server says to somebody who only connects; empty when it closes."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        try:
            return bytes(await stream.receive_some())
        except trio.BrokenResourceError:  # the operating system may reset what is closed unread
            return b""
