"""What is asked of other services: blocks, always; names, now and then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from whispr.conversations.domain import Kind
from whispr.errors import unavailable
from whispr.ids import new_id
from whispr.services.notification import surroundings
from whispr.services.notification.surroundings import Services
from whispr.v1 import messaging_pb2, user_pb2

Metadata = Sequence[tuple[str, str]]


class Asked:
    """The user and messaging services, and what they were asked."""

    def __init__(self) -> None:
        self.blocks: list[tuple[str, int]] = []
        self.names: list[str] = []
        self.blocked_by: set[str] = set()
        self.away = False

    async def check_blocks(
        self, request: user_pb2.CheckUserBlocksRequest, *, metadata: Metadata
    ) -> user_pb2.CheckUserBlocksResponse:
        await trio.lowlevel.checkpoint()
        assert metadata == [("for", request.user_id)]
        self.blocks.append((request.user_id, len(request.target_user_ids)))
        reply = user_pb2.CheckUserBlocksResponse()
        for number, target in enumerate(request.target_user_ids):
            reply.is_blocked[target] = number == 0
            reply.has_blocked[target] = target in self.blocked_by
        return reply

    async def get_conversation(
        self, request: messaging_pb2.GetConversationRequest, *, metadata: Metadata
    ) -> messaging_pb2.GetConversationResponse:
        await trio.lowlevel.checkpoint()
        self.names.append(dict(metadata)["for"])
        if self.away:
            raise unavailable("the messaging service is away")
        conversation = messaging_pb2.Conversation(id=request.conversation_id, name=f"name {len(self.names)}")
        return messaging_pb2.GetConversationResponse(conversation=conversation)


def services(asked: Asked) -> Services:
    return Services(asked.check_blocks, asked.get_conversation, lambda user_id: [("for", user_id)])


async def test_blocks_of_many_people_are_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either direction counts, and no call asks about more than the user service takes."""
    monkeypatch.setattr(surroundings, "TARGETS_MAX", 3)
    asked, sender = Asked(), new_id()
    people = [new_id() for _ in range(7)]
    asked.blocked_by = {people[5]}
    found = await services(asked).blocked(sender, people)
    assert found == {people[0], people[3], people[6], people[5]}
    assert asked.blocks == [(sender, 3), (sender, 3), (sender, 1)]


async def test_names_are_remembered_for_a_while(autojump_clock: MockClock) -> None:
    """A name is asked for a member, once a minute; while nobody answers the last one known serves."""
    asked = Asked()
    others = services(asked)
    group, member = new_id(), new_id()
    assert await others.name_of(group, Kind.DIRECT, member) == ""
    assert await others.name_of(group, Kind.GROUP, member) == "name 1"
    assert await others.name_of(group, Kind.GROUP, new_id()) == "name 1"
    assert asked.names == [member]
    await trio.sleep(surroundings.NAME_S + 1)
    asked.away = True
    assert await others.name_of(group, Kind.GROUP, member) == "name 1"
    assert await others.name_of(new_id(), Kind.GROUP, member) == ""
    asked.away = False
    await trio.sleep(1)  # for as long the one known stands in
    assert await others.name_of(group, Kind.GROUP, member) == "name 4"


async def test_so_many_names_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones known are forgotten when there are too many."""
    monkeypatch.setattr(surroundings, "NAMES_MAX", 2)
    asked = Asked()
    others = services(asked)
    groups = [new_id() for _ in range(3)]
    for group in (*groups, groups[2], groups[0]):
        await others.name_of(group, Kind.ROOM, new_id())
    assert len(asked.names) == 4
