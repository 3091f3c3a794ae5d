"""Channelz, asked by grpcio's own stub over a socket and by ours in memory."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import trio
from grpc_channelz.v1 import channelz_pb2 as theirs
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub

from whispr.errors import Code, WhisprError, denied
from whispr.rpc import protos
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.channelz import PAGE_MAX, ChannelzServicer
from whispr.rpc.server import RpcServer
from whispr.testing import open_rpc_pair

STATES = theirs.ChannelConnectivityState
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
def servicer(unary: Callable[[Any], Any]) -> Any:
    """An Echo that refuses on request."""

    async def say(message: Any) -> Any:
        if message.text == "refuse":
            raise denied("not you")
        return message

    return unary(say)


@asynccontextmanager
async def asking_over_a_socket(
    channelz: ChannelzServicer, server: RpcServer
) -> AsyncIterator[tuple[int, Ask]]:
    """The server's port, and a function that asks it with grpcio's stub: name of a method, fields of its request."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ChannelzStub(channel)

            async def ask(method: str, **fields: Any) -> Any:
                request = getattr(theirs, f"{method}Request")(**fields)
                return await trio.to_thread.run_sync(getattr(stub, method), request)

            yield port, ask
        nursery.cancel_scope.cancel(reason="asked")


def stub_of(channel: Channel) -> Ask:
    async def ask(method: str, **fields: Any) -> Any:
        kinds = [protos.message(f"grpc.channelz.v1.{method}{kind}") for kind in ("Request", "Response")]
        return await channel.unary_unary(f"/grpc.channelz.v1.Channelz/{method}", *kinds)(kinds[0](**fields))

    return ask


async def test_a_server_and_its_sockets(echo: Any, servicer: Any) -> None:
    """Calls, what it listens on, its connections, and of each the addresses, the messages and the last error."""
    channelz = ChannelzServicer()
    server = RpcServer([servicer, channelz])
    channelz.add_server("echo", server)
    async with (
        asking_over_a_socket(channelz, server) as (port, ask),
        open_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = echo.Stub(channel)
        for _ in range(3):
            await stub.Say(echo.Message(text="hi"))
        with pytest.raises(WhisprError):
            await stub.Say(echo.Message(text="refuse"))
        (shown,) = (listed := await ask("GetServers")).server
        assert (listed.end, shown.ref.name) == (True, "echo")
        assert (shown.data.calls_started, shown.data.calls_succeeded, shown.data.calls_failed) == (5, 3, 1)
        assert "PERMISSION_DENIED: not you" in shown.data.trace.events[0].description
        assert (await ask("GetServer", server_id=shown.ref.server_id)).server.ref == shown.ref

        (bound,) = shown.listen_socket
        listening = (await ask("GetSocket", socket_id=bound.socket_id)).socket
        assert (listening.local.tcpip_address.port, listening.ref.name) == (port, f"127.0.0.1:{port}")

        found = await ask("GetServerSockets", server_id=shown.ref.server_id)
        assert (len(found.socket_ref), found.end) == (2, True)
        sockets = [(await ask("GetSocket", socket_id=ref.socket_id)).socket for ref in found.socket_ref]
    (ours,) = [socket for socket in sockets if socket.data.streams_failed]
    assert (ours.data.streams_started, ours.data.streams_succeeded) == (4, 3)
    assert (ours.data.messages_received, ours.data.messages_sent) == (4, 3)
    assert ours.local.tcpip_address.port == port
    assert ours.remote.tcpip_address.ip_address == ipaddress.ip_address("127.0.0.1").packed
    assert ours.remote_name == f"tcp:127.0.0.1:{ours.remote.tcpip_address.port}"
    assert ours.data.local_flow_control_window.value > 65_535
    assert ours.data.remote_flow_control_window.value > 0
    assert int({option.name: option.value for option in ours.data.option}["bytes_received"]) > 50


async def test_a_channel_its_addresses_and_their_sockets(echo: Any, servicer: Any) -> None:
    """Idle before the first call, then ready; each level names the next, and their sums agree."""
    channelz = ChannelzServicer()
    async with open_rpc_pair([servicer, channelz]) as pair, open_rpc_pair([servicer]) as watched:
        channelz.add_channel(watched.channel)
        ask = stub_of(pair.channel)
        (top,) = (await ask("GetTopChannels")).channel
        assert (top.ref.name, top.data.state.state) == (watched.channel.target, STATES.IDLE)
        await echo.Stub(watched.channel).Say(echo.Message())
        channel = (await ask("GetChannel", channel_id=top.ref.channel_id)).channel
        (ref,) = channel.subchannel_ref
        subchannel = (await ask("GetSubchannel", subchannel_id=ref.subchannel_id)).subchannel
        (socket_ref,) = subchannel.socket_ref
        socket = (await ask("GetSocket", socket_id=socket_ref.socket_id)).socket
        for data in (channel.data, subchannel.data):
            assert (data.state.state, data.calls_started, data.calls_succeeded) == (STATES.READY, 1, 1)
            assert data.trace.creation_timestamp.seconds > 0
        assert (socket.data.streams_started, socket.data.messages_sent) == (1, 1)
        await watched.network.cut()
        await trio.testing.wait_all_tasks_blocked()
        subchannel = (await ask("GetSubchannel", subchannel_id=ref.subchannel_id)).subchannel
        assert (list(subchannel.socket_ref), subchannel.data.calls_succeeded) == ([], 1)


async def test_a_channel_that_cannot_connect(echo: Any) -> None:
    """It says so, and how its last call ended."""

    async def refuse() -> trio.abc.Stream:
        raise ConnectionRefusedError("nobody listens")

    channelz = ChannelzServicer()
    async with open_rpc_pair([channelz]) as pair, open_channel("nowhere:1", connect=refuse) as lost:
        channelz.add_channel(lost)
        with pytest.raises(WhisprError):
            await echo.Stub(lost).Say(echo.Message())
        (shown,) = (await stub_of(pair.channel)("GetTopChannels")).channel
    assert (shown.data.state.state, shown.data.calls_failed) == (STATES.TRANSIENT_FAILURE, 1)
    assert "nobody listens" in shown.data.trace.events[0].description


async def test_pages() -> None:
    """At most a hundred at once, or as many as asked for, from an id on, and whether that was all."""
    channelz = ChannelzServicer()
    servers = [RpcServer([]) for _ in range(PAGE_MAX + 5)]
    for number, server in enumerate(servers):
        channelz.add_server(str(number), server)
    async with open_rpc_pair([channelz]) as pair:
        ask = stub_of(pair.channel)
        first = await ask("GetServers", max_results=10_000)
        assert ([shown.ref.server_id for shown in first.server], first.end) == (
            [server.id for server in servers[:PAGE_MAX]],
            False,
        )
        rest = await ask("GetServers", start_server_id=first.server[-1].ref.server_id + 1)
        assert (len(rest.server), rest.end) == (5, True)
        two = await ask("GetServers", start_server_id=servers[1].id, max_results=2)
        assert ([shown.ref.name for shown in two.server], two.end) == (["1", "2"], False)
        assert (await ask("GetTopChannels")).end


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("GetServer", {"server_id": 2**40}, Code.NOT_FOUND),
        ("GetServerSockets", {"server_id": 2**40}, Code.NOT_FOUND),
        ("GetChannel", {"channel_id": 2**40}, Code.NOT_FOUND),
        ("GetSubchannel", {"subchannel_id": 2**40}, Code.NOT_FOUND),
        ("GetSocket", {"socket_id": 2**40}, Code.NOT_FOUND),
        ("GetSocket", {}, Code.NOT_FOUND),
        ("GetServers", {"start_server_id": -1}, Code.INVALID_ARGUMENT),
        ("GetTopChannels", {"max_results": -1}, Code.INVALID_ARGUMENT),
    ],
)
async def test_what_is_not_there(method: str, fields: dict[str, int], code: Code) -> None:
    """Ids of nothing, and numbers that are none."""
    async with open_rpc_pair([ChannelzServicer()]) as pair:
        with pytest.raises(WhisprError) as caught:
            await stub_of(pair.channel)(method, **fields)
    assert caught.value.code is code


def test_our_protos_are_the_canonical_ones() -> None:
    """Every message, field and number is that of grpcio's package; options of sockets we send as text alone."""
    ours = protos.POOL.FindFileByName("grpc/channelz/v1/channelz.proto")
    left_out = {"SocketOptionTimeout", "SocketOptionLinger", "SocketOptionTcpInfo"}
    assert set(ours.message_types_by_name) == set(theirs.DESCRIPTOR.message_types_by_name) - left_out
    for name, message in ours.message_types_by_name.items():
        same(message, theirs.DESCRIPTOR.message_types_by_name[name])


def same(mine: Any, canonical: Any) -> None:
    for field in mine.fields:
        other = canonical.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
        if field.message_type is not None:
            assert field.message_type.full_name == other.message_type.full_name
    for enum in mine.enum_types:
        canonical_values = canonical.enum_types_by_name[enum.name].values_by_name
        assert {value.name: value.number for value in enum.values} == {
            name: value.number for name, value in canonical_values.items()
        }
    for nested in mine.nested_types:
        same(nested, canonical.nested_types_by_name[nested.name])
