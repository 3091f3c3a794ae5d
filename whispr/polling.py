"""Long polls of one node: its sessions, the bus to those of other nodes, and where HTTP reaches them.

The key under which all processes sign tokens is in Redis, put there by whichever came first and asked for by each now
and then. What a process knows it keeps, so that a Redis which has forgotten is told again.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.asgi import HttpLimits, HttpServer
from whispr.errors import WhisprError
from whispr.gateway.longpoll import PATH, Admit, LongPollEndpoint
from whispr.gateway.server import Endpoint
from whispr.realtime.addresses import Proxies
from whispr.realtime.hub import Hub
from whispr.realtime.longpoll.passes import KEY_BYTES
from whispr.realtime.longpoll.passing import Passing
from whispr.realtime.longpoll.sessions import Sessions
from whispr.realtime.server import ServeHttp
from whispr.realtime.socket import Authenticate

SUBJECT = "whispr.realtime.longpoll"
KEY = "whispr:longpoll:key"
AGREE_EVERY_S = 30.0
AGREE_AGAIN_S = 1.0
"""After Redis was away."""
AGREE_S = 1.0
"""How long a question after the key may take."""

log = structlog.get_logger("whispr.polling")


class Commands(Protocol):
    """What is needed of the cache."""

    async def command(self, *words: bytes | str | float) -> Any:
        """Run a command. Raises UNAVAILABLE when the cache is away."""


class Polling:
    """What answers `/socket/longpoll`, on the gateway's port and on the WebSocket listener's."""

    def __init__(
        self,
        hub: Hub,
        bus: Bus,
        cache: Commands,
        authenticate: Authenticate,
        admit: Admit,
        *,
        origins: Collection[str],
        http: HttpLimits,
        proxies: Proxies | None = None,
    ) -> None:
        self._bus = bus
        self._cache = cache
        self._passing = Passing(Sessions(hub), self._send)
        self._app = LongPollEndpoint(self._passing, authenticate, admit, origins, proxies)
        self._server = HttpServer(self._app, http)
        self.endpoint = Endpoint("longpoll", PATH, self._app, answers_origins=True)
        """For the gateway."""

    async def run(self, *, task_status: trio.TaskStatus[ServeHttp] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the sessions until cancelled; reports what serves a connection to the WebSocket listener's port."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._passing.run)
            await nursery.start(self._hear)
            await nursery.start(self._agree)
            serve: ServeHttp = await nursery.start(self._server.serve_handed)
            task_status.started(serve)

    def _send(self, process: str, data: bytes) -> bool:
        """Send to another process, unless the bus is away: what waits for it would be stale."""
        if self._bus.connected:
            self._bus.publish(f"{SUBJECT}.{process}", data)
        return self._bus.connected

    async def _agree(self, *, task_status: trio.TaskStatus[None]) -> NoReturn:
        """Learn of the key that all processes share, if need be by giving out one."""
        passes = self._passing.sessions.passes
        while True:
            agreed = False
            with trio.move_on_after(AGREE_S), suppress(WhisprError):
                await self._cache.command("SET", KEY, passes.key, "NX")
                found = await self._cache.command("GET", KEY)
                agreed = isinstance(found, bytes) and len(found) == KEY_BYTES
                if agreed:
                    passes.share(found)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(AGREE_EVERY_S if agreed else AGREE_AGAIN_S)

    async def _hear(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._bus.subscribe(f"{SUBJECT}.{self._passing.sessions.process}") as messages:
            task_status.started()
            async for message in messages:
                try:
                    self._passing.hear(message.payload)
                except msgspec.MsgspecError as error:
                    log.warning("longpoll_unreadable", error=str(error))
