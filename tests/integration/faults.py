"""Taking things away from a running product and giving them back: backends behind links, a service of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import trio

from tests.world import World, acquainted, unlimited
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.config import SERVICES, Settings
from whispr.errors import WhisprError
from whispr.node import Node

WITHIN_S = 60.0
"""How long anything may take before a test gives up, on a machine that has other things to do."""

_RESET = pack("ii", 1, 0)
"""An SO_LINGER of no time at all: closing sends a reset (tcp(7))."""


class Link:
    """A port that leads to a backend: until it is cut, and again once it is joined."""

    def __init__(
        self, dial: Callable[[], Awaitable[trio.SocketStream]], nursery: trio.Nursery, host: str = "127.0.0.1"
    ) -> None:
        self.port = 0
        self._host = host
        self._dial = dial
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._near: set[trio.SocketStream] = set()

    async def join(self) -> None:
        """Listen, on the same port as before."""
        listeners = await trio.open_tcp_listeners(self.port, host=self._host)
        self.port = listeners[0].socket.getsockname()[1]
        self._scope = trio.CancelScope()
        await self._nursery.start(self._serve, listeners)

    def cut(self) -> None:
        """Refuse connections, and break those there are."""
        self._scope.cancel(reason="the link is cut")

    def reset(self) -> None:
        """Break every connection there is with a TCP reset, and go on accepting."""
        for near in list(self._near):
            near.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            near.socket.close()

    async def _serve(self, listeners: list[trio.SocketListener], *, task_status: Any) -> None:
        with self._scope:
            await trio.serve_listeners(self._pass_on, listeners, task_status=task_status)

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self._near.add(near)
        try:
            async with await self._dial() as far, near, trio.open_nursery() as nursery:
                nursery.start_soon(_copy, near, far, nursery.cancel_scope)
                nursery.start_soon(_copy, far, near, nursery.cancel_scope)
        except OSError:
            await trio.aclose_forcefully(near)
        finally:
            self._near.discard(near)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        async for piece in source:
            await sink.send_all(piece)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # either end has gone, and so goes the other
    scope.cancel(reason="one end has gone")


def linked(
    url: str, nursery: trio.Nursery, near: str = "127.0.0.1", far: str = "127.0.0.1"
) -> tuple[Link, Callable[[], str]]:
    """A link to the backend at `url`, and the URL that leads through it once it is joined.

    It listens at `near` and is reached at `far`.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    path = parts.path if parts.scheme == "unix" else ""
    if parts.scheme == "postgresql" and "host" in query:
        path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"

    async def dial() -> trio.SocketStream:
        if path:
            return await trio.open_unix_socket(path)
        return await trio.open_tcp_stream(parts.hostname or "127.0.0.1", parts.port or 0)

    link = Link(dial, nursery, near)
    user = f"{quote(parts.username, safe='')}@" if parts.username else ""

    def through() -> str:
        scheme = "redis" if parts.scheme == "unix" else parts.scheme
        database = "/0" if parts.scheme == "unix" else parts.path
        return f"{scheme}://{user}{far}:{link.port}{database}"

    return link, through


@dataclass
class Split:
    """A product of two nodes, one of which serves a single service and can be taken away."""

    service: str
    settings: Settings
    backends: tuple[Postgres, Cache, Bus]
    nursery: trio.Nursery
    ports: dict[str, int] = field(default_factory=dict)
    world: World = None  # type: ignore[assignment]  # there once both nodes run
    _alone: trio.CancelScope = field(default_factory=trio.CancelScope)
    _gone: trio.Event = field(default_factory=trio.Event)

    async def give(self) -> None:
        """Start the one service, on the port it had."""
        self._alone, self._gone = trio.CancelScope(), trio.Event()
        update = {
            name: getattr(self.settings, name).model_copy(
                update={"port": port} if name == self.service else {"endpoint": f"127.0.0.1:{port}"}
            )
            for name, port in self.ports.items()
            if name in SERVICES
        }
        node = Node(self.settings.model_copy(update=update), (self.service,), *self.backends)
        await self.nursery.start(self._run, node, self._alone, self._gone)
        self.ports[self.service] = node.ports[self.service]
        self.ports[f"gateway of {self.service}"] = node.ports["gateway"]

    async def take_away(self) -> None:
        """Have the service gone at once: connections break, and new ones are refused."""
        self._alone.cancel(reason="taken away")
        await self._gone.wait()

    async def _run(self, node: Node, scope: trio.CancelScope, gone: trio.Event, *, task_status: Any) -> None:
        try:
            with scope:
                await node.run(task_status=task_status)
        finally:
            gone.set()


@asynccontextmanager
async def open_split(
    service: str, db: Postgres, cache: Cache, bus: Bus, folder: Path, **sections: dict[str, Any]
) -> AsyncIterator[Split]:
    """Run one service in a node of its own and the others in another, and sign everybody up."""
    everywhere = {name: {"port": 0, **sections.get(name, {})} for name in ("gateway", "websocket", *SERVICES)}
    settings = Settings(data_dir=folder, limits=unlimited(), **everywhere)  # type: ignore[arg-type]  # validated
    others = tuple(name for name in SERVICES if name != service)
    async with trio.open_nursery() as nursery:
        split = Split(service, settings, (db, cache, bus), nursery)
        await split.give()
        await split.take_away()  # it was only to find a port for it that is free
        update = {"endpoint": f"127.0.0.1:{split.ports[service]}", "port": 1}
        rest = settings.model_copy(update={service: getattr(settings, service).model_copy(update=update)})
        node = Node(rest, others, db, cache, bus)
        await nursery.start(node.run)
        split.ports |= node.ports
        await split.give()
        async with acquainted(settings, db, split.ports) as world:
            world.node = node
            split.world = world
            yield split
        nursery.cancel_scope.cancel(reason="the test is over")


async def eventually(check: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until `check` returns something true; what is UNAVAILABLE meanwhile is not there yet."""
    with trio.fail_after(WITHIN_S):
        while True:
            try:
                found = await check()
            except WhisprError:
                found = None
            if found:
                return found
            await trio.sleep(0.05)
