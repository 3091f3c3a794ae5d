"""WebRTC of one process, put together: the UDP endpoint, those who publish, those who listen, and their HTTP."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.adapters.bus import Bus
from whispr.errors import conflict
from whispr.services.stream.access import Access
from whispr.services.stream.audience import Audience
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.webrtc.http import PATH, WebRtcEndpoints
from whispr.services.stream.webrtc.listening import Listening
from whispr.services.stream.webrtc.publishing import Publishing
from whispr.services.stream.webrtc.sessions import Sessions
from whispr.webrtc.endpoint import Endpoint, Options

__all__ = ["PATH", "WebRtc", "WebRtcSetup"]


@dataclass(frozen=True, slots=True)
class WebRtcSetup:
    """What an operator may choose."""

    host: str = "127.0.0.1"
    """All interfaces if it is empty."""
    port: int = 0
    """0 for a free one."""
    endpoint: Options = field(default_factory=Options)
    origins: Sequence[str] = ()
    """Whose pages may use WHIP and WHEP, beside our own; `*` for all."""
    ice_servers: Sequence[str] = ()
    """STUN and TURN servers that clients are told, such as `turn:turn.example.org?transport=tcp`."""
    turn_secret: str = field(default="", repr=False)
    """That TURN servers share with us (coturn's `static-auth-secret`)."""


class WebRtc:
    """`run` it; requests whose path matches `PATH` go to `endpoints`."""

    def __init__(
        self,
        lives: Lives,
        access: Access,
        audience: Audience,
        setup: WebRtcSetup,
        client_address: Callable[[Scope, Headers], str],
        bus: Bus | None = None,
    ) -> None:
        """`bus`: to other processes, whose sessions clients may ask us for."""
        self._setup = setup
        self.endpoint = Endpoint(setup.endpoint)
        sessions = Sessions()
        self._publishing = Publishing(self.endpoint, lives, access, sessions)
        self._listening = Listening(self.endpoint, lives, audience, sessions)
        self._http = WebRtcEndpoints(
            self._publishing.publish,
            self._listening.listen,
            sessions,
            client_address=client_address,
            origins=setup.origins,
            ice_servers=setup.ice_servers,
            turn_secret=setup.turn_secret,
            bus=bus,
        )

    async def endpoints(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request of WHIP or WHEP (ASGI 3). Raises WhisprError."""
        await self._http(scope, receive, send)

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; reports the UDP port. Raises FAILED_PRECONDITION (port_in_use)."""
        setup = self._setup
        async with trio.open_nursery() as nursery:
            try:
                port: int = await nursery.start(self.endpoint.run, setup.host, setup.port)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    told = f"UDP port {setup.port} is in use: set WHISPR_STREAM_WEBRTC_PORT to another, 0 for any"
                else:
                    told = f"WebRTC cannot listen on {setup.host or '*'}:{setup.port}: {error.strerror}"
                raise conflict(told, "port_in_use") from error
            await nursery.start(self._publishing.run)
            await nursery.start(self._listening.run)
            if self._http.passing is not None:
                await nursery.start(self._http.passing.run)
            task_status.started(port)
