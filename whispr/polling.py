"""Long polls of one node: its sessions, the bus to those of other nodes, and where HTTP reaches them."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.asgi import HttpLimits, HttpServer
from whispr.gateway.longpoll import PATH, Admit, LongPollEndpoint
from whispr.gateway.server import Endpoint
from whispr.realtime.hub import Hub
from whispr.realtime.longpoll.passing import Passing
from whispr.realtime.longpoll.sessions import Sessions
from whispr.realtime.server import ServeHttp
from whispr.realtime.socket import Authenticate

SUBJECT = "whispr.realtime.longpoll"

log = structlog.get_logger("whispr.polling")


class Polling:
    """What answers `/socket/longpoll`, on the gateway's port and on the WebSocket listener's."""

    def __init__(
        self,
        hub: Hub,
        bus: Bus,
        authenticate: Authenticate,
        admit: Admit,
        *,
        origins: Collection[str],
        http: HttpLimits,
    ) -> None:
        self._bus = bus
        self._passing = Passing(Sessions(hub), self._send)
        self._app = LongPollEndpoint(self._passing, authenticate, admit, origins)
        self._server = HttpServer(self._app, http)
        self.endpoint = Endpoint("longpoll", PATH, self._app, answers_origins=True)
        """For the gateway."""

    async def run(self, *, task_status: trio.TaskStatus[ServeHttp] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the sessions until cancelled; reports what serves a connection to the WebSocket listener's port."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._passing.run)
            await nursery.start(self._hear)
            serve: ServeHttp = await nursery.start(self._server.serve_handed)
            task_status.started(serve)

    def _send(self, process: str, data: bytes) -> bool:
        """Send to another process, unless the bus is away: what waits for it would be stale."""
        if self._bus.connected:
            self._bus.publish(f"{SUBJECT}.{process}", data)
        return self._bus.connected

    async def _hear(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._bus.subscribe(f"{SUBJECT}.{self._passing.sessions.process}") as messages:
            task_status.started()
            async for message in messages:
                try:
                    self._passing.hear(message.payload)
                except msgspec.MsgspecError as error:
                    log.warning("longpoll_unreadable", error=str(error))
