"""Who hears a stream by WebRTC: a task per listener, from the offer until they leave or their access ends."""

from __future__ import annotations

from typing import Final

import trio

from whispr.asgi.errors import HttpError
from whispr.errors import Code
from whispr.services.stream.audience import Audience
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.listener import Transport
from whispr.services.stream.webrtc import metrics
from whispr.services.stream.webrtc.broadcast import Broadcast
from whispr.services.stream.webrtc.heard import Heard
from whispr.services.stream.webrtc.http import Request
from whispr.services.stream.webrtc.sessions import Session, Sessions, log_failures
from whispr.webrtc.endpoint import Endpoint
from whispr.webrtc.peer import State

RETRY_S: Final = 2
"""After which who came before the sound may ask again."""


class Listening:
    """WHEP for one process. `run` it before anybody listens."""

    def __init__(self, endpoint: Endpoint, lives: Lives, audience: Audience, sessions: Sessions) -> None:
        self._endpoint = endpoint
        self._lives = lives
        self._audience = audience
        self._sessions = sessions
        self._broadcasts: dict[str, Broadcast] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the listeners' tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def listen(self, request: Request) -> tuple[Session, str]:
        """Begin a listener's session; returns it with our answer.

        Raises as `Audience.listening`, 409 while the stream has no sound here, RESOURCE_EXHAUSTED.
        """
        assert self._nursery is not None, "not running"
        begun: tuple[Session, str] = await self._nursery.start(self._hold, request)
        return begun

    async def _hold(self, request: Request, *, task_status: trio.TaskStatus[tuple[Session, str]]) -> None:
        """Be a listener's task."""
        admission = self._audience.listening(
            request.stream_id, request.shown, Transport.WHEP, request.address, request.user_agent
        )
        async with admission as listener:
            live = self._lives.get(request.stream_id)
            if live is None:
                raise _not_yet()
            session = Session(self._endpoint, request.offer, self._sessions.process)
            broadcast = self._join(live, session)
            try:
                with self._sessions.holding("whep", request.stream_id, session):
                    fanout = broadcast.fanout
                    answer = self._endpoint.answer(
                        session.peer, request.offer, cname=fanout.cname, ssrc=fanout.ssrc
                    )
                    task_status.started((session, answer))
                    with log_failures("whep", request.stream_id):
                        await session.connected.wait()
                        if session.peer.state is State.CONNECTED:
                            metrics.CONNECTING.observe(session.age_s)
                            await Heard(session, broadcast, listener).serve()
            finally:
                session.end(listener.reason or "the stream ended")
                self._leave(broadcast, session)

    def _join(self, live: Live, session: Session) -> Broadcast:
        """Return the stream's fan-out here, begun with its first listener."""
        kept = self._broadcasts.get(live.stream_id)
        if kept is None or kept.live is not live:
            assert self._nursery is not None, "not running"
            kept = self._broadcasts[live.stream_id] = Broadcast(self._endpoint, live)
            self._nursery.start_soon(kept.run)
        kept.sessions.add(session)
        return kept

    def _leave(self, broadcast: Broadcast, session: Session) -> None:
        """End it with its last listener."""
        broadcast.sessions.discard(session)
        if not broadcast.sessions:
            broadcast.stop()
            if self._broadcasts.get(broadcast.live.stream_id) is broadcast:
                del self._broadcasts[broadcast.live.stream_id]


def _not_yet() -> HttpError:
    """Ask again: the draft's answer while a stream has nobody who publishes."""
    headers = {"retry-after": str(RETRY_S)}
    return HttpError(409, Code.FAILED_PRECONDITION, "the stream has no sound yet", "no_source", headers)
