"""People who talk at a steady pace by WebSocket, gRPC and REST, those who read along, and the books they keep.

A message is sent again with the same client_id until it is acknowledged, as a client does; every attempt is counted
by how it ended. An attempt hangs when nobody has said anything after `PATIENCE_S`, twice the deadline of a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import trio

from tests.chaos.rig import Rig
from tests.integration.following import Follower
from whispr.errors import Code, WhisprError, unavailable
from whispr.realtime.client import ChannelClosed, ClientChannel, Disconnected, Refused, open_phoenix
from whispr.rpc.channel import open_channel
from whispr.v1.messaging_grpc import MessagingServiceStub
from whispr.v1.messaging_pb2 import SendMessageRequest

CALL_S = 5.0
"""The deadline that gRPC callers set; the product's own for the others is the same."""
PATIENCE_S = 12.0
AGAIN_S = 0.2
"""Pause before another connection."""
STREAK = 4
"""Acknowledged messages in a row, of everybody, after which service has resumed."""

CLEAN = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.CANCELLED}
"""Errors that say: not now."""
CLEAN_REASONS = {"unavailable", "deadline_exceeded", "timeout", "rate_limited", "aborted"}
"""The same, as a socket says it."""

NOT_YET = "the token is not valid yet"
"""What a server says whose clock is before the time of issue: it must (RFC 7519 section 4.1.5)."""


@dataclass
class Counts:
    """What became of attempts."""

    tried: int = 0
    failed: int = 0
    """Refused clearly, or the connection was lost."""
    unclean: int = 0
    """Failed in a way that no client can act on."""
    retried: int = 0
    hung: int = 0
    said: Counter[str] = field(default_factory=Counter)
    """What failures said."""

    def since(self, before: Counts) -> Counts:
        """The difference."""
        return Counts(
            self.tried - before.tried,
            self.failed - before.failed,
            self.unclean - before.unclean,
            self.retried - before.retried,
            self.hung - before.hung,
            self.said - before.said,
        )

    def copy(self) -> Counts:
        """As it is now."""
        return Counts(self.tried, self.failed, self.unclean, self.retried, self.hung, self.said.copy())


class Send(Protocol):
    """Sends a message; returns its seq. Raises WhisprError."""

    def __call__(self, client_id: str) -> Awaitable[int]: ...  # pragma: no cover


@dataclass
class Talker:
    """Somebody who sends numbered messages to a conversation at a pace."""

    rig: Rig
    name: str
    kind: str
    token: str
    conversation_id: str
    period_s: float
    counts: Counts
    may_talk: trio.Event
    acked: dict[str, int] = field(default_factory=dict)
    """client_id → seq."""
    streak: int = 0
    streak_began: float = 0.0
    idle: bool = True
    _number: int = 0
    _again: bool = False

    async def run(self) -> None:
        """Talk until cancelled."""
        due = trio.current_time()
        while True:
            scope = trio.CancelScope(deadline=trio.current_time() + PATIENCE_S)
            with scope:
                try:
                    async with CLIENTS[self.kind](self) as send:
                        scope.deadline = float("inf")
                        while True:
                            due = max(due + self.period_s, trio.current_time())
                            await trio.sleep_until(due)
                            await self.say(send)
                except* WhisprError as group:
                    for error in leaves(group):
                        self._failed(error)
            if scope.cancelled_caught:
                self._hung("nobody answered a connection")
            self.idle = True
            await trio.sleep(AGAIN_S)

    async def say(self, send: Send) -> None:
        """Attempt to send the next message, or the last one again."""
        while not self.may_talk.is_set():
            self.idle = True
            await self.may_talk.wait()
        self.idle = False
        client_id = f"{self.name}-{self._number}"
        self.counts.tried += 1
        self.counts.retried += self._again
        self._again = True
        with trio.move_on_after(PATIENCE_S) as patience:
            try:
                seq = await send(client_id)
            except (Refused, ChannelClosed) as error:
                self._failed(error)
                if isinstance(error, ChannelClosed):
                    raise  # join again
                return
            except Disconnected:
                raise
            except WhisprError as error:
                self._failed(error)
                return
            self.acked[client_id] = seq
            self._again = False
            self._number += 1
            self.streak += 1
            if self.streak == 1:
                self.streak_began = trio.current_time()
        if patience.cancelled_caught:
            self._hung("nobody answered a message")
        self.idle = True

    def _failed(self, error: WhisprError) -> None:
        self.streak = 0
        is_clean = error.code in CLEAN or isinstance(error, Disconnected | ChannelClosed)
        if isinstance(error, Refused):
            is_clean = error.reason in CLEAN_REASONS
        is_clean = is_clean or NOT_YET in error.message
        self.counts.failed += is_clean
        self.counts.unclean += not is_clean
        self.counts.said[f"{self.kind}: {error}"[:200]] += 1

    def _hung(self, what: str) -> None:
        self.streak = 0
        self.counts.hung += 1
        self.counts.said[f"{self.kind}: {what}"] += 1


def leaves(group: BaseExceptionGroup[WhisprError]) -> list[WhisprError]:
    """The errors in a group of groups."""
    found: list[WhisprError] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


@asynccontextmanager
async def by_websocket(talker: Talker) -> AsyncIterator[Send]:
    """Send over a socket of one's own."""
    async with open_phoenix(talker.rig.websocket_url, talker.token) as phoenix:
        channel = await phoenix.join(f"conversation:{talker.conversation_id}")

        async def send(client_id: str) -> int:
            reply: Any = await channel.push("send_message", {"text": client_id, "client_id": client_id})
            return int(reply["seq"])

        # What is broadcast must be taken, too: a client whose inbox is full reads no replies either.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take_all, channel)
            yield send
            nursery.cancel_scope.cancel(reason="the talker has gone")


async def _take_all(channel: ClientChannel) -> None:
    with suppress(WhisprError):  # who pushes next hears that it has ended
        async for _ in channel:
            pass


@asynccontextmanager
async def by_grpc(talker: Talker) -> AsyncIterator[Send]:
    """Send over a channel of one's own."""
    async with open_channel(f"{talker.rig.host}:{talker.rig.far['messaging']}") as channel:
        stub = MessagingServiceStub(channel)
        metadata = [("authorization", f"Bearer {talker.token}")]

        async def send(client_id: str) -> int:
            request = SendMessageRequest(
                conversation_id=talker.conversation_id, content=client_id.encode(), client_id=client_id
            )
            with trio.move_on_after(CALL_S):
                reply = await stub.SendMessage(request, metadata=metadata)
                return int(reply.message.seq)
            raise WhisprError(Code.DEADLINE_EXCEEDED, "our own deadline")

        yield send


@asynccontextmanager
async def by_rest(talker: Talker) -> AsyncIterator[Send]:
    """Send by HTTP, on a connection that is kept."""
    headers = {"authorization": f"Bearer {talker.token}"}
    url = f"/v1/conversations/{talker.conversation_id}/messages"
    async with httpx.AsyncClient(base_url=talker.rig.gateway_url, headers=headers, timeout=None) as client:  # noqa: S113

        async def send(client_id: str) -> int:
            reply = await asked(client, "POST", url, {"text": client_id, "client_id": client_id})
            return int(reply["message"]["seq"])

        yield send


async def asked(client: httpx.AsyncClient, method: str, url: str, body: object = None) -> Any:
    """Make a REST call; return what is in its answer. Raises WhisprError."""
    try:
        response = await client.request(method, url, json=body)
    except httpx.TransportError as error:
        raise unavailable(f"the connection was lost ({type(error).__name__})") from error
    if response.status_code >= 400:
        try:
            said = response.json()
            raise WhisprError(Code(said["code"]), said["message"])
        except (ValueError, KeyError) as error:
            raise WhisprError(Code.UNKNOWN, f"{response.status_code}: {response.text[:100]}") from error
    return response.json() if response.content else None


CLIENTS: dict[str, Callable[[Talker], Any]] = {"WebSocket": by_websocket, "gRPC": by_grpc, "REST": by_rest}
"""Kind → its client, a context manager that yields a `Send`."""


@dataclass
class Reader(Follower):
    """A follower who knows when they were last told of something."""

    told_at: float = 0.0

    def _told(self, message: Any) -> None:
        super()._told(message)
        self.told_at = trio.current_time()


@dataclass
class Group:
    """One conversation, with somebody who talks by each kind of client, and readers."""

    conversation_id: str
    talkers: list[Talker]
    readers: list[Reader]
    checked: int = 0
    """Seq up to which everything has been looked at."""


class Crowd:
    """All groups, and the books."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.counts = Counts()
        self.groups: list[Group] = []
        self.may_talk = trio.Event()
        self.may_talk.set()

    @property
    def talkers(self) -> list[Talker]:
        """Everybody who talks."""
        return [talker for group in self.groups for talker in group.talkers]

    @property
    def readers(self) -> list[Reader]:
        """Everybody who reads."""
        return [reader for group in self.groups for reader in group.readers]

    def gather(self, groups: int, per_s: float) -> None:
        """Sign people up and have them open conversations; together they send so many messages a second."""
        product = self.rig.product
        period_s = groups * len(CLIENTS) / per_s
        for number in range(groups):
            people = {kind: product.sign_up(f"{kind.lower()}-{number}") for kind in CLIENTS}
            reader, readers_token = product.sign_up(f"reader-{number}")
            owner = people["REST"][1]
            members = [user_id for kind, (user_id, _) in people.items() if kind != "REST"]
            conversation = product.conversation(owner, "group", reader, *members)
            group = Group(
                conversation, [], [Reader(readers_token, conversation, lambda: self.rig.websocket_url)]
            )
            for kind, (_, token) in people.items():
                name = f"{kind}-{number}"
                group.talkers.append(
                    Talker(self.rig, name, kind, token, conversation, period_s, self.counts, self.may_talk)
                )
            self.groups.append(group)

    async def run(self) -> None:
        """Talk and read until cancelled."""
        async with trio.open_nursery() as nursery:
            for talker in self.talkers:
                nursery.start_soon(talker.run)
            for reader in self.readers:
                nursery.start_soon(reader.run)

    async def hush(self) -> None:
        """Have nobody talk; return when the last word is said."""
        self.may_talk = trio.Event()
        for talker in self.talkers:
            talker.may_talk = self.may_talk
        while not all(talker.idle for talker in self.talkers):  # noqa: ASYNC110  # many people, no common event
            await trio.sleep(0.01)

    def go_on(self) -> None:
        """Let them talk again."""
        self.may_talk.set()

    def expect_new_streaks(self) -> None:
        """Count streaks from now."""
        for talker in self.talkers:
            talker.streak = 0

    async def until_served(self, since: float) -> float:
        """Wait until everybody is served again; return when, for the last of them, that began."""

        def served() -> bool:
            talking = all(talker.streak >= STREAK for talker in self.talkers)
            return talking and all(reader.told_at > since for reader in self.readers)

        while not served():  # noqa: ASYNC110  # many people, no common event
            await trio.sleep(0.02)
        return max(talker.streak_began for talker in self.talkers)
