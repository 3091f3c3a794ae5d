"""What people keep for themselves, what waits to be sent, and catching up after being away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from google.protobuf.timestamp_pb2 import Timestamp

from tests.conversations.kit import a_group, sign_up
from tests.services.kit import World, as_
from tests.services.messaging.kit import refusal, send
from whispr.conversations import sync
from whispr.errors import Code
from whispr.v1 import messaging_pb2 as pb


async def conversation(services: World, group: str, viewer: str) -> pb.Conversation:
    request = pb.GetConversationRequest(conversation_id=group)
    return (await services.messaging.GetConversation(request, metadata=as_(viewer))).conversation


# Drafts, archive, mute


async def test_a_draft_is_kept_for_its_writer_alone(services: World) -> None:
    """It is in the writer's listing and nobody else's, replaced by the next one, dropped by an empty one."""
    group, (one, two) = await a_group(services.db)
    for text in (b"hel", b"hello"):
        save = pb.SaveDraftRequest(conversation_id=group, content=text)
        await services.messaging.SaveDraft(save, metadata=as_(one))
    assert (await conversation(services, group, one)).draft.content == b"hello"
    assert not (await conversation(services, group, two)).HasField("draft")
    get = pb.GetDraftRequest(conversation_id=group)
    assert (await services.messaging.GetDraft(get, metadata=as_(one))).draft.content == b"hello"
    for _ in range(2):
        await services.messaging.SaveDraft(pb.SaveDraftRequest(conversation_id=group), metadata=as_(one))
    assert not (await services.messaging.GetDraft(get, metadata=as_(one))).HasField("draft")
    large = pb.SaveDraftRequest(conversation_id=group, content=b"x" * (64 * 1024 + 1))
    refused = await refusal(services.messaging.SaveDraft(large, metadata=as_(one)))
    assert refused == (Code.INVALID_ARGUMENT, "message_too_large")


async def test_an_archived_conversation_is_listed_apart(services: World) -> None:
    """It is aside for whoever archived it, also when messages come, until taken back."""
    group, (one, two) = await a_group(services.db)

    async def listed(viewer: str, archived: bool) -> int:
        request = pb.ListConversationsRequest(archived=archived)
        reply = await services.messaging.ListConversations(request, metadata=as_(viewer))
        return len(reply.conversations)

    for _ in range(2):
        request = pb.ArchiveConversationRequest(conversation_id=group, archived=True)
        await services.messaging.ArchiveConversation(request, metadata=as_(one))
    await send(services, group, two)
    assert [await listed(one, False), await listed(one, True), await listed(two, False)] == [0, 1, 1]
    assert (await conversation(services, group, one)).archived
    request = pb.ArchiveConversationRequest(conversation_id=group)
    await services.messaging.ArchiveConversation(request, metadata=as_(one))
    assert [await listed(one, False), await listed(one, True)] == [1, 0]


async def test_notifications_are_muted_for_a_time_or_for_good(services: World) -> None:
    """The end is told, is in the listing, in the published view and in an event; and can be lifted."""
    group, (one, two) = await a_group(services.db)

    async def mute(**fields: Any) -> pb.MuteConversationResponse:
        request = pb.MuteConversationRequest(conversation_id=group, **fields)
        return await services.messaging.MuteConversation(request, metadata=as_(one))

    until = (await mute(muted=True, duration_s=3600)).muted_until.ToDatetime(UTC)
    assert abs(until - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert (await mute(muted=True)).muted_until.ToDatetime().year == 9999
    assert (await conversation(services, group, one)).muted_until.ToDatetime().year == 9999
    assert not (await conversation(services, group, two)).HasField("muted_until")
    view = (
        "SELECT notify_muted_until FROM conversations.memberships WHERE conversation_id = $1 AND user_id = $2"
    )
    assert (await services.db.fetchval(view, group, one)).year == 9999
    assert not (await mute(muted=False)).HasField("muted_until")
    told = "SELECT count(*) FROM events.outbox WHERE stream_subject = 'messaging.events.conversation_muted'"
    assert await services.db.fetchval(told) == 3


async def test_reading_all_at_once(services: World) -> None:
    """The conversations named, or all, are read to their ends; a stranger's are left alone."""
    groups = [await a_group(services.db) for _ in range(3)]
    reader = groups[0][1][1]
    for group, (owner, _) in groups[1:2]:
        add = pb.AddMemberRequest(conversation_id=group, user_ids=[reader])
        await services.messaging.AddMember(add, metadata=as_(owner))
    for group, (owner, _) in groups:
        await send(services, group, owner)
    mark = pb.MarkAllReadRequest(conversation_ids=[groups[0][0], groups[2][0]])
    assert (await services.messaging.MarkAllRead(mark, metadata=as_(reader))).marked_count == 1
    assert (
        await services.messaging.MarkAllRead(pb.MarkAllReadRequest(), metadata=as_(reader))
    ).marked_count == 1
    listed = await services.messaging.ListConversations(pb.ListConversationsRequest(), metadata=as_(reader))
    assert [each.unread_count for each in listed.conversations] == [0, 0]
    many = pb.MarkAllReadRequest(conversation_ids=[groups[0][0]] * 101)
    refused = await refusal(services.messaging.MarkAllRead(many, metadata=as_(reader)))
    assert refused[0] is Code.INVALID_ARGUMENT


# Scheduled messages


def later(seconds: float) -> Timestamp:
    at = Timestamp()
    at.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return at


async def schedule(
    services: World, group: str, sender: str, seconds: float, text: str = "later", **fields: Any
) -> pb.ScheduledMessage:
    request = pb.ScheduleMessageRequest(
        conversation_id=group, content=text.encode(), send_at=later(seconds), **fields
    )
    return (await services.messaging.ScheduleMessage(request, metadata=as_(sender))).scheduled


async def waiting(services: World, sender: str) -> list[pb.ScheduledMessage]:
    reply = await services.messaging.ListScheduledMessages(
        pb.ListScheduledMessagesRequest(), metadata=as_(sender)
    )
    return list(reply.scheduled)


async def history(services: World, group: str, viewer: str) -> list[bytes]:
    reply = await services.messaging.GetMessages(
        pb.GetMessagesRequest(conversation_id=group), metadata=as_(viewer)
    )
    return [message.content for message in reply.messages]


async def test_a_scheduled_message_is_sent_when_it_is_due(services: World) -> None:
    """It waits in its sender's list alone, is sent once with its client_id, and is gone from the list."""
    group, (one, two) = await a_group(services.db)
    stored = trio.Event()
    services.conversations.watch(lambda _: stored.set())
    kept = await schedule(services, group, one, 0.3, client_id="mine", expire_after_s=60)
    assert [each.id for each in await waiting(services, one)] == [kept.id]
    assert await waiting(services, two) == []
    assert await history(services, group, two) == []
    with trio.fail_after(10):
        await stored.wait()
    (sent,) = (
        await services.messaging.GetMessages(pb.GetMessagesRequest(conversation_id=group), metadata=as_(two))
    ).messages
    assert (sent.content, sent.client_id, sent.sender_id) == (b"later", "mine", one)
    assert sent.HasField("expires_at")
    await services.conversations.operations.schedule._send_due()
    assert len(await history(services, group, two)) == 1


async def test_scheduled_messages_are_sent_once_by_however_many_processes(services: World) -> None:
    """Several senders at once, one of which died after sending, store each message exactly once."""
    group, (one, two) = await a_group(services.db)
    core = services.conversations
    kept = [await schedule(services, group, one, 3600, f"m{n}") for n in range(10)]
    # As if a process had sent the first one and died before it dropped the row.
    first = await services.db.fetchrow(
        "SELECT client_id FROM conversations.scheduled WHERE id = $1", kept[0].id
    )
    assert first is not None
    await send(services, group, one, "m0", client_id=first["client_id"])
    await services.db.execute("UPDATE conversations.scheduled SET send_at = now() - interval '1 s'")
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(core.operations.schedule._send_due)
    assert sorted(await history(services, group, two)) == [f"m{n}".encode() for n in range(10)]
    assert await waiting(services, one) == []


async def test_a_refused_scheduled_message_says_why(services: World) -> None:
    """Whoever has left by then does not speak; the message stays in the sender's list with the reason."""
    group, (_, one) = await a_group(services.db)
    await schedule(services, group, one, 3600)
    leave = pb.RemoveMemberRequest(conversation_id=group, user_id="me")
    await services.messaging.RemoveMember(leave, metadata=as_(one))
    await services.db.execute("UPDATE conversations.scheduled SET send_at = now() - interval '1 s'")
    await services.conversations.operations.schedule._send_due()
    (failed,) = await waiting(services, one)
    assert (failed.failure, failed.HasField("failed_at")) == ("not_a_member", True)
    cancel = pb.CancelScheduledMessageRequest(scheduled_id=failed.id)
    await services.messaging.CancelScheduledMessage(cancel, metadata=as_(one))
    assert (await refusal(services.messaging.CancelScheduledMessage(cancel, metadata=as_(one))))[
        0
    ] is Code.NOT_FOUND


async def test_scheduling_is_bounded_and_repeatable(services: World) -> None:
    """The past, more than a year ahead and more than 100 are refused; a client_id makes a repeat harmless."""
    group, (one, two) = await a_group(services.db)
    for seconds in (-3600, 400 * 24 * 3600):
        assert (await refusal(schedule(services, group, one, seconds)))[0] is Code.INVALID_ARGUMENT
    request = pb.ScheduleMessageRequest(
        conversation_id=group, content=b"x", send_at=later(3600), client_id="c"
    )
    ids: set[str] = set()

    async def ask() -> None:
        ids.add((await services.messaging.ScheduleMessage(request, metadata=as_(one))).scheduled.id)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len(ids) == 1
    request.content = b"y"
    refused = await refusal(services.messaging.ScheduleMessage(request, metadata=as_(one)))
    assert refused == (Code.ALREADY_EXISTS, "duplicate_mismatch")
    cancel = pb.CancelScheduledMessageRequest(scheduled_id=ids.pop())
    assert (await refusal(services.messaging.CancelScheduledMessage(cancel, metadata=as_(two))))[
        0
    ] is Code.NOT_FOUND
    await services.db.execute(
        "INSERT INTO conversations.scheduled (id, conversation_id, sender_id, client_id, message_type, content,"
        " send_at, created_at) SELECT gen_random_uuid(), $1, $2, n::text, 'text', 'x', now() + interval '1 h', now()"
        " FROM generate_series(1, 99) AS n",
        *(group, one),
    )
    refused = await refusal(schedule(services, group, one, 3600))
    assert refused == (Code.RESOURCE_EXHAUSTED, "too_many_scheduled")


# Sync


class Client:
    """A device that keeps what Sync tells, as a careful client does: by seq and by change number."""

    def __init__(self, services: World, user: str) -> None:
        self.services, self.user = services, user
        self.cursor = ""
        self.messages: dict[str, dict[int, pb.Message]] = {}
        self.changes: dict[str, set[int]] = {}
        self.summaries: dict[str, pb.Conversation] = {}
        self.pages = 0

    async def sync(self, page_size: int = 0) -> None:
        while True:
            request = pb.SyncRequest(since=self.cursor, page_size=page_size)
            reply = await self.services.messaging.Sync(request, metadata=as_(self.user))
            self.pages += 1
            for told in reply.conversations:
                await self.apply(told)
            for gone in reply.left_conversation_ids:
                self.messages.pop(gone, None)
                self.summaries.pop(gone, None)
            self.cursor = reply.cursor
            if not reply.has_more:
                return

    async def apply(self, told: pb.ConversationChanges) -> None:
        id_ = told.conversation.id
        self.summaries[id_] = told.conversation
        known = self.messages.setdefault(id_, {})
        if told.truncated:
            known.clear()
            request = pb.GetMessagesRequest(conversation_id=id_, after_seq=0, page_size=100)
            while True:
                page = await self.services.messaging.GetMessages(request, metadata=as_(self.user))
                known.update({message.seq: message for message in page.messages})
                if not page.has_more:
                    break
                request.after_seq = page.messages[-1].seq
        known.update({message.seq: message for message in (*told.messages, *told.changed_messages)})
        for seq in told.hidden_seqs:
            known.pop(seq, None)
        self.changes.setdefault(id_, set()).update(change.change for change in told.changes)

    async def check(self) -> None:
        """What is kept is what a fresh look at everything shows."""
        listed = await self.services.messaging.ListConversations(
            pb.ListConversationsRequest(page_size=100), metadata=as_(self.user)
        )
        assert {each.id for each in listed.conversations} == set(self.summaries)
        for each in listed.conversations:
            kept = self.summaries[each.id]
            assert (kept.unread_count, kept.last_seq, kept.draft) == (
                each.unread_count,
                each.last_seq,
                each.draft,
            )
            request = pb.GetMessagesRequest(conversation_id=each.id, page_size=100, after_seq=0)
            page = await self.services.messaging.GetMessages(request, metadata=as_(self.user))
            shown = [self.messages[each.id][seq] for seq in sorted(self.messages[each.id])]
            assert shown == list(page.messages)


async def do(services: World, rpc: str, message: pb.Message, by: str, **fields: Any) -> None:
    request = getattr(pb, f"{rpc}Request")(
        conversation_id=message.conversation_id, message_id=message.id, **fields
    )
    await getattr(services.messaging, rpc)(request, metadata=as_(by))


async def test_sync_brings_a_device_up_to_date(services: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any mixture of changes a device that syncs holds exactly what a fresh one sees, page by page."""
    monkeypatch.setattr(sync, "MARGIN", timedelta(0))
    groups = [await a_group(services.db) for _ in range(4)]
    one = groups[0][1][0]
    for group, (owner, _) in groups[1:]:
        add = pb.AddMemberRequest(conversation_id=group, user_ids=[one])
        await services.messaging.AddMember(add, metadata=as_(owner))
    sent = [await send(services, group, owner, f"{n}") for n, (group, (owner, _)) in enumerate(groups)]
    device = Client(services, one)
    await device.sync(page_size=3)
    assert device.pages == 2
    await device.check()
    quiet = await services.messaging.Sync(pb.SyncRequest(since=device.cursor), metadata=as_(one))
    assert not quiet.conversations
    assert not quiet.has_more

    await do(services, "EditMessage", sent[0], one, content=b"edited")
    await do(services, "DeleteMessage", sent[1], groups[1][1][0], for_everyone=True)
    await do(services, "DeleteMessage", sent[2], one)
    await do(services, "AddReaction", sent[3], one, emoji="👍")
    await send(services, groups[3][0], groups[3][1][0], "new")
    save = pb.SaveDraftRequest(conversation_id=groups[0][0], content=b"draft")
    await services.messaging.SaveDraft(save, metadata=as_(one))
    await device.sync(page_size=1)
    await device.check()

    await services.messaging.MarkRead(pb.MarkReadRequest(conversation_id=groups[3][0]), metadata=as_(one))
    remove = pb.RemoveMemberRequest(conversation_id=groups[1][0], user_id=one)
    await services.messaging.RemoveMember(remove, metadata=as_(groups[1][1][0]))
    for n in range(120):
        await send(services, groups[2][0], groups[2][1][0], f"many {n}")
    await device.sync()
    assert groups[1][0] not in device.summaries
    for each in device.summaries.values():
        assert device.changes[each.id] <= set(range(1, each.last_change + 1))
    kept = device.messages[groups[2][0]]
    assert sorted(kept) == list(range(2, 122))


async def test_sync_tells_receipts_and_truncates(services: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' watermarks come along; more than a page of a conversation is truncated, with the latest told."""
    monkeypatch.setattr(sync, "MARGIN", timedelta(0))
    group, (one, two) = await a_group(services.db)
    await send(services, group, one)
    began = (await services.messaging.Sync(pb.SyncRequest(), metadata=as_(one))).cursor
    await services.messaging.MarkRead(pb.MarkReadRequest(conversation_id=group), metadata=as_(two))
    reply = await services.messaging.Sync(pb.SyncRequest(since=began), metadata=as_(one))
    (told,) = reply.conversations
    assert [(r.user_id, r.read_seq) for r in told.receipts] == [(two, 1)]
    assert not told.messages
    await services.db.execute(
        "INSERT INTO conversations.messages (conversation_id, seq, id, sender_id, message_type, content, sent_at)"
        " SELECT $1, n, gen_random_uuid(), $2, 'text', 'x', clock_timestamp() FROM generate_series(2, 150) AS n",
        *(group, two),
    )
    await services.db.execute(
        "UPDATE conversations.conversations SET last_seq = 150, last_message_at = clock_timestamp() WHERE id = $1",
        group,
    )
    (told,) = (
        await services.messaging.Sync(pb.SyncRequest(since=reply.cursor), metadata=as_(one))
    ).conversations
    assert told.truncated
    assert [message.seq for message in told.messages] == list(range(51, 151))
    for bad in ("x", "e30=", began[:-2]):
        refused = await refusal(services.messaging.Sync(pb.SyncRequest(since=bad), metadata=as_(one)))
        assert refused[0] is Code.INVALID_ARGUMENT


async def test_the_margin_covers_what_was_committed_late(services: World) -> None:
    """A message with a time before the cursor, committed after it, is told: seconds later it still is."""
    group, (one, two) = await a_group(services.db)
    cursor = (await services.messaging.Sync(pb.SyncRequest(), metadata=as_(one))).cursor
    sent = await send(services, group, two)
    await services.db.execute(
        "UPDATE conversations.messages SET sent_at = sent_at - interval '20 s' WHERE id = $1", sent.id
    )
    (told,) = (await services.messaging.Sync(pb.SyncRequest(since=cursor), metadata=as_(one))).conversations
    assert [message.id for message in told.messages] == [sent.id]


async def test_a_new_account_syncs_to_nothing(services: World) -> None:
    """Somebody without conversations gets an empty answer and a cursor."""
    (one,) = await sign_up(services.db, 1)
    reply = await services.messaging.Sync(pb.SyncRequest(), metadata=as_(one))
    assert (list(reply.conversations), reply.has_more) == ([], False)
    assert reply.cursor
