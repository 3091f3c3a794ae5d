"""The machine that watches rooms for spam: scores what is committed, sanctions beside the path of messages.

`observe` is called with messages after they are announced; it counts and returns (about two microseconds each), so
sending never waits for it. What reaches the limit is sanctioned in one task, under the room's lock.

Several processes. Each scores what it has committed. A sender whose score here has grown by `SHARE_POINTS` is
told of to Redis, which adds up what all processes say and answers with the total; so whoever spreads spam over
processes is found a few messages later. Without Redis each process judges by its own. Two processes that notice
the same burst sanction once: the second finds the first in the audit log.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
import trio
from prometheus_client import Counter

from whispr.conversations import spam
from whispr.conversations.domain import Kind, Message, MessageType
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.sanctions import Sanctions
from whispr.conversations.spam import Scores, Signal, SpamRules
from whispr.errors import WhisprError

SHARE_POINTS = 8.0
"""Points after which the other processes are told."""
DUE_LEN_MAX = 1000
"""Senders that wait to be sanctioned; when more do, the oldest go, and will be noticed again."""
SHARE_LEN_MAX = 1000
"""Senders that wait to be told of; when more do, the newest are not."""
SHARE_S = 0.5
"""How long Redis may take."""

_ADD = """
local time = redis.call('TIME')
local now, points = time[1] * 1000 + math.floor(time[2] / 1000), 0
local leak_per_s = tonumber(ARGV[2])
local known = redis.call('GET', KEYS[1])
if known then
    local had, at = string.match(known, '^(.-):(.+)$')
    points = math.max(0, tonumber(had) - (now - tonumber(at)) / 1000 * leak_per_s)
end
points = points + tonumber(ARGV[1])
local lives_ms = math.ceil(points / leak_per_s * 1000) + 1
redis.call('SET', KEYS[1], string.format('%.3f:%.0f', points, now), 'PX', lives_ms)
return string.format('%.3f', points)
"""
_SHA = hashlib.sha1(_ADD.encode(), usedforsecurity=False).hexdigest()

SANCTIONED = Counter(
    "whispr_spam_sanctions_total", "Sanctions of the machine by what was noticed", ["signal"]
)

log = structlog.get_logger("whispr.spam")


class Shared(Protocol):
    """What is needed of the cache."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script. Raises UNAVAILABLE."""

    async def delete(self, *keys: str) -> int:
        """Remove keys. Raises UNAVAILABLE."""


class SpamWatch:
    """Watches the messages of one process; `run` is its task."""

    def __init__(
        self,
        sanctions: Sanctions,
        announcer: RoomAnnouncer,
        shared: Shared,
        rules: SpamRules,
        *,
        bans: bool,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._sanctions = sanctions
        self._announcer = announcer
        self._shared = shared
        self._scores = Scores(rules)
        self._bans = bans
        self._clock = clock
        self._due: deque[tuple[str, str, Signal]] = deque(maxlen=DUE_LEN_MAX)
        self._to_share: dict[tuple[str, str], None] = {}
        self._some = trio.Event()

    def observe(self, messages: Sequence[Message]) -> None:
        """Score what people have said in rooms."""
        now = self._clock()
        rules = self._scores.rules
        for message in messages:
            if message.kind is not Kind.ROOM or message.message_type == MessageType.SYSTEM:
                continue
            score = self._scores.of(message.conversation_id, message.sender_id, now)
            signal = spam.add(score, message.content, now, rules)
            if signal is not None:
                self._is_due(message.conversation_id, message.sender_id, signal)
            elif score.unshared >= SHARE_POINTS and len(self._to_share) < SHARE_LEN_MAX:
                self._to_share[message.conversation_id, message.sender_id] = None
                self._some.set()

    def _is_due(self, room_id: str, user_id: str, signal: Signal) -> None:
        self._due.append((room_id, user_id, signal))
        self._some.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Share scores and sanction, until cancelled."""
        task_status.started()
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._due or self._to_share:
                while self._due:
                    await self._sanction(*self._due.popleft())
                if self._to_share:
                    await self._share(next(iter(self._to_share)))

    async def _sanction(self, room_id: str, user_id: str, signal: Signal) -> None:
        try:
            done = await self._sanctions.by_machine(room_id, user_id, signal, bans=self._bans)
        except WhisprError as error:
            # What goes on is noticed again.
            log.warning("spam_not_sanctioned", room_id=room_id, user_id=user_id, error=str(error))
            return
        if done is not None:
            SANCTIONED.labels(signal.value).inc()
            log.info("spam_sanctioned", room_id=room_id, user_id=user_id, signal=signal.value)
            self._announcer.sanctioned(room_id, user_id, done)
        with trio.move_on_after(SHARE_S):
            try:
                await self._shared.delete(_key(room_id, user_id))
            except WhisprError:
                log.info("spam_score_not_shared", room_id=room_id)

    async def _share(self, sender: tuple[str, str]) -> None:
        """Tell the other processes of a sender's points, and learn of theirs."""
        del self._to_share[sender]
        now, rules = self._clock(), self._scores.rules
        score = self._scores.of(*sender, now)
        points, score.unshared = score.unshared, 0.0
        if not points:
            return
        with trio.move_on_after(SHARE_S):
            try:
                total = await self._shared.script(_SHA, _ADD, [_key(*sender)], [points, rules.leak_per_s])
            except WhisprError:
                log.info("spam_score_not_shared", room_id=sender[0])
                return
            signal = spam.raise_to(score, float(total), self._clock(), rules)
            if signal is not None:
                self._is_due(*sender, signal)


def _key(room_id: str, user_id: str) -> str:
    return f"whispr:spam:{room_id}:{user_id}"
