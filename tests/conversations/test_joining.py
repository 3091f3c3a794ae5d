"""Joining is cheap: many who come at once share a read, and each still sees what is theirs to see."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import trio

from tests.conversations.kit import a_group, sign_up
from tests.conversations.nodes import Node, expect, join, nodes, push
from whispr.adapters.postgres import Postgres
from whispr.conversations import resuming, snapshots
from whispr.conversations.domain import Role
from whispr.realtime.client import ClientChannel, Phoenix, Refused

PEOPLE = 34


@pytest.fixture
def statements(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement of the pool, as it is sent."""
    sent: list[str] = []
    on_connection = db._on_connection

    async def noted(method: str, *args: Any) -> Any:
        sent.append(str(args[0]))
        return await on_connection(method, *args)

    monkeypatch.setattr(db, "_on_connection", noted)
    return sent


async def joined_at_once(
    stack: AsyncExitStack, node: Node, wanted: list[tuple[str, str, dict[str, object]]]
) -> list[ClientChannel]:
    """Connect everybody, then have all join at the same moment."""
    phones: list[Phoenix] = [
        await stack.enter_async_context(node.server.connect(user_id)) for user_id, _, _ in wanted
    ]
    channels: dict[int, ClientChannel] = {}

    async def one(number: int) -> None:
        _, topic, params = wanted[number]
        channels[number] = await join(phones[number], topic, **params)

    async with trio.open_nursery() as nursery:
        for number in range(len(wanted)):
            nursery.start_soon(one, number)
    return [channels[number] for number in range(len(wanted))]


async def test_a_hundred_reconnects_over_three_conversations_are_three_reads_at_most(
    db: Postgres, statements: list[str]
) -> None:
    """All of them catch up; the database is asked at most once per conversation, and for nothing else."""
    groups = [await a_group(db, PEOPLE) for _ in range(3)]
    async with nodes(db, 1) as ((node,), _bus), AsyncExitStack() as stack:
        for group, people in groups:
            async with node.server.connect(people[0]) as phoenix:
                channel = await join(phoenix, f"conversation:{group}")
                sent = [await push(channel, "send_message", {"text": str(n)}) for n in range(5)]
                await push(channel, "add_reaction", {"message_id": sent[0]["message_id"], "emoji": "👍"})
        node.core.resuming.forget_all()
        statements.clear()
        back: dict[str, object] = {"since_seq": "2", "since_change": 1}
        wanted = [(user_id, f"conversation:{group}", back) for group, people in groups for user_id in people]
        channels = await joined_at_once(stack, node, wanted)
        assert len(channels) == 3 * PEOPLE
        for channel in channels:
            reply = cast("Any", channel.response)
            assert [message["seq"] for message in reply["messages"]] == [3, 4, 5]
            assert [change["event"] for change in reply["changes"]] == ["reaction_added"]
            assert [message["seq"] for message in reply["changed_messages"]] == [1]
        assert len([sql for sql in statements if "memberships" not in sql]) <= 3


async def test_those_served_together_see_each_what_is_theirs(db: Postgres) -> None:
    """A stranger is refused, what one has hidden is left out for them alone, and places differ."""
    group, (one, two, three) = await a_group(db, 3)
    (stranger,) = await sign_up(db, 1)
    topic = f"conversation:{group}"
    async with nodes(db, 1) as ((node,), _bus), AsyncExitStack() as stack:
        async with node.server.connect(one) as phoenix:
            channel = await join(phoenix, topic)
            sent = [await push(channel, "send_message", {"text": str(n)}) for n in range(4)]
        hidden = sent[1]["message_id"]
        await node.core.operations.editing.delete(group, hidden, two, for_everyone=False)
        node.core.resuming.forget_all()
        wanted: list[tuple[str, str, dict[str, object]]] = [
            (two, topic, {"since_seq": 0}),
            (three, topic, {"since_seq": 0}),
            (one, topic, {"since_seq": 3}),
            (one, topic, {}),
        ]
        outside = await stack.enter_async_context(node.server.connect(stranger))
        with pytest.raises(Refused) as refused:
            await join(outside, topic)
        assert refused.value.reason == "not_a_member"
        replies = [cast("Any", each.response) for each in await joined_at_once(stack, node, wanted)]
        seqs = [[message["seq"] for message in reply["messages"]] for reply in replies]
        assert seqs == [[1, 3, 4], [1, 2, 3, 4], [4], []]
        assert [reply["hidden_seqs"] for reply in replies] == [[2], [], [], []]
        assert [reply["role"] for reply in replies] == ["member", "member", "owner", "owner"]


async def test_what_happens_after_the_read_is_in_what_the_next_are_told(
    db: Postgres, statements: list[str]
) -> None:
    """A tail follows messages, edits, receipts, hides and members: the next joiner needs no read of their own."""
    group, (one, two) = await a_group(db)
    (three,) = await sign_up(db, 1)
    topic = f"conversation:{group}"
    async with nodes(db, 1) as ((node,), _bus), AsyncExitStack() as stack:
        phone = await stack.enter_async_context(node.server.connect(one))
        channel = await join(phone, topic, since_seq=0, since_change=1)
        sent = [await push(channel, "send_message", {"text": str(n)}) for n in range(3)]
        await push(channel, "edit_message", {"message_id": sent[0]["message_id"], "text": "edited"})
        await node.core.operations.editing.delete(group, sent[1]["message_id"], two, for_everyone=False)
        await node.core.operations.mark_read(group, two, 2)
        await node.core.operations.add(group, one, [three], Role.MEMBER)
        await expect(channel, "member_added")
        statements.clear()
        for user_id, seqs in ((two, [1, 3]), (three, [1, 2, 3])):
            other = await stack.enter_async_context(node.server.connect(user_id))
            reply = cast("Any", (await join(other, topic, since_seq=0, since_change=1)).response)
            assert [message["seq"] for message in reply["messages"]] == seqs
            assert [change["event"] for change in reply["changes"]] == ["message_edited", "member_added"]
            assert reply["changes"][0]["message"]["text"] == "edited"
            assert {each["user_id"]: each["read_seq"] for each in reply["receipts"]}[two] == 2
            assert {member["user_id"] for member in reply["members"]} == {one, two, three}
            assert reply["member_count"] == 3
        assert not [sql for sql in statements if "unnest($1::uuid[]" in sql]
        await node.core.operations.remove(group, one, three)
        again = await stack.enter_async_context(node.server.connect(three))
        with pytest.raises(Refused):
            await join(again, topic)
        await push(channel, "delete_message", {"message_id": sent[0]["message_id"], "for_everyone": True})
        other = await stack.enter_async_context(node.server.connect(two))
        reply = cast("Any", (await join(other, topic, since_seq=0, since_change=1)).response)
        assert reply["messages"][0].get("text") is None, "what was deleted is told to nobody any more"


async def test_refused_joins_cost_the_asker(db: Postgres, statements: list[str]) -> None:
    """Asking again and again for what one may not join asks the database once a second at most."""
    group, _ = await a_group(db)
    (stranger,) = await sign_up(db, 1)
    nothing = "0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e6f"
    async with nodes(db, 1) as ((node,), _bus), node.server.connect(stranger) as phoenix:
        statements.clear()
        for _ in range(20):
            for topic, reason in (
                (f"conversation:{group}", "not_a_member"),
                (f"room:{nothing}", "not_found"),
            ):
                with pytest.raises(Refused) as refused:
                    await join(phoenix, topic)
                assert refused.value.reason == reason
        assert len(statements) <= 2 * (1 + 10 / resuming.REFUSED_S)


async def test_a_large_room_is_told_by_pages(db: Postgres) -> None:
    """A join tells the first members and how many there are; get_members pages through all of them."""
    size = snapshots.MEMBERS_PAGE + 20
    group, people = await a_group(db, size)
    async with nodes(db, 1) as ((node,), _bus), node.server.connect(people[-1]) as phoenix:
        channel = await join(phoenix, f"conversation:{group}")
        reply = cast("Any", channel.response)
        assert (len(reply["members"]), reply["member_count"]) == (snapshots.MEMBERS_PAGE, size)
        found: list[str] = []
        token = ""
        while True:
            page = await push(channel, "get_members", {"page_token": token, "page_size": 50})
            found += [member["user_id"] for member in page["members"]]
            token = page["next_page_token"]
            if not token:
                break
        assert sorted(found) == sorted(people)
        with pytest.raises(Refused) as refused:
            await join(phoenix, f"room:{group}")
        assert refused.value.reason == "not_found"


async def test_bad_places_are_named(db: Postgres) -> None:
    """What is no number of the API is refused by its field; what is ahead of everything is now."""
    group, (one, _) = await a_group(db)
    topic = f"conversation:{group}"
    async with nodes(db, 1) as ((node,), _bus), node.server.connect(one) as phoenix:
        for field in ("since_seq", "since_change"):
            for bad in ("x", "-1", -1, 2**32, "99999999999999999999", "٣", 1.5, [1]):
                with pytest.raises(Refused) as refused:
                    await join(phoenix, topic, **{field: bad})
                assert (refused.value.reason, refused.value.response["field"]) == ("invalid_payload", field)
        channel = await join(phoenix, topic, since_seq=2**32 - 1, since_change="4294967295")
        assert cast("Any", channel.response)["messages"] == []
        with pytest.raises(Refused) as refused:
            await push(channel, "get_history", {"cursor": "x"})
        assert refused.value.reason == "invalid_payload"
