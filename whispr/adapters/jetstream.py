"""JetStream on the bus's connection: streams, publishing in order, and reading in order.

Three things, each over plain NATS requests (the JetStream wire API, docs.nats.io/reference/reference-protocols):

* `ensure_stream` makes a stream, or changes it to what is asked.
* `publish` stores messages in the order given. They go out together; each but the first of its stream names the
  id of the one before it (`Nats-Expected-Last-Msg-Id`), so that when one is lost on the way, those behind it
  are refused instead of overtaking it. What is stored already is found by its id and not stored again.
* `read` delivers a stream's messages from a sequence number on, without gaps. The server-side consumer behind
  it is temporary and keeps no acknowledgements: where a reader has come to is for its owner to keep. When
  anything is lost on the way, numbers skip, the server falls silent, or the connection has broken, the reader
  ends with UNAVAILABLE, and its owner opens another from where it was.

NATS 2.10 or later. While NATS is away everything here raises UNAVAILABLE at once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import structlog
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from whispr.adapters.bus import Bus
from whispr.bridge import CancelledByAsyncio
from whispr.errors import WhisprError, conflict, unavailable

ANSWER_S = 5.0
"""How long the server may take to answer a request about streams and consumers."""
HEARTBEAT_S = 2.0
"""How often the server says that it still has our request; two missed ones end a reader."""
EXPIRES_S = 30.0
"""How long the server keeps a request for messages."""
ABANDONED_S = 30.0
"""After how long without a request the server forgets the consumer of a reader."""
READ_LEN_MAX = 256
"""Messages under way to a reader or waiting in it."""
GOODBYE_S = 1.0

_NO_STREAM, _STREAM_EXISTS, _NO_SPACE = 10059, 10058, 10047
_TOO_LARGE = frozenset({10054, 10097})
"""Error codes of the server (its errors.json)."""
_NANOS = 1_000_000_000
_FAILURES = (NatsError, OSError, TimeoutError, CancelledByAsyncio)

_json = msgspec.json.Encoder().encode
_parsed = msgspec.json.Decoder().decode

log = structlog.get_logger("whispr.jetstream")


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much a stream keeps; the oldest goes when it is more. 0 means no limit."""

    age_s: float
    bytes_max: int
    duplicates_s: float
    """How long ids are remembered, by which repeats are found."""
    replicas: int = 1


class StreamState(NamedTuple):
    """What there is in a stream."""

    created: str
    """When; tells an incarnation from a later one of the same name."""
    first_seq: int
    last_seq: int
    bytes: int


class Outgoing(NamedTuple):
    """A message to be stored."""

    stream: str
    subject: str
    message_id: str
    payload: bytes


class Stored(NamedTuple):
    """A message of a stream."""

    subject: str
    payload: bytes
    message_id: str
    seq: int
    """Its number in the stream."""
    pending: int
    """How many more of the reader's subjects were behind it."""


class _PublishAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


_ack = msgspec.json.Decoder(_PublishAck).decode


class JetStream:
    """JetStream as seen by one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._acks = _Acks()

    async def ensure_stream(self, name: str, subjects: Sequence[str], limits: StreamLimits) -> StreamState:
        """Make a stream, or change its limits to these; return what is in it.

        A server without room for `bytes_max` is asked for half of it, and so on down to a sixteenth.
        """
        wanted = _configuration(name, subjects, limits)
        try:
            info = await self._ask(f"STREAM.INFO.{name}")
        except _RefusedError as refused:
            if refused.number != _NO_STREAM:
                raise
            info = await self._created(name, wanted)
        if any(info["config"].get(key) != value for key, value in wanted.items() if key != "max_bytes"):
            info = await self._ask(f"STREAM.UPDATE.{name}", wanted)
        return _state_of(info)

    async def _created(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        least = wanted["max_bytes"] // 16
        while True:
            try:
                info = await self._ask(f"STREAM.CREATE.{name}", wanted)
            except _RefusedError as refused:
                if refused.number == _STREAM_EXISTS:
                    return await self._ask(f"STREAM.UPDATE.{name}", wanted)
                if refused.number != _NO_SPACE or wanted["max_bytes"] // 2 < least or least < 1:
                    raise
                wanted["max_bytes"] //= 2
                log.warning("stream_made_smaller", stream=name, bytes_max=wanted["max_bytes"])
            else:
                log.info("stream_created", stream=name)
                return info

    async def state(self, name: str) -> StreamState | None:
        """Return what is in a stream; None when there is no such stream."""
        try:
            return _state_of(await self._ask(f"STREAM.INFO.{name}"))
        except _RefusedError as refused:
            if refused.number == _NO_STREAM:
                return None
            raise

    async def count(self, name: str, subjects: Sequence[str], after_seq: int) -> int:
        """Return how many messages of these subjects a stream holds after a sequence number."""
        consumer = _consumer(f"count-{secrets.token_hex(6)}", subjects, after_seq + 1)
        info = await self._ask(
            f"CONSUMER.CREATE.{name}.{consumer['config']['name']}", {"stream_name": name} | consumer
        )
        await self._ask(f"CONSUMER.DELETE.{name}.{info['name']}")
        return int(info["num_pending"])

    async def publish(self, messages: Sequence[Outgoing]) -> list[WhisprError | None]:
        """Store messages in this order; return for each None, or why it is not known to be stored.

        All are sent before the first answer comes. An error with reason `event_too_large` is the message's own;
        those behind it in its stream are UNAVAILABLE.
        """
        answers: list[WhisprError | None] = await self._call(self._acks.publish, self._bus.client, messages)
        return answers

    @asynccontextmanager
    async def read(
        self, stream: str, name: str, subjects: Sequence[str], from_seq: int
    ) -> AsyncIterator[Reader]:
        """Read messages of some subjects from a sequence number on, for the length of the block.

        `name` is for whoever looks at the server. Iterate over the reader; it raises UNAVAILABLE, like this,
        when it has to be opened again.
        """
        client = self._bus.client
        consumer = f"{name}-{secrets.token_hex(6)}"
        reader = Reader(self._bus, client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")

        async def pending() -> int:
            return int((await self._ask(f"CONSUMER.INFO.{stream}.{consumer}"))["num_pending"])

        reader.behind = pending
        undo = self._bus.on_up(reader.broken)
        try:
            handle = await self._call(client.subscribe, reader.inbox, cb=reader.deliver)
            try:
                request = {"stream_name": stream} | _consumer(consumer, subjects, from_seq)
                await self._ask(f"CONSUMER.CREATE.{stream}.{consumer}", request)
                yield reader
            finally:
                with trio.move_on_after(GOODBYE_S, shield=True):
                    await self._forget(client, handle, f"CONSUMER.DELETE.{stream}.{consumer}")
        finally:
            undo()

    async def _forget(self, client: Client, handle: Subscription, delete: str) -> None:
        """Take back what a reader left with the server, which forgets it by itself if it cannot be told."""
        try:
            await self._call(handle.unsubscribe)
            if client.is_connected:
                await self._ask(delete)
        except WhisprError as error:
            log.debug("reader_left_behind", error=error.message)

    async def _ask(self, what: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make a request of the JetStream API. Raises `_RefusedError`, or UNAVAILABLE."""
        payload = b"" if request is None else _json(request)
        client = self._bus.client
        answer = await self._call(client.request, f"$JS.API.{what}", payload, timeout=ANSWER_S)
        reply: dict[str, Any] = _parsed(answer.data)
        if error := reply.get("error"):
            raise _RefusedError(what, error)
        return reply

    async def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._bus.bridge.call(fn, *args, **kwargs)
        except _FAILURES as error:
            raise unavailable(f"JetStream does not answer ({type(error).__name__})") from error


class _RefusedError(WhisprError):
    """The server's own error, with its number."""

    def __init__(self, what: str, error: Mapping[str, Any]) -> None:
        self.number = error.get("err_code", 0)
        said = f"JetStream refuses {what.partition('.$')[0]}: {error.get('description', 'no reason given')}"
        away = unavailable(said) if error.get("code") == 503 else conflict(said, "jetstream_refused")
        super().__init__(away.code, away.message, away.details)


class _Acks:
    """Publishes and gathers the answers (asyncio side)."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._attaching = asyncio.Lock()
        self._inbox = ""
        self._numbers = 0
        self._waiting: dict[str, _Gathering] = {}

    async def publish(self, client: Client, messages: Sequence[Outgoing]) -> list[WhisprError | None]:
        """Send all, then wait for all answers; those that do not come within ANSWER_S are UNAVAILABLE."""
        await self._attach(client)
        self._numbers += 1
        key = str(self._numbers)
        gathering = self._waiting[key] = _Gathering(len(messages))
        last: dict[str, str] = {}
        try:
            for n, message in enumerate(messages):
                headers = {"Nats-Msg-Id": message.message_id}
                if message.stream in last:
                    headers["Nats-Expected-Last-Msg-Id"] = last[message.stream]
                last[message.stream] = message.message_id
                try:
                    reply = f"{self._inbox}.{key}.{n}"
                    await client.publish(message.subject, message.payload, reply=reply, headers=headers)
                except _FAILURES as error:
                    gathering.settle(n, _unsent(error))
            await gathering.wait()
        finally:
            del self._waiting[key]
        return gathering.outcomes

    async def _attach(self, client: Client) -> None:
        """Listen for answers, once per client."""
        async with self._attaching:
            if self._client is not client:
                self._inbox = client.new_inbox()
                await client.subscribe(f"{self._inbox}.*.*", cb=self._answered)
                self._client = client

    async def _answered(self, message: Msg) -> None:
        key, _, number = message.subject[len(self._inbox) + 1 :].partition(".")
        gathering = self._waiting.get(key)
        if gathering is not None:  # else nobody waits for it any longer
            gathering.settle(int(number), _outcome(message))


class _Gathering:
    """Answers to messages published together (asyncio side)."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[WhisprError | None] = [unavailable("no answer from JetStream")] * count
        self._missing = set(range(count))
        self._complete = asyncio.Event()
        if not count:
            self._complete.set()

    def settle(self, number: int, outcome: WhisprError | None) -> None:
        """Note one answer."""
        self.outcomes[number] = outcome
        self._missing.discard(number)
        if not self._missing:
            self._complete.set()

    async def wait(self) -> None:
        """Wait until all have come, or have not for too long."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._complete.wait()
        except TimeoutError:
            log.debug("publishes_unanswered", count=len(self._missing))


def _outcome(message: Msg) -> WhisprError | None:
    """Read the answer to a publish."""
    if not message.data:  # 503: no stream listens to the subject
        return unavailable("no stream takes this subject")
    ack = _ack(message.data)
    if ack.error is None:
        return None
    if ack.error.get("err_code") in _TOO_LARGE:
        return conflict(f"JetStream: {ack.error.get('description')}", "event_too_large")
    return unavailable(f"JetStream: {ack.error.get('description')}")


def _unsent(error: Exception) -> WhisprError:
    if type(error).__name__ == "MaxPayloadError":
        return conflict("the message is larger than NATS takes", "event_too_large")
    return unavailable(f"not sent ({type(error).__name__})")


class Reader:
    """Messages of a stream in order, as an async iterator. Made by `JetStream.read`."""

    behind: Callable[[], Awaitable[int]]
    """Asks the server how many messages it has not sent yet. Raises UNAVAILABLE."""

    def __init__(self, bus: Bus, client: Client, next_subject: str) -> None:
        self.inbox = client.new_inbox()
        self._bus = bus
        self._client = client
        self._next_subject = next_subject
        self._items: deque[Stored] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._heard_at = trio.current_time()
        self._asked = 0
        self._number = 0
        self._error: WhisprError | None = None

    def __aiter__(self) -> Reader:
        return self

    async def pending(self) -> int:
        """Return how many messages are still to come out of it. Raises UNAVAILABLE."""
        return await self.behind() + len(self._items)

    async def __anext__(self) -> Stored:
        """Wait for the next message. Raises UNAVAILABLE when the reader has to be opened again."""
        while True:
            await self._ask_for_more()
            if self._items:
                return self._items.popleft()
            if self._error is not None:
                raise self._error
            silent_at = self._heard_at + 2 * HEARTBEAT_S
            with trio.move_on_at(silent_at):
                await self._arrived.park()
            if self._heard_at + 2 * HEARTBEAT_S <= trio.current_time():
                raise unavailable("JetStream has fallen silent")

    def broken(self) -> None:
        """End: messages may have been lost."""
        self._error = self._error or unavailable("the connection to NATS was lost")
        self._arrived.unpark_all()

    async def _ask_for_more(self) -> None:
        """Have one request with the server, while there is room for its messages."""
        if self._asked or self._error is not None or len(self._items) > READ_LEN_MAX // 2:
            await trio.lowlevel.checkpoint()
            return
        self._asked = READ_LEN_MAX // 2
        request = {
            "batch": self._asked,
            "expires": int(EXPIRES_S * _NANOS),
            "idle_heartbeat": int(HEARTBEAT_S * _NANOS),
        }
        self._heard_at = trio.current_time()
        try:
            payload = _json(request)
            await self._bus.bridge.call(self._client.publish, self._next_subject, payload, reply=self.inbox)
        except _FAILURES as error:
            raise unavailable(f"JetStream cannot be asked ({type(error).__name__})") from error

    async def deliver(self, message: Msg) -> None:
        """Take a message from nats-py."""
        self._heard_at = trio.current_time()
        headers = message.headers or {}
        if status := headers.get("Status"):
            self._heed(status, headers)
        else:
            self._take(message, headers)
        self._arrived.unpark()

    def _take(self, message: Msg, headers: Mapping[str, str]) -> None:
        tokens = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, and in front of
        # the stream two more where there are domains (ADR-15), with a random one at the end.
        at = 2 if len(tokens) == 9 else 4
        seq, number, pending = int(tokens[at + 3]), int(tokens[at + 4]), int(tokens[at + 6])
        self._asked = max(0, self._asked - 1)
        self._number += 1
        if number != self._number:
            self._error = self._error or unavailable("messages were lost on the way from JetStream")
        if self._error is None:
            message_id = headers.get("Nats-Msg-Id", "")
            self._items.append(Stored(message.subject, message.data, message_id, seq, pending))

    def _heed(self, status: str, headers: Mapping[str, str]) -> None:
        """Note what the server says of our request (ADR-13): 100 it waits, 408 it has expired, else it is gone."""
        if status == "100":
            return
        self._asked = 0
        if status not in ("404", "408"):
            said = headers.get("Description", "no reason given")
            self._error = self._error or unavailable(f"the reader has ended: {status} {said}")


def _configuration(name: str, subjects: Sequence[str], limits: StreamLimits) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": list(subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": int(limits.age_s * _NANOS),
        "max_bytes": limits.bytes_max or -1,
        "duplicate_window": int(limits.duplicates_s * _NANOS),
        "num_replicas": limits.replicas,
    }


def _consumer(name: str, subjects: Sequence[str], from_seq: int) -> dict[str, Any]:
    """A temporary consumer that acknowledges nothing."""
    return {
        "config": {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, from_seq),
            "filter_subjects": list(subjects),
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(ABANDONED_S * _NANOS),
        }
    }


def _state_of(info: Mapping[str, Any]) -> StreamState:
    state = info["state"]
    return StreamState(info["created"], state["first_seq"], state["last_seq"], state["bytes"])
