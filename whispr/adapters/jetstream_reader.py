"""Reading a stream of JetStream in order, without gaps, or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import msgspec
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg

from whispr.adapters.bus import Bus
from whispr.adapters.jetstream_publisher import FAILURES
from whispr.errors import WhisprError, unavailable

HEARTBEAT_S = 2.0
"""How often the server says that it still has our request; two missed ones end a reader."""
EXPIRES_S = 30.0
"""How long the server keeps a request for messages."""
READ_LEN_MAX = 128
"""Messages under way to a reader or waiting in it."""

NANOS = 1_000_000_000
_json = msgspec.json.Encoder().encode


class Stored(NamedTuple):
    """A message of a stream."""

    subject: str
    payload: bytes
    message_id: str
    seq: int
    """Its number in the stream."""
    pending: int
    """How many more of the reader's subjects were behind it."""


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

    async def gathered(self) -> list[Stored]:
        """Wait for messages, and return all that have come: one turn of the loop for them, not one each."""
        found = [await anext(self), *self._items]
        self._items.clear()
        return found

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
            "expires": int(EXPIRES_S * NANOS),
            "idle_heartbeat": int(HEARTBEAT_S * NANOS),
        }
        self._heard_at = trio.current_time()
        try:
            payload = _json(request)
            await self._bus.bridge.call(self._client.publish, self._next_subject, payload, reply=self.inbox)
        except FAILURES as error:
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
