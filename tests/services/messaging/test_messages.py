"""What is done to messages over gRPC: edits, deletions, reactions, pins, search; who may, and every limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio

from tests.conversations.kit import a_group, sign_up
from tests.services.kit import UNLIMITED, World, as_, world
from tests.services.messaging.kit import refusal, send
from whispr.adapters.postgres import Postgres
from whispr.conversations import search_index
from whispr.errors import Code, WhisprError
from whispr.events import Event
from whispr.v1 import messaging_pb2 as pb


async def about(services: World, rpc: str, message: pb.Message, by: str, **fields: Any) -> Any:
    """Call an RPC about one message."""
    request = getattr(pb, f"{rpc}Request")(
        conversation_id=message.conversation_id, message_id=message.id, **fields
    )
    call: Callable[..., Awaitable[Any]] = getattr(services.messaging, rpc)
    return await call(request, metadata=as_(by))


async def edit(services: World, message: pb.Message, by: str, text: str) -> pb.Message:
    edited: pb.Message = (await about(services, "EditMessage", message, by, content=text.encode())).message
    return edited


async def set_role(services: World, group: str, owner: str, user: str, role: str) -> None:
    request = pb.SetMemberRoleRequest(conversation_id=group, user_id=user, role=role)
    await services.messaging.SetMemberRole(request, metadata=as_(owner))


async def test_an_edit_replaces_what_a_message_says(services: World) -> None:
    """The latest text and edited_at are kept; the signature is that of the new text; a repeat changes nothing."""
    group, (one, two) = await a_group(services.db)
    sent = await send(services, group, one, "frist", signature=b"s", metadata={"k": "v"})
    edited = await edit(services, sent, one, "first")
    assert (edited.content, edited.seq, dict(edited.metadata)) == (b"first", 1, {"k": "v"})
    assert edited.HasField("edited_at")
    assert edited.signature == b""
    assert await edit(services, sent, one, "first") == edited
    assert (await about(services, "GetMessage", sent, two)).message == edited
    changes = "SELECT kind, change FROM conversations.changes WHERE conversation_id = $1 ORDER BY change"
    assert [tuple(row) for row in await services.db.fetch(changes, group)] == [
        ("conversation_created", 1),
        ("message_edited", 2),
    ]


async def test_a_retried_send_of_an_edited_or_deleted_message_returns_it(services: World) -> None:
    """The client_id still names what was sent, though it no longer says the same."""
    group, (one, _) = await a_group(services.db)
    sent = await send(services, group, one, "a", client_id="c")
    await edit(services, sent, one, "b")
    assert (await send(services, group, one, "a", client_id="c")).id == sent.id
    await about(services, "DeleteMessage", sent, one, for_everyone=True)
    again = await send(services, group, one, "a", client_id="c")
    assert (again.id, again.content, again.HasField("deleted_at")) == (sent.id, b"", True)


async def test_who_edits_and_deletes_for_everyone(services: World) -> None:
    """Only the sender edits; the sender and moderators not below them delete for everyone, in time."""
    group, (owner, mod, one, two) = await a_group(services.db, 4)
    await set_role(services, group, owner, mod, "moderator")
    sent = await send(services, group, one)
    for other in (owner, mod, two):
        assert await refusal(edit(services, sent, other, "x")) == (Code.PERMISSION_DENIED, "not_editable")
    erase = (Code.PERMISSION_DENIED, "not_deletable")
    assert await refusal(about(services, "DeleteMessage", sent, two, for_everyone=True)) == erase
    await about(services, "DeleteMessage", sent, mod, for_everyone=True)
    await about(services, "DeleteMessage", sent, mod, for_everyone=True)
    assert await refusal(edit(services, sent, one, "x")) == (Code.PERMISSION_DENIED, "not_editable")
    above = await send(services, group, owner)
    assert await refusal(about(services, "DeleteMessage", above, mod, for_everyone=True)) == erase
    old = await send(services, group, one)
    await services.db.execute(
        "UPDATE conversations.messages SET sent_at = sent_at - interval '25 h' WHERE id = $1", old.id
    )
    assert await refusal(edit(services, old, one, "x")) == (Code.PERMISSION_DENIED, "not_editable")
    await services.db.execute(
        "UPDATE conversations.messages SET sent_at = sent_at - interval '24 h' WHERE id = $1", old.id
    )
    assert await refusal(about(services, "DeleteMessage", old, one, for_everyone=True)) == erase
    await about(services, "DeleteMessage", old, owner, for_everyone=True)


async def test_a_deleted_message_leaves_a_tombstone_and_nothing_else(services: World) -> None:
    """Content, metadata, keys, reactions and pins are gone; seq, sender and time stay, also in the list."""
    group, (one, two) = await a_group(services.db)
    sent = await send(
        services, group, one, "secret", metadata={"a": "b"}, signature=b"s", sender_public_key=b"k"
    )
    await about(services, "AddReaction", sent, two, emoji="👍")
    await about(services, "PinMessage", sent, one)
    await about(services, "DeleteMessage", sent, one, for_everyone=True)
    (gone,) = (
        await services.messaging.GetMessages(pb.GetMessagesRequest(conversation_id=group), metadata=as_(two))
    ).messages
    assert (gone.seq, gone.id, gone.sender_id, gone.sent_at) == (1, sent.id, one, sent.sent_at)
    assert (gone.content, dict(gone.metadata), gone.signature, gone.sender_public_key) == (b"", {}, b"", b"")
    assert gone.HasField("deleted_at")
    assert not gone.reactions
    pins = await services.messaging.ListPins(pb.ListPinsRequest(conversation_id=group), metadata=as_(two))
    assert not pins.pins
    listed = await services.messaging.ListConversations(pb.ListConversationsRequest(), metadata=as_(two))
    assert listed.conversations[0].last_message.HasField("deleted_at")
    assert listed.conversations[0].unread_count == 0
    row = await services.db.fetchrow("SELECT * FROM conversations.messages WHERE id = $1", sent.id)
    assert row is not None
    assert b"secret" not in bytes(row["content"])
    assert "secret" not in str(await services.db.fetch("SELECT data FROM conversations.changes"))
    for rpc, fields in (("AddReaction", {"emoji": "👍"}), ("PinMessage", {})):
        assert (await refusal(about(services, rpc, sent, one, **fields)))[0] is Code.NOT_FOUND


async def test_deleting_for_oneself_hides_from_oneself_alone(services: World) -> None:
    """The message is gone from the caller's history, list and counts, and there for everybody else."""
    group, (one, two) = await a_group(services.db)
    sent = await send(services, group, one)
    await about(services, "DeleteMessage", sent, two)
    await about(services, "DeleteMessage", sent, two)
    listed = await services.messaging.ListConversations(pb.ListConversationsRequest(), metadata=as_(two))
    assert (listed.conversations[0].unread_count, listed.conversations[0].HasField("last_message")) == (
        0,
        False,
    )
    assert (await refusal(about(services, "GetMessage", sent, two)))[0] is Code.NOT_FOUND
    assert (await about(services, "GetMessage", sent, one)).message == sent


async def test_the_muted_neither_edit_nor_react(services: World) -> None:
    """Whoever may not write may not rewrite either, nor speak by reactions."""
    group, (one, _) = await a_group(services.db)
    sent = await send(services, group, one)
    mute = "UPDATE conversations.members SET muted_until = 'infinity' WHERE user_id = $1"
    await services.db.execute(mute, one)
    muted = (Code.PERMISSION_DENIED, "muted")
    assert await refusal(send(services, group, one)) == muted
    assert await refusal(edit(services, sent, one, "x")) == muted
    assert await refusal(about(services, "AddReaction", sent, one, emoji="👍")) == muted
    with pytest.raises(WhisprError) as refused:
        await send(services, group, one)
    assert refused.value.facts == {"until": "forever"}


async def test_slow_mode_lets_one_message_pass(services: World) -> None:
    """Of a member's sends at once one is stored and the rest told when to come back; moderators are not slowed."""
    group, (owner, one) = await a_group(services.db)
    await services.db.execute("UPDATE conversations.conversations SET slow_mode_s = 30 WHERE id = $1", group)
    outcomes: list[str] = []
    waits: list[float] = []

    async def try_to(sender: str) -> None:
        try:
            await send(services, group, sender)
            outcomes.append("sent")
        except WhisprError as refused:
            outcomes.append(refused.reason)
            waits.append(refused.retry_after_s or 0)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(try_to, one)
    assert sorted(outcomes) == ["sent", *["slow_mode"] * 4]
    assert all(25 < wait_s <= 30 for wait_s in waits)
    for _ in range(3):
        await send(services, group, owner)
    await services.db.execute("UPDATE conversations.conversations SET is_active = false WHERE id = $1", group)
    assert await refusal(send(services, group, owner)) == (Code.FAILED_PRECONDITION, "room_closed")


async def test_reactions_are_counted_once_a_person(services: World) -> None:
    """Twice the same reaction is one, also at once; each is listed with its people; it can be taken back."""
    group, (one, two) = await a_group(services.db)
    sent = await send(services, group, one)
    async with trio.open_nursery() as nursery:
        for who in (one, two, one, two):
            nursery.start_soon(partial(about, services, "AddReaction", sent, who, emoji="👍"))
    await about(services, "AddReaction", sent, two, emoji=":party_parrot:")
    await about(services, "RemoveReaction", sent, one, emoji="👍")
    await about(services, "RemoveReaction", sent, one, emoji="👍")
    shown = (await about(services, "GetMessage", sent, one)).message.reactions
    assert [(r.emoji, list(r.user_ids), r.count) for r in shown] == [
        ("👍", [two], 1),
        (":party_parrot:", [two], 1),
    ]
    kinds = "SELECT count(*) FROM conversations.changes WHERE conversation_id = $1 AND kind = $2"
    assert await services.db.fetchval(kinds, group, "reaction_added") == 3
    assert await services.db.fetchval(kinds, group, "reaction_removed") == 1


@pytest.mark.parametrize("emoji", ["", "a", "ok", " ", "1", "👍👍x", "\n", ":Not Ok:", "👍" * 33, "<b>"])
async def test_what_is_no_emoji_is_refused(services: World, emoji: str) -> None:
    """Letters, digits, spaces, markup and long strings are no reactions."""
    group, (one, _) = await a_group(services.db)
    sent = await send(services, group, one)
    assert (await refusal(about(services, "AddReaction", sent, one, emoji=emoji)))[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("emoji", ["👍", "👍🏽", "❤️", "👨‍👩‍👧‍👦", "🇫🇷", "1️⃣", "#️⃣", "‼️", "✔", "🫨", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"])
async def test_emoji_of_every_sort_are_reactions(services: World, emoji: str) -> None:
    """Modifiers, joiners, flags, keycaps, tags and ones younger than our tables pass."""
    group, (one, _) = await a_group(services.db)
    sent = await send(services, group, one)
    await about(services, "AddReaction", sent, one, emoji=emoji)
    assert (await about(services, "GetMessage", sent, one)).message.reactions[0].emoji == emoji


async def test_limits_of_reactions_and_pins_hold_when_everybody_tries_at_once(services: World) -> None:
    """At most 50 different emoji on a message and 10 pins in a conversation, however many come together."""
    group, (one, two) = await a_group(services.db)
    sent = [await send(services, group, one) for _ in range(14)]
    refused: list[str] = []

    async def attempt(rpc: str, message: pb.Message, by: str, **fields: Any) -> None:
        try:
            await about(services, rpc, message, by, **fields)
        except WhisprError as error:
            refused.append(error.reason)

    async with trio.open_nursery() as nursery:
        for n in range(60):
            by, emoji = (one, two)[n % 2], chr(0x1F400 + n)
            nursery.start_soon(partial(attempt, "AddReaction", sent[0], by, emoji=emoji))
        for message in sent:
            nursery.start_soon(attempt, "PinMessage", message, one)
    assert sorted(refused) == ["too_many_pins"] * 4 + ["too_many_reactions"] * 10
    assert len((await about(services, "GetMessage", sent[0], one)).message.reactions) == 50
    pins = await services.messaging.ListPins(pb.ListPinsRequest(conversation_id=group), metadata=as_(two))
    assert len(pins.pins) == 10
    known = (await about(services, "GetMessage", sent[0], one)).message.reactions[0]
    other = two if known.user_ids[0] == one else one
    await about(services, "AddReaction", sent[0], other, emoji=known.emoji)
    pinned = pins.pins[0].message
    await about(services, "PinMessage", pinned, one)
    await about(services, "UnpinMessage", pinned, one)
    await about(services, "UnpinMessage", pinned, one)


async def test_who_pins(services: World) -> None:
    """In a group moderators and above pin and unpin; in a direct conversation either of the two."""
    group, (owner, one) = await a_group(services.db)
    sent = await send(services, group, one)
    for rpc in ("PinMessage", "UnpinMessage"):
        assert await refusal(about(services, rpc, sent, one)) == (Code.PERMISSION_DENIED, "forbidden")
        await about(services, rpc, sent, owner)
    request = pb.CreateConversationRequest(kind="direct", member_ids=[one])
    talk = (await services.messaging.CreateConversation(request, metadata=as_(owner))).conversation.id
    said = await send(services, talk, owner)
    await about(services, "PinMessage", said, one)
    await about(services, "UnpinMessage", said, owner)


async def test_edits_and_deletions_at_once_leave_one_truth(services: World) -> None:
    """Whatever the order, a deletion wins, nothing of an edit survives it, and changes have no gap."""
    group, (one, two) = await a_group(services.db)
    reasons: set[str] = set()
    for _ in range(5):
        sent = await send(services, group, one, "before")

        async def attempt(call: Awaitable[Any]) -> None:
            try:
                await call
            except WhisprError as refused:
                reasons.add(refused.reason)

        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(attempt, edit(services, sent, one, f"edited {n}"))
            nursery.start_soon(attempt, about(services, "DeleteMessage", sent, one, for_everyone=True))
            nursery.start_soon(attempt, about(services, "AddReaction", sent, two, emoji="👍"))
        left = (await about(services, "GetMessage", sent, two)).message
        assert (left.content, list(left.reactions), left.HasField("deleted_at")) == (b"", [], True)
    assert reasons <= {"not_editable", "not_found"}
    rows = await services.db.fetch(
        "SELECT change FROM conversations.changes WHERE conversation_id = $1 ORDER BY change", group
    )
    assert [row["change"] for row in rows] == list(range(1, len(rows) + 1))


async def test_search_finds_what_may_be_read(services: World) -> None:
    """Words, phrases and exclusions; only the caller's conversations, nothing deleted, hidden or encrypted."""
    group, (one, two) = await a_group(services.db)
    other, (three, _) = await a_group(services.db)
    said = [
        await send(services, group, one, text)
        for text in ("the quick brown fox", "the fox is brown, and quick it is not", "a red fox", "nothing")
    ]
    await send(services, group, one, "secret fox", sender_public_key=b"k")
    await send(services, other, three, "a fox of others")
    index = services.conversations.search_index
    for each in (group, other):
        await index.catch_up((each,))

    async def find(query: str, by: str = two, **fields: Any) -> list[int]:
        request = pb.SearchMessagesRequest(query=query, **fields)
        found = await services.messaging.SearchMessages(request, metadata=as_(by))
        return [result.message.seq for result in found.results]

    assert await find("fox") == [3, 2, 1]
    assert await find("FOX quick") == [2, 1]
    assert await find('"quick brown"') == [1]
    assert await find("fox -red") == [2, 1]
    assert await find('fox -"quick brown"') == [3, 2]
    assert await find("fox", conversation_id=group) == [3, 2, 1]
    assert await find("badger") == []
    assert await find("fox", by=three) == [1]
    await edit(services, said[2], one, "a red badger")
    assert await find("fox") == [2, 1]
    await about(services, "DeleteMessage", said[0], one, for_everyone=True)
    await about(services, "DeleteMessage", said[1], two)
    assert await find("fox") == []
    assert await find("fox", by=one) == [2]
    for bad in ("", " ", "-fox", "x" * 201, "a\0b", "...", " ".join("abcdefghijklmnopq")):
        request = pb.SearchMessagesRequest(query=bad)
        assert (await refusal(services.messaging.SearchMessages(request, metadata=as_(one))))[0] is (
            Code.INVALID_ARGUMENT
        ), bad


async def test_events_of_many_conversations_are_indexed_together(
    services: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What events tell together is indexed like one by one, in parts if it is much; repeats change nothing."""
    monkeypatch.setattr(search_index, "TOGETHER", 4)
    groups = [await a_group(services.db) for _ in range(2)]
    said = [await send(services, group, people[0], f"word{n}") for n in range(5) for group, people in groups]
    index = services.conversations.search_index
    now = datetime.now(UTC)

    def event(kind: str, message: pb.Message) -> Event:
        return Event(
            id=message.id, type=kind, source="messaging", subject=message.conversation_id, time=now,
            data={"seq": message.seq},
        )  # fmt: skip

    async def indexed() -> dict[str, list[int]]:
        rows = await services.db.fetch(
            "SELECT conversation_id, array_agg(seq ORDER BY seq) AS seqs FROM conversations.search GROUP BY 1"
        )
        return {str(row["conversation_id"]): row["seqs"] for row in rows}

    events = [event("message_sent", message) for message in said]
    await index.handle_many(events)
    assert await indexed() == {group: [1, 2, 3, 4, 5] for group, _ in groups}
    (first, (one, _)), (second, _) = groups
    await about(services, "DeleteMessage", said[0], one, for_everyone=True)
    await edit(services, said[2], one, "other words")
    changed = [event("message_deleted", said[0]), event("message_edited", said[2])]
    await index.handle_many([events[0], *changed, events[2]])
    await index.handle_many(events)
    assert await indexed() == {first: [2, 3, 4, 5], second: [1, 2, 3, 4, 5]}
    found = await services.messaging.SearchMessages(
        pb.SearchMessagesRequest(query="other"), metadata=as_(one)
    )
    assert [result.message.seq for result in found.results] == [2]


async def test_search_pages_and_highlights(services: World) -> None:
    """Pages go from the latest back without gap or repeat, over conversations; found words are marked."""
    groups = [await a_group(services.db) for _ in range(2)]
    one = groups[0][1][0]
    add = pb.AddMemberRequest(conversation_id=groups[1][0], user_ids=[one])
    await services.messaging.AddMember(add, metadata=as_(groups[1][1][0]))
    expected = []
    for n in range(12):
        sent = await send(services, groups[n % 2][0], one, f"message {n} <b>needle</b> in hay")
        expected.append(sent.id)
    for group, _ in groups:
        await services.conversations.search_index.catch_up((group,))
    found, token = [], ""
    while True:
        request = pb.SearchMessagesRequest(query="needle", page_size=5, page_token=token)
        page = await services.messaging.SearchMessages(request, metadata=as_(one))
        found += [result.message.id for result in page.results]
        assert all("\x02needle\x03" in result.highlight for result in page.results)
        token = page.next_page_token
        if not token:
            break
    assert found == expected[::-1]
    request = pb.SearchMessagesRequest(query="x", page_token="nonsense")
    assert (await refusal(services.messaging.SearchMessages(request, metadata=as_(one))))[0] is (
        Code.INVALID_ARGUMENT
    )


async def test_messages_expire(services: World) -> None:
    """A message of a limited life, by itself or by the conversation's setting, is never read after it."""
    group, (one, two) = await a_group(services.db)
    own = await send(services, group, one, "soon gone", expire_after_s=60)
    update = pb.UpdateConversationRequest(conversation_id=group, settings={"message_ttl_s": "3600"})
    await services.messaging.UpdateConversation(update, metadata=as_(one))
    by_setting = await send(services, group, one, "gone in an hour")
    life = by_setting.expires_at.ToDatetime() - by_setting.sent_at.ToDatetime()
    assert life.total_seconds() == 3600
    await services.db.execute(
        "UPDATE conversations.messages SET expires_at = now() - interval '1 ms' WHERE id = $1", own.id
    )
    read = (await about(services, "GetMessage", own, two)).message
    assert (read.content, read.HasField("deleted_at")) == (b"", True)
    await services.conversations.expiry.sweep()
    stored = await services.db.fetchval("SELECT content FROM conversations.messages WHERE id = $1", own.id)
    assert stored == b""
    for value in ("-1", "x", "1.5", str(10**9)):
        update = pb.UpdateConversationRequest(conversation_id=group, settings={"message_ttl_s": value})
        refused = await refusal(services.messaging.UpdateConversation(update, metadata=as_(one)))
        assert refused[0] is Code.INVALID_ARGUMENT


async def test_changes_are_limited_by_rate(db: Postgres) -> None:
    """Edits and reactions count against a limit of their own a minute."""
    limits = type(UNLIMITED)(user_messages_per_min=3)
    async with world(db, limits) as services:
        (one,) = await sign_up(db, 1)
        request = pb.CreateConversationRequest(kind="group", name="g")
        group = (await services.messaging.CreateConversation(request, metadata=as_(one))).conversation.id
        sent = await send(services, group, one)
        for n in range(3):
            await edit(services, sent, one, str(n))
        refused = await refusal(about(services, "AddReaction", sent, one, emoji="👍"))
        assert refused == (Code.RESOURCE_EXHAUSTED, "rate_limited")
