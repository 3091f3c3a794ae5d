"""Very many subjects of the bus behind one reader, each with a bound of its own.

Theory of operation. A node hears some 100,000 subjects, one for each topic with a member here, and most are silent
most of the time. nats-py gives every subscription a queue and a task; here a subscription is a few slots, and what
arrives for any of them goes straight into one queue, in the order in which it came.

A subject that brings more than its reader takes must not push out the others. So each may have `SUBJECT_LEN_MAX`
messages waiting; when it has, what comes for it is dropped until the reader has come past a `Missed` that stands in
the queue where the first loss was. Its reader then knows of whom to ask for the rest, and when.

`add` and `remove` never wait. One task tells the server of whatever has changed, and has it answer once: a thousand
subjects that are wanted at the same time cost one round trip, and `in_force` returns to all who wait for them. A
removed subject stays for `LINGER_S`: who comes back soon finds it in force.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from whispr.bridge import Bridge, CancelledByAsyncio

SUBJECT_LEN_MAX = 1_000
"""Messages of one subject that wait for the reader; more are dropped, and stand as one `Missed`."""

FEED_LEN_MAX = 50_000
"""Messages of all subjects that wait for the reader; beyond, whatever comes is dropped in the same way."""

LINGER_S = 5.0
"""How long a subject that nobody wants any more is still heard."""

CONFIRM_S = 2
"""How long the server may take to confirm what was asked of it, before those who wait are let go."""

TOGETHER = 2_000
"""Subjects told to the server between two turns of other tasks."""

FAILURES = (NatsError, OSError, TimeoutError, CancelledByAsyncio)

log = structlog.get_logger("whispr.bus")


class Message(NamedTuple):
    """What a subscriber gets."""

    subject: str
    payload: bytes


class Missed(NamedTuple):
    """Stands for messages of a subject that were lost between what came before and what comes after."""

    subject: str


class _Sink:
    """Where nats-py puts messages: what it takes for the queue of a subscription."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take

    def put_nowait(self, message: Msg) -> None:
        self._take(message.subject, message.data)


class _Direct:
    """What nats-py takes for a subscription: without a queue, a task and a limit of its own."""

    __slots__ = ("_id", "_pending_queue", "_pending_size", "_received", "_subject")

    _queue = ""
    _max_msgs = 0
    _pending_bytes_limit = 0
    _jsi = _future = _wait_for_msgs_task = _message_iterator = _pending_next_msgs_calls = None

    def __init__(self, number: int, subject: str, sink: _Sink) -> None:
        self._id = number
        self._subject = subject
        self._pending_queue = sink
        self._pending_size = self._received = 0


class LeanClient(Client):
    """nats-py's client, with subscriptions that cost little and publishing in one go (asyncio side).

    It does not go deaf, either. nats-py's own ends its reading, and nothing but that, at anything it does not expect,
    such as the answer to a PING whose asker has given up. It would then count as connected for minutes.
    """

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected:
            await self._process_op_err(ConnectionError("reading has ended"))

    async def publish_queued(self, queue: deque[Message]) -> None:
        """Publish all that is queued while the server is there. Subjects and sizes have been checked."""
        while queue and self.is_connected:
            subject, payload = queue.popleft()
            await self._send_command(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def hear(self, subjects: Iterable[str], sink: _Sink) -> dict[str, int]:
        """Subscribe to subjects; return the number of each subscription. They are restored by a reconnect."""
        numbers = {}
        for subject in subjects:
            self._sid += 1
            numbers[subject] = self._sid
            self._subs[self._sid] = _Direct(self._sid, subject, sink)  # type: ignore[assignment]  # has what is used of one
            await self._send_command(b"SUB %s  %d\r\n" % (subject.encode(), self._sid))
        await self._flush_pending()
        return numbers

    async def unhear(self, numbers: Iterable[int]) -> None:
        """End subscriptions."""
        for number in numbers:
            self._subs.pop(number, None)
            await self._send_command(b"UNSUB %d\r\n" % number)
        await self._flush_pending()


class Feed:
    """Messages of the subjects that are wanted now. Made by `Bus.feed`; one task takes from it."""

    def __init__(
        self, bridge: Bridge, *, linger_s: float = LINGER_S, away: Callable[[], bool] = lambda: False
    ) -> None:
        """`away` tells of a server that is connected and does not answer."""
        self._bridge = bridge
        self._away = away
        self._linger_s = linger_s
        self._sink = _Sink(self._arrived)
        self._client: LeanClient | None = None
        self._numbers: dict[str, int] = {}
        """Subject → what the client of now calls its subscription."""
        self._wanted: set[str] = set()
        self._new: dict[str, None] = {}
        """Wanted, and the server has not been told."""
        self._unconfirmed: dict[str, trio.Event] = {}
        self._ended: list[int] = []
        self._lingering: dict[str, float] = {}
        """Unwanted → when to tell the server, the first first."""
        self._changed = trio.Event()
        self._items: deque[Message | Missed] = deque()
        self._waiting: dict[str, int] = {}
        """Subject → its items in the queue."""
        self._losing: set[str] = set()
        self._some = trio.Event()
        self.lost = 0
        """Messages dropped because the reader lagged."""

    @property
    def subjects(self) -> int:
        """Subjects heard now, lingering ones too."""
        return len(self._numbers)

    def add(self, subject: str) -> None:
        """Want a subject. Nothing happens when it is wanted already."""
        if subject in self._wanted:
            return
        self._wanted.add(subject)
        if self._lingering.pop(subject, None) is None:
            self._new[subject] = None
            self._unconfirmed[subject] = trio.Event()
            self._changed.set()

    def remove(self, subject: str) -> None:
        """Want it no more; after `LINGER_S` it is not heard."""
        self._wanted.discard(subject)
        self._lingering[subject] = trio.current_time() + self._linger_s
        if len(self._lingering) == 1:
            self._changed.set()

    async def in_force(self, subject: str) -> None:
        """Return once what others publish arrives; at once while the server is away.

        A server that does not confirm it in time is not waited for; a `Missed` follows when it has.
        """
        event = self._unconfirmed.get(subject)
        there = self._client is not None and self._client.is_connected and not self._away()
        if event is not None and there:
            await event.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def take(self) -> deque[Message | Missed]:
        """Return all that waits, in the order of its arrival, once there is something."""
        await self._some.wait()
        self._some = trio.Event()
        items, self._items = self._items, deque()
        self._waiting.clear()
        self._losing.clear()
        return items

    # For the bus

    async def attach(self, client: LeanClient | None) -> None:
        """Tell a new client of all subjects. What the same one knows is restored when it reconnects."""
        if client is not None and client is not self._client:
            self._client = client
            await self._tell(client)

    def detach(self) -> None:
        """The client has ended: the next one is told of everything, and nobody waits until then."""
        self._client = None
        self._numbers, self._ended = {}, []
        self._new = dict.fromkeys([*self._wanted, *self._lingering])
        self._release(list(self._unconfirmed))

    async def close(self) -> None:
        """Want nothing any more."""
        client, self._client = self._client, None
        if client is not None and self._numbers:
            try:
                await self._bridge.call(client.unhear, list(self._numbers.values()))
            except FAILURES as error:
                log.debug("bus_unsubscribe_failed", error=type(error).__name__)

    def confirmed(self) -> None:
        """The server has read all that was sent to it."""
        self._release([subject for subject in self._unconfirmed if subject not in self._new])

    async def run(self) -> None:
        """Tell the server what changes, until cancelled."""
        while True:
            due = next(iter(self._lingering.values()), float("inf"))
            with trio.CancelScope(deadline=due):
                await self._changed.wait()
            self._changed = trio.Event()
            self._end_lingering()
            client = self._client
            if client is not None:
                await self._tell(client)
                await self._confirm(client)
            self._release(list(self._unconfirmed))  # what the server does not know it is told when it is back

    # Telling the server

    def _end_lingering(self) -> None:
        """Forget the subjects that nobody has wanted for a while."""
        now = trio.current_time()
        for subject, until in list(self._lingering.items()):
            if until > now:
                break
            del self._lingering[subject]
            self._new.pop(subject, None)
            if (number := self._numbers.pop(subject, None)) is not None:
                self._ended.append(number)

    async def _tell(self, client: LeanClient) -> None:
        """Send what is new and what has ended. While the server is away nats-py keeps it."""
        try:
            if self._ended:
                ended, self._ended = self._ended, []
                await self._bridge.call(client.unhear, ended)
            while self._new and client is self._client:
                some = [subject for subject, _ in zip(self._new, range(TOGETHER), strict=False)]
                for subject in some:
                    del self._new[subject]
                self._numbers |= await self._bridge.call(client.hear, some, self._sink)
        except FAILURES as error:
            log.info("bus_feed_waits", error=type(error).__name__)

    async def _confirm(self, client: LeanClient) -> None:
        """Have the server answer, and let those go who wait for it. Should it be slow they miss something."""
        asked = [subject for subject in self._unconfirmed if subject not in self._new]
        late = False
        while asked and client is self._client and client.is_connected:
            try:
                await self._bridge.call(client.flush, CONFIRM_S)
            except FAILURES as error:
                log.info("bus_slow", error=type(error).__name__)
                late = True
                self._release(asked)
            else:
                self._release(asked)
                for subject in asked if late else ():
                    self._lose(subject)
                return

    def _release(self, subjects: Iterable[str]) -> None:
        """Let those go who wait for these subjects."""
        for subject in subjects:
            if (event := self._unconfirmed.pop(subject, None)) is not None:
                event.set()

    # Hearing

    def _arrived(self, subject: str, payload: bytes) -> None:
        waiting = self._waiting.get(subject, 0)
        if waiting >= SUBJECT_LEN_MAX or len(self._items) >= FEED_LEN_MAX or subject in self._losing:
            self.lost += 1
            self._lose(subject)
            return
        self._waiting[subject] = waiting + 1
        self._items.append(Message(subject, payload))
        self._some.set()

    def _lose(self, subject: str) -> None:
        """Note a loss of this subject, once until the reader has come to it."""
        if subject not in self._losing:
            self._losing.add(subject)
            self._items.append(Missed(subject))
            self._some.set()
