"""Who is shown, and what is kept of them, when something happens while they join."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from whispr.conversations.channels import ConversationChannel
from whispr.conversations.domain import Kind, Role
from whispr.conversations.operations import Operations
from whispr.conversations.permissions import Permissions
from whispr.conversations.statuses import Statuses
from whispr.conversations.tails import Missed
from whispr.conversations.user_channel import UserChannel
from whispr.conversations.visibility import Visibility
from whispr.ids import new_id
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.testing import served

ADA, BOB = new_id(), new_id()
TOPIC = f"conversation:{new_id()}"
NOTHING = msgspec.Raw(b"[]")


class Asked:
    """The user service: says what was true when it was asked, as late as the test likes."""

    def __init__(self) -> None:
        self.shows_all = True
        self.contacts = {BOB: True}
        self.answering = trio.Event()
        self.asked = 0

    async def shows(self, user_id: str, conversation_id: str) -> bool:
        answer = self.shows_all
        await self._slowly()
        return answer

    async def visible_contacts(self, user_id: str, among: Sequence[str] = ()) -> dict[str, bool]:
        answer = {each: shows for each, shows in self.contacts.items() if not among or each in among}
        await self._slowly()
        return answer

    async def _slowly(self) -> None:
        self.asked += 1
        if self.asked == 1:  # only the joiner waits: what is asked after a change is answered at once
            await self.answering.wait()
        await trio.lowlevel.checkpoint()


class Here:
    """A hub with the channels of conversations and of people, over a user service that is slow."""

    def __init__(self) -> None:
        self.hub = Hub(Limits(presence_linger_s=0))
        self.users = Asked()
        self.statuses = Statuses(lambda _user_id, _status: None)
        permissions = cast("Permissions", self.users)
        self.visibility = Visibility(self.hub, permissions, self.statuses.conversations_of)
        self._operations = cast("Operations", SimpleNamespace(resuming=self))

    async def join(self, topic: str, user_id: str, seq: int | None, change: int | None) -> Missed:
        """Admit everybody."""
        none: list[Any] = []
        return Missed(
            0, 0, NOTHING, NOTHING, NOTHING, none, none, False, "", Kind.DIRECT, Role.MEMBER, NOTHING, 2
        )

    def conversation(self, link: Link) -> ConversationChannel:
        """Make a conversation's channel."""
        return ConversationChannel(link, self._operations, self.statuses, self.visibility)

    def person(self, link: Link) -> UserChannel:
        """Make a person's own channel."""
        return UserChannel(link, self._operations, self.statuses, self.visibility)


async def test_a_block_during_a_join_counts(autojump_clock: MockClock) -> None:
    """Whoever was shown when it was asked, and is not by the time of the answer, is not shown."""
    here = Here()
    async with (
        trio.open_nursery() as nursery,
        served({"conversation": here.conversation}, hub=here.hub) as server,
        server.wire(ADA) as wire,
    ):
        nursery.start_soon(here.visibility.run)
        await wire.join(TOPIC)
        await wait_all_tasks_blocked()
        here.users.shows_all = False
        here.visibility.changed(ADA, BOB)
        await wait_all_tasks_blocked()
        here.users.answering.set()
        await trio.sleep(1)
        assert here.users.asked == 2
        assert not here.hub.is_present(TOPIC, ADA)
        here.users.shows_all = True
        here.visibility.changed(ADA, BOB)
        await trio.sleep(1)
        assert here.hub.is_present(TOPIC, ADA)
        nursery.cancel_scope.cancel()


async def test_a_contact_that_hides_during_a_join_is_not_seen(autojump_clock: MockClock) -> None:
    """What the joiner is told of contacts is asked again when something has changed meanwhile."""
    here = Here()
    here.hub.presence.track(f"user:{BOB}", BOB, {"status": "online"})
    async with (
        trio.open_nursery() as nursery,
        served({"user": here.person}, hub=here.hub) as server,
        server.wire(ADA) as wire,
    ):
        nursery.start_soon(here.visibility.run)
        await wire.send("1", "1", f"user:{ADA}", "phx_join", {})
        await wait_all_tasks_blocked()
        here.users.contacts = {BOB: False}
        here.visibility.changed(BOB, BOB)
        await wait_all_tasks_blocked()
        here.users.answering.set()
        reply = await wire.receive()
        state = await wire.receive()
        assert isinstance(reply, list)
        assert isinstance(state, list)
        assert reply[4]["status"] == "ok"
        assert state[3] == "presence_state"
        assert BOB not in state[4]
        nursery.cancel_scope.cancel()


async def test_a_join_that_comes_to_nothing_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    """Clients that hang up, or give up, while their own channel is being joined are not kept in mind."""
    here = Here()
    async with served({"user": here.person}, hub=here.hub) as server:
        async with server.wire(ADA) as wire:
            await wire.send("1", "1", f"user:{ADA}", "phx_join", {})
            await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert not here.hub.sockets
        async with server.wire(BOB) as wire:
            here.users.asked = 0
            reply = await wire.join(f"user:{BOB}")
            assert isinstance(reply, dict)
            assert reply["response"]["reason"] == "unavailable"  # it took too long
        assert not here.statuses._showing
        assert not here.visibility._viewers


async def test_a_service_is_no_member(autojump_clock: MockClock) -> None:
    """Services have no conversations: what they ask never reaches the read that others wait for."""
    here = Here()
    async with (
        served({"conversation": here.conversation}, hub=here.hub) as server,
        server.wire("service:billing") as wire,
    ):
        reply = await wire.join(TOPIC)
        assert isinstance(reply, dict)
        assert reply["response"]["reason"] == "not_a_member"
