"""Channelz, `grpc.channelz.v1` (gRFC A14): what the servers and channels of a process do, asked over gRPC.

    channelz = ChannelzServicer()
    server = RpcServer([auth_handlers, channelz])
    channelz.add_server("auth", server)
    channelz.add_channel(channel)

Whoever may ask sees addresses, targets and the last error of each connection: it is not for everybody.

All of it is looked up when asked, in `statistics` and in the connections themselves. When the last call or message
began is not among what connections note down for each call, so those times are left out.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import purerpc
import trio

from whispr.errors import invalid, not_found
from whispr.rpc import protos
from whispr.rpc.channel import Channel
from whispr.rpc.server import RpcServer
from whispr.rpc.statistics import Census, Counted, LastError
from whispr.rpc.subchannel import Subchannel
from whispr.rpc.transport import socket_under

SERVICE: Final = "grpc.channelz.v1.Channelz"

PAGE_MAX = 100
"""Entries of an answer, also where none are asked for."""

_UNKNOWN, _IDLE, _CONNECTING, _READY, _FAILURE = range(5)
_WARNING = 2

_package = SERVICE.rpartition(".")[0]
_Message = {
    name: protos.message(f"{_package}.{name}")
    for name in (
        "Channel", "Subchannel", "Server", "Socket", "ChannelData", "ServerData", "SocketData", "ChannelTrace",
        "Address", "Security",
        "GetTopChannelsResponse", "GetServersResponse", "GetServerResponse", "GetServerSocketsResponse",
        "GetChannelResponse", "GetSubchannelResponse", "GetSocketResponse",
    )
}  # fmt: skip


_Where = tuple[Any, ...] | str | bytes
"""An address as sockets give it."""


class ChannelzServicer(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
    """Answers about what has been added."""

    def __init__(self) -> None:
        self._servers: dict[int, tuple[str, RpcServer]] = {}
        self._channels: dict[int, Channel] = {}

    def add_server(self, name: str, server: RpcServer) -> None:
        """Show a server under a name."""
        self._servers[server.id] = name, server

    def add_channel(self, channel: Channel) -> None:
        """Show a channel."""
        self._channels[channel.id] = channel

    @property
    def service(self) -> purerpc.Service:
        """The methods by name."""
        return protos.service(SERVICE, self)

    # --- The methods, by the protocol's names. All raise INVALID_ARGUMENT for negative numbers -------------

    async def GetServers(self, input_message: Any) -> Any:  # noqa: N802
        """A page of servers, by id."""
        ids, end = _page(self._servers, input_message.start_server_id, input_message.max_results)
        servers = [_server(*self._servers[each]) for each in ids]
        return _Message["GetServersResponse"](server=servers, end=end)

    async def GetServer(self, input_message: Any) -> Any:  # noqa: N802
        """One server. Raises WhisprError NOT_FOUND."""
        name, server = self._find_server(input_message.server_id)
        return _Message["GetServerResponse"](server=_server(name, server))

    async def GetServerSockets(self, input_message: Any) -> Any:  # noqa: N802
        """A page of a server's connections. Raises WhisprError NOT_FOUND for the server."""
        _, server = self._find_server(input_message.server_id)
        live = {each.id: each for each in server.census.live}
        ids, end = _page(live, input_message.start_socket_id, input_message.max_results)
        refs = [{"socket_id": each, "name": server.census.peer_of(live[each])} for each in ids]
        return _Message["GetServerSocketsResponse"](socket_ref=refs, end=end)

    async def GetTopChannels(self, input_message: Any) -> Any:  # noqa: N802
        """A page of channels; none is part of another."""
        ids, end = _page(self._channels, input_message.start_channel_id, input_message.max_results)
        channels = [_channel(self._channels[each]) for each in ids]
        return _Message["GetTopChannelsResponse"](channel=channels, end=end)

    async def GetChannel(self, input_message: Any) -> Any:  # noqa: N802
        """One channel. Raises WhisprError NOT_FOUND."""
        channel = self._channels.get(input_message.channel_id)
        if channel is None:
            raise not_found("channel", str(input_message.channel_id))
        return _Message["GetChannelResponse"](channel=_channel(channel))

    async def GetSubchannel(self, input_message: Any) -> Any:  # noqa: N802
        """One address of a channel. Raises WhisprError NOT_FOUND."""
        for channel in self._channels.values():
            for subchannel in channel.subchannels:
                if subchannel.id == input_message.subchannel_id:
                    return _Message["GetSubchannelResponse"](subchannel=_subchannel(subchannel))
        raise not_found("subchannel", str(input_message.subchannel_id))

    async def GetSocket(self, input_message: Any) -> Any:  # noqa: N802
        """One connection, or what a server listens on. Raises WhisprError NOT_FOUND.

        `summary` leaves out certificates, which are the only thing that is long.
        """
        wanted = input_message.socket_id
        servers = [server for _, server in self._servers.values()]
        for server in servers:
            if (bound := server.listening.get(wanted)) is not None:
                socket = _Message["Socket"](
                    ref={"socket_id": wanted, "name": _text(bound)}, local=_address(bound)
                )
                return _Message["GetSocketResponse"](socket=socket)
        censuses = [server.census for server in servers]
        censuses += [channel.census for channel in self._channels.values()]
        for census in censuses:
            for connection in census.live:
                if connection.id == wanted:
                    socket = _socket(connection, census.peer_of(connection), input_message.summary)
                    return _Message["GetSocketResponse"](socket=socket)
        raise not_found("socket", str(wanted))

    def _find_server(self, server_id: int) -> tuple[str, RpcServer]:
        try:
            return self._servers[server_id]
        except KeyError:
            raise not_found("server", str(server_id)) from None


def _page(known: Iterable[int], start: int, max_results: int) -> tuple[list[int], bool]:
    """The ids of a page, and whether it is the last."""
    if start < 0 or max_results < 0:
        raise invalid({"max_results" if max_results < 0 else "start": "must not be negative"})
    left = sorted(each for each in known if each >= start)
    size = min(max_results or PAGE_MAX, PAGE_MAX)
    return left[:size], len(left) <= size


def _server(name: str, server: RpcServer) -> Any:
    listening = [{"socket_id": each, "name": _text(bound)} for each, bound in server.listening.items()]
    shown = _Message["Server"](ref={"server_id": server.id, "name": name}, listen_socket=listening)
    shown.data.CopyFrom(_Message["ServerData"](**_calls(server.census)))
    return shown


def _channel(channel: Channel) -> Any:
    shown = _Message["Channel"](ref={"channel_id": channel.id, "name": channel.target})
    for subchannel in channel.subchannels:
        shown.subchannel_ref.add(subchannel_id=subchannel.id, name=subchannel.name)
    states = [_state(subchannel) for subchannel in channel.subchannels]
    shown.data.CopyFrom(_data(channel.census, channel.target, _best(states)))
    return shown


def _subchannel(subchannel: Subchannel) -> Any:
    shown = _Message["Subchannel"](ref={"subchannel_id": subchannel.id, "name": subchannel.name})
    for connection in subchannel.census.live:
        shown.socket_ref.add(socket_id=connection.id, name=subchannel.name)
    shown.data.CopyFrom(_data(subchannel.census, subchannel.name, _state(subchannel)))
    return shown


def _data(census: Census, target: str, state: int) -> Any:
    return _Message["ChannelData"](target=target, state={"state": state}, **_calls(census))


def _calls(census: Census) -> Mapping[str, Any]:
    """What servers, channels and their addresses say alike."""
    statistics = census.statistics()
    traffic = statistics.traffic
    return {
        "calls_started": traffic.calls_started,
        "calls_succeeded": traffic.calls_succeeded,
        "calls_failed": traffic.calls_failed,
        "trace": _trace(census.opened_at, statistics.last_error),
    }


def _trace(created_at: float, error: LastError | None) -> Any:
    """When it all began, and how the call that failed last has ended."""
    trace = _Message["ChannelTrace"](num_events_logged=0 if error is None else 1)
    trace.creation_timestamp.FromNanoseconds(int(created_at * 1e9))
    if error is not None:
        event = trace.events.add(
            description=f"{error.method}: {error.code.name}: {error.message}", severity=_WARNING
        )
        event.timestamp.FromNanoseconds(int(error.at * 1e9))
    return trace


def _state(subchannel: Subchannel) -> int:
    if subchannel.usable:
        return _READY
    if subchannel.connecting:
        return _CONNECTING
    return _FAILURE if subchannel.last_failure and not subchannel.due else _IDLE


def _best(states: Iterable[int]) -> int:
    """A channel is as ready as the best of its addresses, and idle before it has any."""
    order = (_READY, _CONNECTING, _IDLE, _FAILURE)
    return min(states, key=order.index, default=_IDLE)


def _socket(connection: Counted, peer: str, summary: bool) -> Any:
    traffic = connection.counters.traffic(connection.calls_going)
    shown = _Message["Socket"](ref={"socket_id": connection.id, "name": peer}, remote_name=peer)
    shown.data.CopyFrom(
        _Message["SocketData"](
            streams_started=traffic.calls_started,
            streams_succeeded=traffic.calls_succeeded,
            streams_failed=traffic.calls_failed,
            messages_sent=traffic.messages_sent,
            messages_received=traffic.messages_received,
            keep_alives_sent=traffic.pings_sent,
            local_flow_control_window={"value": connection.core.receive_window},
            remote_flow_control_window={"value": connection.core.send_window},
        )
    )
    options = {"bytes_sent": traffic.bytes_sent, "bytes_received": traffic.bytes_received}
    for name, value in options.items():
        shown.data.option.add(name=name, value=str(value))
    socket = socket_under(connection.stream)
    if socket is not None:
        with suppress(OSError):  # it is being closed
            shown.local.CopyFrom(_address(socket.getsockname()))
            shown.remote.CopyFrom(_address(socket.getpeername()))
    if isinstance(connection.stream, trio.SSLStream):
        shown.security.CopyFrom(_security(connection.stream, summary))
    return shown


def _security(stream: trio.SSLStream[Any], summary: bool) -> Any:
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError, ValueError):
        name = stream.cipher()[0]
        # OpenSSL names the suites of TLS 1.3 as their standard does, and older ones in its own way.
        shown = {"standard_name" if name.startswith("TLS_") else "other_name": name}
        certificate = None if summary else stream.getpeercert(binary_form=True)
        return _Message["Security"](tls={**shown, "remote_certificate": certificate or b""})
    return _Message["Security"](tls={})  # it is being closed


def _address(where: _Where) -> Any:
    """As sockets give it: host, port and more of IP; a path."""
    if isinstance(where, tuple):
        packed = ipaddress.ip_address(where[0].partition("%")[0]).packed
        return _Message["Address"](tcpip_address={"ip_address": packed, "port": where[1]})
    return _Message["Address"](uds_address={"filename": os.fsdecode(where)})


def _text(where: _Where) -> str:
    if not isinstance(where, tuple):
        return f"unix:{os.fsdecode(where)}"
    return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"
