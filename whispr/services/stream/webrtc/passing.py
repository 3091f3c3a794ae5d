"""Requests on WebRTC sessions that are in another process: asked of it over the bus, at most once.

    asker                                                       owner
    Ask(1, asker, …) on whispr.streams.webrtc.<owner>  ──▶      has the session?
                     on whispr.streams.webrtc.<asker>  ◀──      Told(1, status, …) within ANSWER_S, else 404

A session's URL begins with the name of its process, so nobody else is asked; what allows to act on it is the rest of
the URL, which nobody guesses, and which the owner looks at as if it had been asked itself. A process that has gone
answers nothing, and its sessions have gone with it. What is under way is bounded at both ends: one request more is
unavailable at the asker's, and goes unanswered at the owner's. Anybody can invent the name of a process, for which
the asker waits in vain: processes that nothing was ever heard of have few of these places, and the others theirs.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
import trio
from google.rpc.error_details_pb2 import ErrorInfo

from whispr.adapters.bus import Bus
from whispr.asgi.errors import HttpError
from whispr.errors import DOMAIN, Code, WhisprError, not_found, unavailable
from whispr.services.stream.webrtc.sessions import PROCESS_CHARS
from whispr.webrtc.sdp import OFFER_BYTES_MAX

SUBJECT: Final = "whispr.streams.webrtc"
ANSWER_S: Final = 3.0
UNDER_WAY_MAX: Final = 256
STRANGERS_MAX: Final = 32
"""Requests under way to processes that were never heard of."""
KNOWN_MAX: Final = 1024
"""Processes remembered; those not heard of longest are forgotten first."""
RETRY_S: Final = 1.0

log = structlog.get_logger("whispr.stream.webrtc")


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """A request on a session."""

    id: int
    asker: str
    path: tuple[str, str, str]
    """Protocol, stream and session."""
    method: str
    condition: str
    """Its If-Match."""
    body: str


class Told(msgspec.Struct, tag="told", frozen=True):
    """Its answer, or, with a code, its error."""

    id: int
    status: int
    headers: dict[str, str]
    body: str
    code: int = 0
    reason: str = ""


Answer = Callable[[Ask], Awaitable[Told]]
"""Acts on a session of this process. Raises WhisprError."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ask | Told).decode


class Passing:
    """Asks other processes, and answers them. `run` must be running."""

    def __init__(self, bus: Bus, process: str, answer: Answer) -> None:
        self._bus = bus
        self._process = process
        self._answer = answer
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[trio.Event, list[Told]]] = {}
        self._answering = 0
        self._known: OrderedDict[str, None] = OrderedDict()
        """Processes that have asked, or answered."""
        self._of_strangers = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear what others ask and tell, until cancelled."""
        subject = f"{SUBJECT}.{self._process}"
        async with self._bus.subscribe(subject) as messages, trio.open_nursery() as nursery:
            task_status.started()
            async for message in messages:
                try:
                    said = _decode(message.payload)
                except msgspec.MsgspecError as error:
                    log.warning("webrtc_unreadable", error=str(error))
                    continue
                if isinstance(said, Told):
                    self._told(said)
                elif self._answering < UNDER_WAY_MAX and _is_process(said.asker):
                    self._answering += 1
                    self._know(said.asker)
                    nursery.start_soon(self._answer_to, said)

    def owner(self, session_id: str) -> str | None:
        """Return the other process whose session it is by its name; None for ours, and for no name of a session."""
        owner = session_id[:PROCESS_CHARS]
        return owner if _is_process(owner) and owner != self._process else None

    async def ask(
        self, owner: str, path: tuple[str, str, str], method: str, condition: str = "", body: str = ""
    ) -> Told:
        """Have the owner act. Raises what it raises, NOT_FOUND when it has gone, UNAVAILABLE."""
        stranger = owner not in self._known
        full = len(self._waiting) >= UNDER_WAY_MAX or (stranger and self._of_strangers >= STRANGERS_MAX)
        if full or not self._bus.connected:
            raise unavailable("the session is on another node, which cannot be asked now", RETRY_S)
        number = next(self._ids)
        there, answers = self._waiting[number] = trio.Event(), list[Told]()
        self._of_strangers += stranger
        try:
            ask = Ask(number, self._process, path, method, condition, body)
            self._bus.publish(f"{SUBJECT}.{owner}", _encode(ask))
            with trio.move_on_after(ANSWER_S):
                await there.wait()
        finally:
            self._of_strangers -= stranger
            del self._waiting[number]
        if not answers:
            raise not_found("session", path[2])
        self._know(owner)
        _raise_for(answers[0])
        return answers[0]

    def _know(self, process: str) -> None:
        self._known[process] = None
        self._known.move_to_end(process)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _told(self, told: Told) -> None:
        if told.id in self._waiting:
            there, answers = self._waiting[told.id]
            answers.append(told)
            there.set()

    async def _answer_to(self, ask: Ask) -> None:
        try:
            if len(ask.body) > OFFER_BYTES_MAX:
                return  # no asker of ours lets that through
            try:
                told = await self._answer(ask)
            except WhisprError as error:
                status = error.status if isinstance(error, HttpError) else 0
                told = Told(ask.id, status, {}, error.message, error.code.value, error.reason)
            self._bus.publish(f"{SUBJECT}.{ask.asker}", _encode(told))
        except Exception:
            log.exception("webrtc_answer_failed", method=ask.method)  # the asker's client is told 404
        finally:
            self._answering -= 1


def _is_process(name: str) -> bool:
    return len(name) == PROCESS_CHARS and name.isascii() and name.isalnum()


def _raise_for(told: Told) -> None:
    """Raise the error that an owner tells of, if it does."""
    if not told.code:
        return
    if told.status:
        raise HttpError(told.status, Code(told.code), told.body, told.reason)
    raise WhisprError(Code(told.code), told.body, [ErrorInfo(reason=told.reason, domain=DOMAIN)])
