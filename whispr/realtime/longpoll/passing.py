"""Requests of long-poll sessions that are in another process: asked over the bus, at most once.

    asker                                      owner
    Ask(1, asker, token, body…)  ──────────▶   has the session?
                                 ◀──────────   Told(1, ack)                      within ACK_S, else 410
                                 ◀──────────   Told(1, …part), Told(1, part, last)
    Drop(1)                      ──────────▶   only when the client has left: its poll must take nothing

Bodies and answers go in parts that the bus can carry. Nothing is ever asked twice, and an answer that does not come
whole is told to the client as 410: what was in it may be lost with the session, never silently within it. What is
under way is bounded at both ends; one request more is answered as unavailable. A token that no process has signed
(`whispr.realtime.longpoll.passes`) is answered with 410 and asks nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NoReturn

import msgspec
import trio

from whispr.realtime import metrics
from whispr.realtime.handshake import Refused
from whispr.realtime.longpoll.sessions import Answer, Sessions, gone, placed, refusal

ACK_S = 2.0
"""Within this a living process says that it has the request."""

_SLACK_S = 5.0
_BODY_S = 10.0  # for the parts of a body to come
_PART_BYTES = 512 * 1024
_UNDER_WAY_MAX = 10_000

Send = Callable[[str, bytes], bool]
"""Send to a process, by its name; False when the bus is away."""


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """A request, or a part of one. A POST has a body, if an empty one."""

    id: int
    asker: str
    token: str
    body: bytes | None = None
    lines: bool = True
    last: bool = True


class Told(msgspec.Struct, tag="told", frozen=True):
    """A part of an answer; the first says that there will be one."""

    id: int
    number: int
    part: bytes = b""
    last: bool = False


class Drop(msgspec.Struct, tag="drop", frozen=True):
    """Nobody waits for that answer any more."""

    id: int
    asker: str


_decode = msgspec.msgpack.Decoder(Ask | Told | Drop).decode
_encode = msgspec.msgpack.Encoder().encode


class _Waiting:
    """An answer on its way to here."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.acknowledged = trio.Event()
        self.done = trio.Event()
        self.broken = False

    def take(self, told: Told) -> None:
        """Take a part; one that is missing spoils all of it."""
        self.broken = self.broken or told.number != len(self.parts)
        self.parts.append(told.part)
        self.acknowledged.set()
        if told.last or self.broken:
            self.done.set()


class Passing:
    """Answers requests of any session: here, or by asking the process that has it. `run` must be running."""

    def __init__(self, sessions: Sessions, send: Send | None = None) -> None:
        self.sessions = sessions
        self.send = send
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._asked: dict[tuple[str, int], trio.CancelScope] = {}
        self._bodies: dict[tuple[str, int], bytearray] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Own the sessions and what others ask, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self.sessions.run)
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("unreachable: only a cancel ends sleep_forever")

    async def poll(self, token: str) -> bytes:
        """Answer a GET with JSON."""
        return await self._request(token, None, lines=True)

    async def post(self, token: str, body: bytes, *, lines: bool) -> bytes:
        """Answer a POST with JSON."""
        return await self._request(token, body, lines=lines)

    async def _request(self, token: str, body: bytes | None, *, lines: bool) -> bytes:
        place = placed(token)
        if place is None:
            return gone().encode()
        if place.process == self.sessions.process or self.send is None:
            return (await self._own(token, body, lines=lines)).encode()
        if not self.sessions.passes.may_be_ours(token):
            metrics.POLLS_FORGED.inc()
            return gone().encode()
        metrics.POLLS_PASSED.inc()
        return await self._ask(place.process, token, body, lines=lines)

    async def _own(self, token: str, body: bytes | None, *, lines: bool) -> Answer:
        if body is None:
            return await self.sessions.poll(token)
        return await self.sessions.post(token, body, lines=lines)

    # ── asking ──

    async def _ask(self, process: str, token: str, body: bytes | None, *, lines: bool) -> bytes:
        if len(self._waiting) >= _UNDER_WAY_MAX:
            return refusal(Refused(503, "unavailable", "too many requests are under way", 1.0)).encode()
        number = next(self._ids)
        waiting = self._waiting[number] = _Waiting()
        try:
            if not self._send_ask(process, number, token, body, lines=lines):
                return await self._without_bus(token, body)
            with trio.move_on_after(ACK_S):
                await waiting.acknowledged.wait()
            if waiting.acknowledged.is_set():
                limits = self.sessions.hub.limits
                with trio.move_on_after(limits.poll_s + limits.push_s + _SLACK_S):
                    await waiting.done.wait()
        finally:
            del self._waiting[number]
            if not waiting.done.is_set():
                self._tell(process, Drop(number, self.sessions.process))
        whole = waiting.done.is_set() and not waiting.broken
        return b"".join(waiting.parts) if whole else gone().encode()

    async def _without_bus(self, token: str, body: bytes | None) -> bytes:
        """Have a poll come again: another connection may lead to the right process, and the bus comes back."""
        if body is not None:
            return refusal(Refused(503, "unavailable", "the bus is away", 1.0)).encode()
        await trio.sleep(1.0)
        return Answer(204, token=token, messages=[]).encode()

    def _send_ask(self, process: str, number: int, token: str, body: bytes | None, *, lines: bool) -> bool:
        own = self.sessions.process
        if body is None:
            return self._tell(process, Ask(number, own, token))
        starts = range(0, max(1, len(body)), _PART_BYTES)
        return all(
            self._tell(
                process,
                Ask(number, own, token, body[at : at + _PART_BYTES], lines, at + _PART_BYTES >= len(body)),
            )
            for at in starts
        )

    def _tell(self, process: str, message: Ask | Told | Drop) -> bool:
        return self.send is not None and self.send(process, _encode(message))

    # ── answering ──

    def hear(self, data: bytes) -> None:
        """Take in what another process asks or tells this one. Raises msgspec.MsgspecError."""
        message = _decode(data)
        if isinstance(message, Told):
            waiting = self._waiting.get(message.id)
            if waiting is not None:
                waiting.take(message)
        elif isinstance(message, Drop):
            self._drop((message.asker, message.id))
        else:
            self._asked_for(message)

    def _drop(self, key: tuple[str, int]) -> None:
        self._bodies.pop(key, None)
        scope = self._asked.get(key)
        if scope is not None:
            scope.cancel(reason="the client of another process has left")

    def _asked_for(self, ask: Ask) -> None:
        key = (ask.asker, ask.id)
        if placed(f"lp1.{ask.asker}.x.x") is None or self._nursery is None:
            return
        refused = None if self.sessions.has(ask.token) else gone()
        if len(self._asked) + len(self._bodies) >= _UNDER_WAY_MAX:
            refused = refusal(Refused(503, "unavailable", "too many requests are under way", 1.0))
        if refused is not None:
            self._bodies.pop(key, None)
            self._tell(ask.asker, Told(ask.id, 0, refused.encode(), last=True))
            return
        body = ask.body
        if body is not None and (not ask.last or key in self._bodies):
            whole = self._bodies.get(key)
            if whole is None:
                whole = self._bodies[key] = bytearray()
                self._nursery.start_soon(self._forget, key, whole)
            whole += body
            if len(whole) > self.sessions.hub.limits.poll_body_bytes:
                del self._bodies[key]
                return
            if not ask.last:
                return
            body = bytes(self._bodies.pop(key))
        self._nursery.start_soon(self._answer, key, ask, body)

    async def _forget(self, key: tuple[str, int], body: bytearray) -> None:
        """Forget a body whose asker has died over it."""
        await trio.sleep(_BODY_S)
        if self._bodies.get(key) is body:
            del self._bodies[key]

    async def _answer(self, key: tuple[str, int], ask: Ask, body: bytes | None) -> None:
        self._tell(ask.asker, Told(ask.id, 0))
        with trio.CancelScope() as self._asked[key]:
            try:
                data = (await self._own(ask.token, body, lines=ask.lines)).encode()
            finally:
                del self._asked[key]
            for number, at in enumerate(range(0, len(data), _PART_BYTES), 1):
                part = data[at : at + _PART_BYTES]
                self._tell(ask.asker, Told(ask.id, number, part, last=at + _PART_BYTES >= len(data)))
