"""Reports add up, moderators act on messages, and what was hidden can be put back."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
import trio

from tests.conversations.kit import NOBODY, Written, a_group, sign_up
from whispr.adapters.postgres import Postgres
from whispr.conversations import audit
from whispr.conversations.domain import Limits, Message
from whispr.conversations.history import History
from whispr.conversations.moderation import Action, Moderation
from whispr.conversations.room_rules import Person, RoomLimits, RoomType
from whispr.conversations.rooms import Rooms
from whispr.errors import WhisprError

LIMITS = RoomLimits(flag_reports=2, hide_reports=3)


@pytest.fixture
def moderation(db: Postgres) -> Moderation:
    return Moderation(db, LIMITS, Limits())


async def a_room(db: Postgres, size: int) -> tuple[str, list[str]]:
    """Make a public room and its people; the first is the owner."""
    people = await sign_up(db, size)
    rooms = Rooms(db, LIMITS)
    made = await rooms.create(
        Person(people[0]),
        lambda _: True,
        name="a room",
        description="",
        room_type=RoomType.PUBLIC,
        visibility=None,
        slow_mode_s=0,
    )
    for person in people[1:]:
        await rooms.join(Person(person), made.conversation_id)
    return made.conversation_id, people


async def refused(act: Awaitable[object]) -> str:
    with pytest.raises(WhisprError) as error:
        await act
    return error.value.reason


async def told(db: Postgres) -> list[str]:
    """Return the types of the events in the outbox that are about moderation."""
    rows = await db.fetch("SELECT stream_subject FROM events.outbox ORDER BY position")
    types = [row["stream_subject"].rpartition(".")[2] for row in rows if row["stream_subject"]]
    return [name for name in types if name.startswith(("message_", "user_w"))]


async def test_reports_flag_then_hide_then_are_restored(
    db: Postgres, written: Written, moderation: Moderation
) -> None:
    """Distinct reporters flag and hide a message; moderators read it all the same, and put it back."""
    room_id, (owner, sender, *people) = await a_room(db, 6)
    message = await written.send(room_id, sender, "rude words")
    history = History(db, Limits())

    async def shown() -> Message:
        return await history.message(room_id, people[0], message.id)

    outcomes = []
    for reporter in (people[0], people[0], people[1], people[2], people[3]):
        found, _ = await moderation.report(Person(reporter), message.id, f"by {reporter}")
        outcomes.append((found.flagged, found.hidden))
    assert outcomes == [(False, False), (False, False), (True, False), (True, True), (True, True)]
    hidden = await shown()
    assert (hidden.content, hidden.metadata) == (b"", {"hidden": "reported"})
    [flagged], token = await moderation.open_flags(room_id, 0, "")
    assert (flagged.message.content, flagged.hidden, flagged.reports, token) == (b"rude words", True, 4, "")
    assert flagged.reasons[0] == f"by {people[3]}"
    [anywhere], token = await moderation.open_flags("", 0, "")
    assert (anywhere, token) == (flagged, "")
    assert anywhere.conversation_name
    restored = await moderation.moderate(Person(owner), message.id, Action.RESTORE, "it was a joke", b"")
    assert restored.message.content == b"rude words"
    assert (await shown()).metadata == {}
    assert await moderation.open_flags(room_id, 0, "") == ([], "")
    # The reports were dealt with: it takes as many again.
    found, _ = await moderation.report(Person(people[0]), message.id, "still")
    assert not found.flagged
    entries, _ = await audit.page(db, room_id, 10, "")
    assert [entry.action for entry in entries] == ["restore_message", "hide_message", "flag_message"]


async def test_moderators_act_on_messages_of_those_below(
    db: Postgres, written: Written, moderation: Moderation
) -> None:
    """Each act does what it says, is in the audit log, and is refused to members and against equals."""
    room_id, (owner, member, other) = await a_room(db, 3)
    message = await written.send(room_id, member, "buy this", signature=b"s", metadata={"a": "b"})
    for action in Action:
        act = moderation.moderate(
            Person(other), message.id, action, "", b"x" if action is Action.EDIT else b""
        )
        assert await refused(act) == "forbidden"
    owners = await written.send(room_id, owner)
    assert await refused(moderation.moderate(Person(owner), owners.id, Action.WARN, "", b"")) == "forbidden"

    warned = await moderation.moderate(Person(owner), message.id, Action.WARN, "no adverts", b"")
    assert warned.warning == "no adverts"
    await moderation.moderate(Person(owner), message.id, Action.FLAG, "", b"")
    assert len((await moderation.open_flags(room_id, 0, ""))[0]) == 1
    edited = await moderation.moderate(Person(owner), message.id, Action.EDIT, "", b"[advert]")
    assert (edited.message.content, edited.message.signature, edited.message.metadata) == (
        b"[advert]",
        b"",
        {"a": "b"},
    )
    assert [change.kind for change in edited.changes] == ["message_edited"]
    assert await moderation.open_flags(room_id, 0, "") == ([], "")
    deleted = await moderation.moderate(Person(owner), message.id, Action.DELETE, "", b"")
    assert deleted.message.deleted_at is not None
    again = await moderation.moderate(Person(owner), message.id, Action.DELETE, "", b"")
    assert again.changes == ()
    assert await refused(moderation.moderate(Person(owner), message.id, Action.FLAG, "", b"")) == "not_found"
    entries, _ = await audit.page(db, room_id, 10, "")
    assert [entry.action for entry in entries] == ["delete_message", "edit_message", "flag_message", "warn"]
    assert {entry.target_id for entry in entries} == {member}
    names = await told(db)
    assert names.count("message_moderated") == 4
    assert {"user_warned", "message_edited", "message_deleted"} <= set(names)


async def test_hidden_things_stay_hidden_from_strangers(
    db: Postgres, written: Written, moderation: Moderation
) -> None:
    """To who may not read a message it is not there, neither to report nor to act on."""
    room_id, (_, member) = await a_room(db, 2)
    [stranger] = await sign_up(db, 1)
    message = await written.send(room_id, member)
    assert await refused(moderation.report(Person(stranger), message.id, "")) == "not_found"
    assert await refused(moderation.report(Person(member), NOBODY, "")) == "not_found"
    assert (
        await refused(moderation.moderate(Person(stranger), message.id, Action.FLAG, "", b"")) == "not_found"
    )
    assert await refused(moderation.report(Person(member), message.id, "")) == "invalid_payload"
    platform = Person(stranger, moderates_people=True)
    await moderation.moderate(platform, message.id, Action.FLAG, "seen", b"")


async def test_outside_rooms_only_what_was_reported_is_moderated(
    db: Postgres, written: Written, moderation: Moderation
) -> None:
    """A group's message is out of moderators' reach until one of the group reports it."""
    group_id, (one, other) = await a_group(db)
    [judge] = await sign_up(db, 1)
    message = await written.send(group_id, one)
    platform = Person(judge, moderates_people=True)
    assert await refused(moderation.moderate(platform, message.id, Action.DELETE, "", b"")) == "not_found"
    assert (
        await refused(moderation.moderate(Person(other), message.id, Action.DELETE, "", b"")) == "forbidden"
    )
    await moderation.report(Person(other), message.id, "threats")
    deleted = await moderation.moderate(platform, message.id, Action.DELETE, "threats", b"")
    assert deleted.message.deleted_at is not None


async def test_what_was_withheld_goes_with_the_message(
    db: Postgres, written: Written, moderation: Moderation
) -> None:
    """Once a hidden message is erased, by anybody, what it said is kept nowhere."""
    room_id, (_, sender, *people) = await a_room(db, 5)
    message = await written.send(room_id, sender)
    for person in people:
        await moderation.report(Person(person), message.id, "")
    assert await db.fetchval("SELECT count(*) FROM conversations.withheld") == 1
    await db.fetch("SELECT * FROM conversations.erase($1, $2, $3)", room_id, [message.seq], sender)
    assert await db.fetchval("SELECT count(*) FROM conversations.withheld") == 0
    assert await moderation.open_flags(room_id, 0, "") == ([], "")


async def test_reports_at_once_count_once_each(
    db: Postgres, written: Written, moderation: Moderation
) -> None:
    """However many report at the same time, each person counts once, and it is flagged and hidden once."""
    room_id, (_, sender, *people) = await a_room(db, 7)
    message = await written.send(room_id, sender, "rude words")
    hidings: list[int] = []

    async def report(person: str) -> None:
        _, done = await moderation.report(Person(person), message.id, "")
        hidings.append(len(done.changes))

    async with trio.open_nursery() as nursery:
        for person in people * 2:
            nursery.start_soon(report, person)
    assert sorted(hidings) == [0] * 9 + [1]
    entries, _ = await audit.page(db, room_id, 10, "")
    assert [entry.action for entry in entries] == ["hide_message", "flag_message"]
    [flagged], _ = await moderation.open_flags(room_id, 0, "")
    assert (flagged.reports, flagged.message.content) == (5, b"rude words")
