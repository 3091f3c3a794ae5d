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

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog
import trio
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from whispr.adapters.bus import Bus
from whispr.adapters.jetstream_publisher import ANSWER_S, FAILURES, Outgoing, Publisher
from whispr.adapters.jetstream_reader import NANOS, Reader, Stored
from whispr.errors import WhisprError, conflict, unavailable

__all__ = ["JetStream", "Outgoing", "Reader", "Stored", "StreamLimits", "StreamState"]

ABANDONED_S = 30.0
"""After how long without a request the server forgets the consumer of a reader."""
GOODBYE_S = 1.0

_NO_STREAM, _STREAM_EXISTS, _NO_SPACE = 10059, 10058, 10047
"""Error codes of the server (its errors.json)."""

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


class JetStream:
    """JetStream as seen by one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._publisher = Publisher()

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

    async def delete_stream(self, name: str) -> None:
        """Delete a stream and all that is in it; no error when there is none."""
        try:
            await self._ask(f"STREAM.DELETE.{name}")
        except _RefusedError as refused:
            if refused.number != _NO_STREAM:
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
        answers: list[WhisprError | None] = await self._call(
            self._publisher.publish, self._bus.client, messages
        )
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
            await self._made(handle.unsubscribe)  # nats-py has to forget it, whether NATS is away or not
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
        backend = self._bus.backend
        return await backend.limiting.run(lambda: backend.operate(partial(self._made, fn, *args, **kwargs)))

    async def _made(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._bus.bridge.call(fn, *args, **kwargs)
        except FAILURES as error:
            raise unavailable(f"JetStream does not answer ({type(error).__name__})") from error


class _RefusedError(WhisprError):
    """The server's own error, with its number."""

    def __init__(self, what: str, error: Mapping[str, Any]) -> None:
        self.number = error.get("err_code", 0)
        said = f"JetStream refuses {what.partition('.$')[0]}: {error.get('description', 'no reason given')}"
        away = unavailable(said) if error.get("code") == 503 else conflict(said, "jetstream_refused")
        super().__init__(away.code, away.message, away.details)


def _configuration(name: str, subjects: Sequence[str], limits: StreamLimits) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": list(subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": int(limits.age_s * NANOS),
        "max_bytes": limits.bytes_max or -1,
        "duplicate_window": int(limits.duplicates_s * NANOS),
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
            "inactive_threshold": int(ABANDONED_S * NANOS),
        }
    }


def _state_of(info: Mapping[str, Any]) -> StreamState:
    state = info["state"]
    return StreamState(info["created"], state["first_seq"], state["last_seq"], state["bytes"])
