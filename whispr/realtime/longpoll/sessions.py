"""The long-poll sessions of one process: opens them, finds them by their tokens, answers requests.

A token is `lp1.<process>.<session>.<signature>`. Only the process that has the session can tell whether it lives, and
knows it by the whole token; the signature tells any other process whether asking is worth it
(`whispr.realtime.longpoll.passes`).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn

import msgspec
import structlog
import trio

from whispr.errors import WhisprError
from whispr.realtime import metrics
from whispr.realtime.addresses import NoProxies, Visit
from whispr.realtime.channel import Session
from whispr.realtime.handshake import Refused
from whispr.realtime.hub import Hub
from whispr.realtime.longpoll.lines import read_lines
from whispr.realtime.longpoll.passes import Passes
from whispr.realtime.longpoll.session import PollSession
from whispr.realtime.serializers import V1, V2
from whispr.realtime.socket import Authenticate

GONE = 410
TOKEN_PREFIX = "lp1."  # noqa: S105  # the kind of token, not a token

log = structlog.get_logger("whispr.longpoll")


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request is answered with, as phoenix.js reads it."""

    status: int
    token: str | None = None
    messages: list[str] | None = None
    reason: str | None = None
    message: str | None = None
    retry_after_ms: int | None = None

    def encode(self) -> bytes:
        """Encode as JSON. What a poll is told always has `token` and `messages`."""
        return msgspec.json.encode(self)


class Place(NamedTuple):
    """Where a session is, as its token says."""

    process: str
    session: str


class Sessions:
    """Those of one process. `run` must be running."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.process = secrets.token_urlsafe(9)
        """What other processes call this one."""
        self.passes = Passes()
        self._sessions: dict[str, PollSession] = {}
        """By their tokens, which have so much of chance in them that the time of a look-up tells nothing."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Own the sessions, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("unreachable: only a cancel ends sleep_forever")

    async def open(
        self,
        version: int,
        admit: Callable[[], Awaitable[Session]],
        authenticate: Authenticate,
        address: str = "",
    ) -> Answer:
        """Open a session for whom `admit` lets in, counted for an address if it is known.

        Raises Refused, what `admit` raises, and RESOURCE_EXHAUSTED past the limits of sockets and connections.
        """
        if self.hub.draining.is_set() or self._nursery is None:
            raise Refused(503, "unavailable", "the server is restarting", 1.0)
        visit = Visit(self.hub.addresses, NoProxies(), address)
        if address:
            visit.arrive()
        try:
            session = await admit()
            await self.hub.seats.take(session.user_id)
        except BaseException:  # whatever stopped us, also a cancel: there is no session to be counted
            visit.end()
            raise
        poller = PollSession(self.hub, session, V2 if version == 2 else V1, authenticate)
        token = self.passes.sign(f"{TOKEN_PREFIX}{self.process}.{secrets.token_urlsafe(12)}")
        self._sessions[token] = poller
        metrics.POLL_SESSIONS.inc()
        self._nursery.start_soon(self._run, token, poller, visit)
        return Answer(GONE, token=token, messages=[])

    async def poll(self, token: str) -> Answer:
        """Answer a GET of a session that is, or was, in this process."""
        session = self._sessions.get(token)
        messages = None if session is None else await session.poll()
        if messages is None:
            return gone()
        return Answer(200 if messages else 204, token=token, messages=messages)

    async def post(self, token: str, body: bytes, *, lines: bool) -> Answer:
        """Answer a POST; `lines` says that the body is one message a line."""
        session = self._sessions.get(token)
        if session is None:
            return gone()
        try:
            messages = read_lines(body, self.hub.limits, lines=lines)
            taken = await session.post(messages)
        except Refused as refused:
            return refusal(refused)
        except WhisprError as error:
            return refusal(Refused(500, error.reason, error.message, error.retry_after_s))
        return Answer(200, token=token, messages=[]) if taken else gone()

    def has(self, token: str) -> bool:
        """Tell whether the token is of a session here that lives."""
        return token in self._sessions

    async def _run(self, token: str, session: PollSession, visit: Visit) -> None:
        try:
            await session.run()
        except Exception:  # one session's failure, ours to find in the log, must not end the others
            log.exception("long-poll session failed")
        finally:
            del self._sessions[token]
            metrics.POLL_SESSIONS.dec()
            self.hub.seats.leave(session.session.user_id)
            visit.end()


def placed(token: str) -> Place | None:
    """Read where a session is, if that is a session's token at all."""
    parts = token.split(".")
    if len(parts) != 4 or not token.startswith(TOKEN_PREFIX) or not token.isascii() or len(token) > 200:
        return None
    if not all(part and part.replace("-", "").replace("_", "").isalnum() for part in parts):
        return None
    return Place(parts[1], parts[2])


def gone() -> Answer:
    """Say that there is no such session, so that the client opens another."""
    return Answer(GONE, messages=[], reason="session_gone")


def refusal(refused: Refused) -> Answer:
    """Word a refusal. phoenix.js tries again after 500 and knows neither 429 nor 503."""
    status = 500 if refused.status in (429, 503) else refused.status
    retry_after_s = refused.retry_after_s
    retry_after_ms = None if retry_after_s is None else round(retry_after_s * 1000)
    return Answer(status, None, [], refused.reason, refused.message, retry_after_ms)
