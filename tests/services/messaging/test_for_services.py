"""What other services tell MessagingService and ask of it: events, groups, media links, exports, erasure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
import trio

from tests.conversations.kit import NOBODY, Silent, a_group, sign_up
from tests.services.kit import SERVICE, World, as_, as_service
from tests.services.messaging.kit import refusal, send
from whispr.conversations import expander
from whispr.conversations.announcer import Announcer
from whispr.conversations.attachments import Attachments, MediaStub
from whispr.errors import Code, WhisprError, conflict, denied, unavailable
from whispr.events import Batch, Event
from whispr.ids import new_id
from whispr.v1 import messaging_pb2 as pb
from whispr.v1.common_pb2 import ExportUserDataRequest


async def events(services: World) -> list[tuple[str, dict[str, Any]]]:
    """Return what is in the outbox, batches expanded, in order."""
    found: list[tuple[str, dict[str, Any]]] = []
    async with services.db.transaction() as tx:
        for row in await tx.fetch("SELECT * FROM events.outbox ORDER BY position"):
            data = msgspec.json.decode(row["data"])
            if row["expander"] is None:
                found.append((row["stream_subject"], data))
                continue
            batch = Batch(str(row["id"]), row["about"], "", "", row["emitted_at"], data)
            assert row["expander"] == expander.NAME
            (made,) = await expander.expand(tx, [batch])
            assert [made, made] == await expander.expand(tx, [batch, batch])
            found += [(event.stream_subject, event.data) for event in made]
    return found


async def notify(services: World, group: str, kind: str, **fields: Any) -> str:
    request = pb.NotifyConversationEventRequest(conversation_id=group, event_type=kind, **fields)
    return (await services.messaging.NotifyConversationEvent(request, metadata=as_service())).event_id


async def test_what_another_service_tells_becomes_true_once(services: World) -> None:
    """Members are seated and unseated, settings merged; the event's id is returned, none for a repeat."""
    group, (one, two) = await a_group(services.db)
    (three,) = await sign_up(services.db, 1)
    ids = [
        await notify(services, group, "member_added", user_id=three, metadata={"role": "moderator"}),
        await notify(services, group, "member_removed", user_id=two),
        await notify(services, group, "settings_changed", metadata={"topic": "tea"}),
    ]
    stored = {str(row["id"]) for row in await services.db.fetch("SELECT id FROM events.outbox")}
    assert set(ids) <= stored
    request = pb.GetConversationRequest(conversation_id=group)
    now = (await services.messaging.GetConversation(request, metadata=as_(three))).conversation
    assert {member.user_id: member.role for member in now.members} == {one: "owner", three: "moderator"}
    assert dict(now.settings) == {"topic": "tea"}
    assert await notify(services, group, "member_added", user_id=three) == ""
    assert await notify(services, group, "member_removed", user_id=two) == ""
    assert await notify(services, group, "settings_changed", metadata={"topic": "tea"}) == ""
    for fields, code in (
        ({"kind": "member_danced", "user_id": three}, Code.INVALID_ARGUMENT),
        ({"kind": "member_added", "user_id": "x"}, Code.INVALID_ARGUMENT),
        ({"kind": "member_added", "user_id": NOBODY}, Code.NOT_FOUND),
        ({"kind": "member_added", "user_id": two, "metadata": {"role": "king"}}, Code.INVALID_ARGUMENT),
    ):
        kind = str(fields.pop("kind"))
        assert (await refusal(notify(services, group, kind, **fields)))[0] is code
    assert (await refusal(notify(services, NOBODY, "settings_changed")))[0] is Code.NOT_FOUND


async def test_a_group_of_another_service_is_opened_once(services: World) -> None:
    """Under the group's own id, also when told several times at once; the id of something else is refused."""
    creator, *others = await sign_up(services.db, 4)
    request = pb.NotifyGroupCreationRequest(
        group_id=new_id(), creator_id=creator, member_ids=others, group_name="crew", settings={"a": "b"}
    )
    made: list[str] = []

    async def tell() -> None:
        reply = await services.messaging.NotifyGroupCreation(request, metadata=as_service())
        made.append(reply.conversation_id)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(tell)
    assert set(made) == {request.group_id}
    got = pb.GetConversationRequest(conversation_id=request.group_id)
    now = (await services.messaging.GetConversation(got, metadata=as_(others[0]))).conversation
    assert (now.name, now.member_count, dict(now.settings)) == ("crew", 4, {"a": "b"})
    request.creator_id = others[0]
    call = services.messaging.NotifyGroupCreation
    assert await refusal(call(request, metadata=as_service())) == (Code.FAILED_PRECONDITION, "group_id_taken")
    assert (await refusal(call(request, metadata=as_(creator))))[0] is Code.PERMISSION_DENIED


async def test_every_message_and_change_is_an_event_in_order(services: World) -> None:
    """message_sent with its text, then what happened to it; message_sent of an erased one says so."""
    group, (one, two) = await a_group(services.db)
    sent = await send(services, group, one, "hello", metadata={"k": "v"}, client_id="c")
    edit = pb.EditMessageRequest(conversation_id=group, message_id=sent.id, content=b"x" * 3000)
    await services.messaging.EditMessage(edit, metadata=as_(one))
    react = pb.AddReactionRequest(conversation_id=group, message_id=sent.id, emoji="👍")
    await services.messaging.AddReaction(react, metadata=as_(two))
    await services.messaging.MarkRead(pb.MarkReadRequest(conversation_id=group), metadata=as_(two))
    told = await events(services)
    assert [subject.removeprefix("messaging.events.") for subject, _ in told] == [
        "conversation_created", "message_sent", "message_edited", "reaction_added", "read",
    ]  # fmt: skip
    facts = told[1][1]
    assert (facts["message_id"], facts["seq"], facts["sender_id"]) == (sent.id, 1, one)
    assert (len(facts["text"]), facts["text_cut"], facts["metadata"]) == (2000, True, {"k": "v"})
    assert (told[3][1]["emoji"], told[3][1]["sender_id"], told[3][1]["change"]) == ("👍", one, 3)
    assert (told[4][1]["user_id"], told[4][1]["seq"]) == (two, 1)
    delete = pb.DeleteMessageRequest(conversation_id=group, message_id=sent.id, for_everyone=True)
    await services.messaging.DeleteMessage(delete, metadata=as_(one))
    again = (await events(services))[1][1]
    assert again["deleted"]
    assert "text" not in again


async def test_one_outbox_row_stands_for_a_whole_batch(services: World) -> None:
    """Many sends at once leave few rows, each expanded into its messages, all of them and in order."""
    groups = [await a_group(services.db) for _ in range(3)]

    async def send_some(group: str, sender: str) -> None:
        for n in range(10):
            await send(services, group, sender, str(n))

    async with trio.open_nursery() as nursery:
        for group, people in groups:
            for person in people:
                nursery.start_soon(send_some, group, person)
    rows = await services.db.fetchval("SELECT count(*) FROM events.outbox WHERE expander IS NOT NULL")
    assert rows < 60
    told = [data for subject, data in await events(services) if subject.endswith("message_sent")]
    for group, _ in groups:
        assert [data["seq"] for data in told if data["conversation_id"] == group] == list(range(1, 21))


# Media


class Media:
    """A media service that answers as it is told."""

    def __init__(self) -> None:
        self.answer: WhisprError | None = None
        self.asked: list[tuple[str, str, str]] = []

    async def LinkMediaToMessage(self, request: Any, *, metadata: Sequence[tuple[str, str]]) -> None:  # noqa: N802  # the RPC's name
        await trio.lowlevel.checkpoint()
        self.asked.append((request.media_id, request.message_id, dict(metadata)["x-whispr-actor"]))
        if self.answer is not None:
            raise self.answer


def linking(services: World) -> tuple[Attachments, Media, Silent]:
    media, silent = Media(), Silent()
    stub, announcer = cast("MediaStub", media), cast("Announcer", silent)
    return Attachments(services.db, announcer, stub, lambda user: as_service(user)), media, silent


async def attachments(services: World, message: pb.Message, viewer: str) -> list[tuple[str, str]]:
    request = pb.GetMessageRequest(conversation_id=message.conversation_id, message_id=message.id)
    shown = (await services.messaging.GetMessage(request, metadata=as_(viewer))).message
    return [(each.media_id, each.state) for each in shown.attachments]


async def test_a_link_is_made_on_both_sides(services: World) -> None:
    """The media service is asked in the sender's name; its yes shows to all, a repeat is the same link."""
    group, (one, two) = await a_group(services.db)
    sent, medium = await send(services, group, one, message_type="media"), new_id()
    links, media, silent = linking(services)
    made = await links.link(sent.id, one, medium, "image", {"alt": "a cat"})
    again = await links.link(sent.id, None, medium, "image", {})
    assert (made.state, made.link_id, dict(again.metadata)) == ("linked", again.link_id, {"alt": "a cat"})
    assert media.asked == [(medium, sent.id, one)]
    assert await attachments(services, sent, two) == [(medium, "linked")]
    assert [change.kind for change in silent.changes] == ["media_linked"]
    for actor, media_type, code in (
        (two, "image", Code.PERMISSION_DENIED),
        (one, "hologram", Code.INVALID_ARGUMENT),
    ):
        assert (await refusal(links.link(sent.id, actor, medium, media_type, {})))[0] is code
    assert (await refusal(links.link(NOBODY, one, medium, "image", {})))[0] is Code.NOT_FOUND
    (stranger,) = await sign_up(services.db, 1)
    assert (await refusal(links.link(sent.id, stranger, medium, "image", {})))[1] == "not_a_member"


async def test_a_link_waits_for_an_absent_media_service(services: World) -> None:
    """It is pending until the service is back, then settled once; a no takes it away, also later."""
    group, (one, _) = await a_group(services.db)
    sent = await send(services, group, one)
    links, media, silent = linking(services)
    media.answer = unavailable("away")
    good, bad = new_id(), new_id()
    assert (await links.link(sent.id, one, good, "image", {})).state == "pending"
    assert (await links.link(sent.id, one, bad, "image", {})).state == "pending"
    assert not await links.retry()
    assert len(media.asked) == 2
    due = "UPDATE conversations.attachments SET retry_at = now() WHERE media_id = $1"
    media.answer = None
    await services.db.execute(due, good)
    await links.retry()
    media.answer = denied("not yours", reason="media_forbidden")
    await services.db.execute(due, bad)
    await links.retry()
    assert await attachments(services, sent, one) == [(good, "linked")]
    assert [change.kind for change in silent.changes] == ["media_linked"]
    assert await refusal(links.link(sent.id, one, new_id(), "image", {})) == (
        Code.PERMISSION_DENIED,
        "media_forbidden",
    )
    media.answer = conflict("gone", "message_deleted")
    assert (await refusal(links.link(sent.id, one, new_id(), "image", {})))[1] == "message_deleted"
    assert await attachments(services, sent, one) == [(good, "linked")]


async def test_deleted_messages_and_media_take_their_links_along(services: World) -> None:
    """The message's event names its media; a deleted medium leaves every message, once."""
    group, (one, _) = await a_group(services.db)
    first, second, medium = await send(services, group, one), await send(services, group, one), new_id()
    links, _, silent = linking(services)
    for message in (first, second):
        await links.link(message.id, one, medium, "image", {})
    delete = pb.DeleteMessageRequest(conversation_id=group, message_id=first.id, for_everyone=True)
    await services.messaging.DeleteMessage(delete, metadata=as_(one))
    assert (await events(services))[-1][1]["media_ids"] == [medium]
    gone = Event(
        id=new_id(), type="media_deleted", time=datetime.now(UTC), source="user", subject=medium, data={}
    )
    for _ in range(2):
        await links.media_deleted(gone)
    assert await attachments(services, second, one) == []
    assert [change.kind for change in silent.changes] == ["media_linked", "media_linked", "media_unlinked"]


async def test_a_message_has_a_bounded_number_of_media(services: World) -> None:
    """The 21st link is refused, also when many are made at once."""
    group, (one, _) = await a_group(services.db)
    sent = await send(services, group, one)
    links, _, _ = linking(services)
    refused: list[str] = []

    async def link() -> None:
        try:
            await links.link(sent.id, one, new_id(), "image", {})
        except WhisprError as error:
            refused.append(error.reason)

    async with trio.open_nursery() as nursery:
        for _ in range(23):
            nursery.start_soon(link)
    assert refused == ["too_many_attachments"] * 3
    assert len(await attachments(services, sent, one)) == 20


# Exports and erasure


async def export(services: World, user: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    request = ExportUserDataRequest(user_id=user)
    async with services.messaging.ExportUserData(request, metadata=as_(SERVICE)) as records:
        async for record in records:
            assert record.source == "messaging"
            found.append((record.kind, msgspec.json.decode(record.json)))
    return found


async def fill(services: World) -> tuple[str, str, list[str]]:
    """Make a group, a direct conversation, and one of everything that a person leaves there."""
    group, people = await a_group(services.db)
    one, two = people
    request = pb.CreateConversationRequest(kind="direct", member_ids=[two])
    talk = (await services.messaging.CreateConversation(request, metadata=as_(one))).conversation.id
    for conversation in (group, talk):
        await send(services, conversation, one, "mine")
    theirs = await send(services, group, two, "theirs")
    react = pb.AddReactionRequest(conversation_id=group, message_id=theirs.id, emoji="👍")
    await services.messaging.AddReaction(react, metadata=as_(one))
    await services.messaging.SaveDraft(
        pb.SaveDraftRequest(conversation_id=group, content=b"draft"), metadata=as_(one)
    )
    schedule = pb.ScheduleMessageRequest(conversation_id=group, content=b"later")
    schedule.send_at.GetCurrentTime()
    schedule.send_at.seconds += 3600
    await services.messaging.ScheduleMessage(schedule, metadata=as_(one))
    return group, talk, people


async def test_an_export_holds_everything_of_a_person_and_nothing_of_others(services: World) -> None:
    """Memberships, own messages, reactions, drafts and what is scheduled; not what others wrote."""
    _, _, (one, two) = await fill(services)
    found = await export(services, one)
    kinds = [kind for kind, _ in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "membership": 2, "message": 2, "reaction": 1, "draft": 1, "scheduled": 1,
    }  # fmt: skip
    assert {data["text"] for kind, data in found if kind == "message"} == {"mine"}
    assert "theirs" not in str(found)
    assert [kind for kind, _ in await export(services, two)].count("message") == 1
    assert await export(services, NOBODY) == []


@pytest.mark.parametrize("keep", [False, True])
async def test_a_deleted_account_is_taken_out(services: World, keep: bool) -> None:
    """It leaves groups, its direct conversations close, its traces go; messages stay only by setting."""
    group, talk, (one, two) = await fill(services)
    privacy = services.conversations.privacy
    privacy._keep_messages = keep
    deleted = Event(
        id=new_id(), type="account_deleted", time=datetime.now(UTC), source="user", subject=one, data={}
    )
    for _ in range(2):
        await privacy.account_deleted(deleted)
    request = pb.GetConversationRequest(conversation_id=group)
    now = (await services.messaging.GetConversation(request, metadata=as_(two))).conversation
    assert {member.user_id: member.role for member in now.members} == {two: "owner"}
    history = await services.messaging.GetMessages(
        pb.GetMessagesRequest(conversation_id=group), metadata=as_(two)
    )
    assert [message.content for message in history.messages] == [b"mine" if keep else b"", b"theirs"]
    assert not history.messages[1].reactions
    refused = await refusal(send(services, talk, two))
    assert refused == (Code.FAILED_PRECONDITION, "room_closed")
    left = {kind for kind, _ in await export(services, one)}
    assert left == ({"membership", "message"} if keep else {"membership"})
