"""Publishing to JetStream: many messages at once, in order, each answered for. Runs on the asyncio side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError

from whispr.bridge import CancelledByAsyncio
from whispr.errors import WhisprError, conflict, unavailable

ANSWER_S = 5.0
"""How long the server may take to answer a request about streams and consumers, or all publishes of a batch."""

FAILURES = (NatsError, OSError, TimeoutError, CancelledByAsyncio)
"""What nats-py raises when the server is not there, or goes away."""

_TOO_LARGE = frozenset({10054, 10097})
"""Error codes of the server for a message over its limits (its errors.json)."""

log = structlog.get_logger("whispr.jetstream")


class Outgoing(NamedTuple):
    """A message to be stored."""

    stream: str
    subject: str
    message_id: str
    payload: bytes


class _PublishAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


_ack = msgspec.json.Decoder(_PublishAck).decode


class Publisher:
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
                except FAILURES as error:
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
    if isinstance(error, MaxPayloadError):
        return conflict("the message is larger than NATS takes", "event_too_large")
    return unavailable(f"not sent ({type(error).__name__})")
