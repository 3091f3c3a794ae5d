"""Rooms on a real database: who comes, goes, is silenced and kept out, followed by a simple model."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from tests.conversations.kit import NOBODY, Written, draft, sign_up
from whispr.adapters.postgres import Postgres
from whispr.conversations import audit
from whispr.conversations.domain import Limits, Role
from whispr.conversations.invitations import Invitations
from whispr.conversations.room_lists import RoomLists
from whispr.conversations.room_rules import (
    FOR_GOOD,
    Changes,
    Person,
    RoomLimits,
    RoomType,
    Visibility,
)
from whispr.conversations.rooms import Rooms
from whispr.conversations.sanctions import Sanctions
from whispr.conversations.spam import Signal
from whispr.errors import Code, WhisprError

HOUR = timedelta(hours=1)
LIMITS = RoomLimits(public_members=5)


@dataclass
class Kit:
    """Everything that acts on rooms, on one database."""

    db: Postgres
    rooms: Rooms
    sanctions: Sanctions
    invitations: Invitations
    lists: RoomLists

    async def room(
        self,
        owner: str,
        room_type: RoomType = RoomType.PUBLIC,
        visibility: Visibility | None = None,
        name: str = "a room",
        slow_mode_s: int = 0,
    ) -> str:
        made = await self.rooms.create(
            Person(owner, premium=True),
            lambda _: True,
            name=name,
            description="",
            room_type=room_type,
            visibility=visibility,
            slow_mode_s=slow_mode_s,
        )
        return made.conversation_id

    async def refused(self, act: Awaitable[object]) -> str:
        """Return the reason why an act is refused; it must be."""
        reason = await outcome(act)
        assert reason, "it should have been refused"
        return reason


async def outcome(act: Awaitable[object]) -> str:
    """Return the reason why an act is refused, empty when it is done."""
    try:
        await act
    except WhisprError as error:
        return error.reason
    return ""


@pytest.fixture
def kit(db: Postgres) -> Kit:
    return make_kit(db)


def make_kit(db: Postgres, limits: RoomLimits = LIMITS) -> Kit:
    pages = Limits()
    return Kit(
        db,
        Rooms(db, limits),
        Sanctions(db, limits, pages),
        Invitations(db, limits, pages),
        RoomLists(db, limits, pages),
    )


# The model


RANK = {None: -1, "member": 0, "moderator": 1, "admin": 2, "owner": 3}


@dataclass
class Model:
    """What a room should be: roles of those inside in the order they came, who is muted, banned, invited."""

    roles: dict[str, str] = field(default_factory=dict)
    muted: set[str] = field(default_factory=set)
    banned: set[str] = field(default_factory=set)
    active: bool = True

    def may(self, actor: str, target: str) -> bool:
        own = RANK[self.roles.get(actor)]
        return own >= 1 and actor != target and own > RANK[self.roles.get(target)]

    def go(self, person: str) -> None:
        role = self.roles.pop(person)
        if role == "owner" and self.roles:
            heir = max(self.roles, key=lambda p: (RANK[self.roles[p]], -list(self.roles).index(p)))
            self.roles[heir] = "owner"
        if not self.roles:
            self.active = False

    def join(self, actor: str, _: str) -> bool:
        if actor in self.roles:
            return True
        if actor in self.banned or not self.active or len(self.roles) >= LIMITS.public_members:
            return False
        self.roles[actor] = "member"
        return True

    def leave(self, actor: str, _: str) -> bool:
        if actor in self.roles:
            self.go(actor)
        return True

    def kick(self, actor: str, target: str) -> bool:
        if not self.may(actor, target):
            return False
        if target in self.roles:
            self.go(target)
        return True

    def ban(self, actor: str, target: str) -> bool:
        if not self.kick(actor, target):
            return False
        self.banned.add(target)
        return True

    def unban(self, actor: str, target: str) -> bool:
        if not self.may(actor, target):
            return False
        self.banned.discard(target)
        return True

    def mute(self, actor: str, target: str) -> bool:
        if not self.may(actor, target) or target not in self.roles:
            return False
        self.muted.add(target)
        return True

    def unmute(self, actor: str, target: str) -> bool:
        if not self.may(actor, target):
            return False
        self.muted.discard(target)
        return True

    def promote(self, actor: str, target: str) -> bool:
        if not self.may(actor, target) or target not in self.roles:
            return False
        if RANK[self.roles[actor]] <= RANK["moderator"]:
            return False
        self.roles[target] = "moderator"
        return True

    def send(self, actor: str, _: str) -> bool:
        return self.active and actor in self.roles and actor not in self.muted


@pytest.mark.parametrize("seed", range(6))
async def test_membership_and_sanctions_follow_the_model(kit: Kit, written: Written, seed: int) -> None:
    """After any acts of anybody, those inside, their roles, mutes and bans, and what is refused, are as expected."""
    dice = random.Random(seed)
    people = await sign_up(kit.db, 7)
    room_id = await kit.room(people[0])
    model = Model({people[0]: "owner"})
    acts: dict[str, Callable[[str, str], Awaitable[object]]] = {
        "join": lambda a, _: kit.rooms.join(Person(a), room_id),
        "leave": lambda a, _: kit.rooms.leave(Person(a), room_id),
        "kick": lambda a, t: kit.sanctions.kick(Person(a), room_id, t, ""),
        "ban": lambda a, t: kit.sanctions.ban(Person(a), room_id, t, None, ""),
        "unban": lambda a, t: kit.sanctions.unban(Person(a), room_id, t, ""),
        "mute": lambda a, t: kit.sanctions.mute(Person(a), room_id, t, HOUR, ""),
        "unmute": lambda a, t: kit.sanctions.unmute(Person(a), room_id, t, ""),
        "promote": lambda a, t: kit.rooms.set_role(Person(a), room_id, t, Role.MODERATOR),
        "send": lambda a, _: written.log.append(draft(room_id, a)).wait(),
    }
    weights = [6, 1, 1, 2, 2, 3, 2, 3, 3]
    for _ in range(60):
        name = dice.choices(list(acts), weights)[0]
        actor, target = dice.choice(people), dice.choice(people)
        expected = getattr(model, name)(actor, target)
        refusal = await outcome(acts[name](actor, target))
        assert (refusal == "") is expected, f"{name} by {actor} on {target}: {refusal or 'done'}"
        assert await state(kit.db, room_id) == (model.roles, model.muted, model.banned, model.active)


async def state(db: Postgres, room_id: str) -> tuple[dict[str, str], set[str], set[str], bool]:
    """Read what the model says."""
    members = await db.fetch(
        "SELECT user_id, role, muted_until > now() AS muted, left_at FROM conversations.members"
        " WHERE conversation_id = $1",
        room_id,
    )
    bans = await db.fetch("SELECT user_id FROM conversations.bans WHERE conversation_id = $1", room_id)
    room = await db.fetchrow(
        "SELECT is_active, member_count, last_change FROM conversations.conversations WHERE id = $1", room_id
    )
    assert room is not None
    roles = {str(row["user_id"]): row["role"] for row in members if row["left_at"] is None}
    assert room["member_count"] == len(roles)
    changes = await db.fetchval(
        "SELECT count(*) FROM conversations.changes WHERE conversation_id = $1", room_id
    )
    assert changes == room["last_change"]
    muted = {str(row["user_id"]) for row in members if row["muted"]}
    return roles, muted, {str(row["user_id"]) for row in bans}, room["is_active"]


# Races


async def test_of_a_join_and_a_ban_the_ban_stands(kit: Kit) -> None:
    """However a join and a ban of the same person interleave, the person is outside afterwards."""
    owner, *others = await sign_up(kit.db, 5)
    for person in others:
        room_id = await kit.room(owner)

        async def join(person: str = person, room_id: str = room_id) -> None:
            assert await outcome(kit.rooms.join(Person(person), room_id)) in ("", "banned")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join)
            nursery.start_soon(kit.sanctions.ban, Person(owner), room_id, person, None, "")
            nursery.start_soon(join)
        roles, _, banned, _ = await state(kit.db, room_id)
        assert roles == {owner: "owner"}
        assert banned == {person}


async def test_the_last_place_is_taken_once(kit: Kit) -> None:
    """Of many who join at once, no more get in than there are places."""
    owner, *others = await sign_up(kit.db, 13)
    room_id = await kit.room(owner)
    refused = []

    async def join(person: str) -> None:
        if reason := await outcome(kit.rooms.join(Person(person), room_id)):
            refused.append(reason)

    async with trio.open_nursery() as nursery:
        for person in others:
            nursery.start_soon(join, person)
    roles, *_ = await state(kit.db, room_id)
    assert len(roles) == LIMITS.public_members
    assert refused == ["room_full"] * (13 - LIMITS.public_members)


async def test_a_code_admits_as_many_as_it_says(kit: Kit) -> None:
    """Of many who show the same code at once, no more get in than it has uses."""
    owner, *others = await sign_up(kit.db, 9)
    room_id = await kit.room(owner, RoomType.PRIVATE)
    invitation, _ = await kit.invitations.invite(Person(owner), room_id, "", HOUR, 3)
    entered = []

    async def join(person: str) -> None:
        entered.append(await outcome(kit.rooms.join(Person(person), room_id, invitation.code)))

    async with trio.open_nursery() as nursery:
        for person in others:
            nursery.start_soon(join, person)
    assert entered.count("") == 3
    assert set(entered) == {"", "invitation_required"}


async def test_two_joins_of_one_person_are_one(kit: Kit) -> None:
    """Joining twice at once seats a person once, and is logged once."""
    owner, person = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(kit.rooms.join, Person(person), room_id)
    joins = await kit.db.fetchval(
        "SELECT count(*) FROM conversations.changes WHERE conversation_id = $1 AND kind = 'user_joined'",
        room_id,
    )
    assert joins == 1
    assert len((await state(kit.db, room_id))[0]) == 2


# Sanctions


async def test_a_mute_holds_through_leaving_and_ends_by_itself(kit: Kit, written: Written) -> None:
    """A muted member's messages are refused with the time, also after coming back, and pass after it."""
    owner, person = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(person), room_id)
    muted = await kit.sanctions.mute(Person(owner), room_id, person, HOUR, "noise")
    assert muted.until is not None
    assert timedelta(0) < muted.until - datetime.now(UTC) <= HOUR
    await kit.rooms.leave(Person(person), room_id)
    await kit.rooms.join(Person(person), room_id)
    with pytest.raises(WhisprError) as refused:
        await written.send(room_id, person)
    assert refused.value.reason == "muted"
    assert refused.value.facts["until"]
    await kit.db.execute(
        "UPDATE conversations.members SET muted_until = now() - interval '1 ms' WHERE user_id = $1", person
    )
    await written.send(room_id, person)
    assert (await kit.rooms.member(room_id, person)).muted_until is None
    for_good = await kit.sanctions.mute(Person(owner), room_id, person, None, "")
    assert for_good.until == FOR_GOOD
    assert (await kit.rooms.member(room_id, person)).muted_until == FOR_GOOD


async def test_a_ban_runs_out_and_a_new_one_replaces_it(kit: Kit) -> None:
    """A banned person is told until when, comes back once it is over, and can be banned again."""
    owner, person = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(person), room_id)
    banned = await kit.sanctions.ban(Person(owner), room_id, person, HOUR, "rude")
    assert [change.kind for change in banned.changes] == ["user_banned"]
    with pytest.raises(WhisprError) as refused:
        await kit.rooms.join(Person(person), room_id)
    assert refused.value.reason == "banned"
    assert refused.value.facts["until"].startswith(str(datetime.now(UTC).year))
    assert [ban.reason for ban in (await kit.sanctions.bans(room_id, 0, ""))[0]] == ["rude"]
    await kit.db.execute("UPDATE conversations.bans SET until = now()")
    assert await kit.sanctions.bans(room_id, 0, "") == ([], "")
    await kit.rooms.join(Person(person), room_id)
    await kit.sanctions.ban(Person(owner), room_id, person, None, "")
    assert (await kit.sanctions.bans(room_id, 0, ""))[0][0].until == FOR_GOOD


async def test_whatever_gives_out_seats_a_banned_person_gets_none(kit: Kit) -> None:
    """The table of members itself refuses who is banned."""
    owner, person = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    await kit.sanctions.ban(Person(owner), room_id, person, None, "")
    with pytest.raises(WhisprError, match="members_not_banned"):
        await kit.db.execute(
            "INSERT INTO conversations.members (conversation_id, user_id, role) VALUES ($1, $2, 'member')",
            *(room_id, person),
        )


async def test_platform_moderators_act_in_any_room(kit: Kit) -> None:
    """Who has chat:moderate bans even an owner; the room then has an heir, or is closed when nobody is left."""
    owner, other, judge = await sign_up(kit.db, 3)
    person = Person(judge, moderates_people=True)
    room_id = await kit.room(owner, visibility=Visibility.HIDDEN)
    assert await kit.refused(kit.sanctions.ban(Person(judge), room_id, owner, None, "")) == "not_found"
    invitation, _ = await kit.invitations.invite(Person(owner), room_id, other, HOUR, 1)
    assert invitation.user_id == other
    await kit.rooms.join(Person(other), room_id)
    await kit.sanctions.ban(person, room_id, owner, None, "fraud")
    assert (await state(kit.db, room_id))[0] == {other: "owner"}
    await kit.sanctions.kick(person, room_id, other, "")
    assert (await state(kit.db, room_id))[3] is False


async def test_the_machine_goes_up_the_ladder(kit: Kit) -> None:
    """Spam earns a warning, two mutes, then a ban; moderators and rooms without antispam are left alone."""
    owner, spammer = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(spammer), room_id)
    done = []
    for _ in range(4):
        sanctioned = await kit.sanctions.by_machine(room_id, spammer, Signal.LINKS, bans=True)
        assert sanctioned is not None
        done.append([change.kind for change in sanctioned.changes])
        assert await kit.sanctions.by_machine(room_id, spammer, Signal.LINKS, bans=True) is None
        # Time passes: the audit log itself cannot be made older.
        await kit.db.execute("ALTER TABLE conversations.audit DISABLE TRIGGER append_only")
        await kit.db.execute("UPDATE conversations.audit SET at = at - interval '10 s'")
        await kit.db.execute("ALTER TABLE conversations.audit ENABLE TRIGGER append_only")
    assert done == [[], ["user_muted"], ["user_muted"], ["user_banned"]]
    entries, _ = await audit.page(kit.db, room_id, 10, "")
    assert [entry.action for entry in entries] == ["ban", "mute", "mute", "warn"]
    assert {(entry.actor_id, entry.reason) for entry in entries} == {("", "spam: links")}
    assert await kit.sanctions.by_machine(room_id, owner, Signal.RATE, bans=True) is None
    assert await kit.sanctions.by_machine(room_id, spammer, Signal.RATE, bans=True) is None
    await kit.db.execute("DELETE FROM conversations.bans")
    await kit.rooms.join(Person(spammer), room_id)
    await kit.rooms.update(Person(owner), room_id, Changes(antispam=False))
    assert await kit.sanctions.by_machine(room_id, spammer, Signal.RATE, bans=True) is None


async def test_the_machine_may_only_propose_a_ban(kit: Kit) -> None:
    """Where it may not ban, the machine silences for an hour and leaves the ban to moderators, who are told."""
    owner, spammer = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(spammer), room_id)
    for _ in range(3):
        await kit.db.execute(
            "INSERT INTO conversations.audit (conversation_id, at, action, target_id)"
            " VALUES ($1, now() - interval '1 hour', 'mute', $2)",
            *(room_id, spammer),
        )
    sanctioned = await kit.sanctions.by_machine(room_id, spammer, Signal.RATE, bans=False)
    assert sanctioned is not None
    assert [change.kind for change in sanctioned.changes] == ["user_muted"]
    assert (sanctioned.proposal, sanctioned.moderators) == ("spam: rate", (owner,))
    told = await kit.db.fetchval(
        "SELECT data->>'user_id' FROM events.outbox WHERE stream_subject = 'chat.events.ban_proposed'"
    )
    assert told == spammer


async def test_the_audit_log_is_only_added_to(kit: Kit) -> None:
    """Entries come in pages, the latest first, also those about one person, and cannot be changed or removed."""
    owner, one, other = await sign_up(kit.db, 3)
    room_id = await kit.room(owner)
    for person in (one, other):
        await kit.rooms.join(Person(person), room_id)
        for _ in range(3):
            await kit.sanctions.mute(Person(owner), room_id, person, HOUR, f"about {person}")
    first, token = await audit.page(kit.db, room_id, 4, "")
    rest, end = await audit.page(kit.db, room_id, 4, token)
    assert [entry.target_id for entry in first + rest] == [other] * 3 + [one] * 3
    assert end == ""
    about, _ = await audit.page(kit.db, room_id, 10, "", one)
    assert {entry.reason for entry in about} == {f"about {one}"}
    for rewriting in ("DELETE FROM", "TRUNCATE", "UPDATE"):
        with pytest.raises(WhisprError, match="audit_append_only"):
            await kit.db.execute(
                f"{rewriting} conversations.audit{' SET reason = NULL' if rewriting == 'UPDATE' else ''}"
            )


# Entering


async def test_hidden_rooms_are_not_there_for_strangers(kit: Kit) -> None:
    """To a stranger a hidden room is as one that does not exist; an invitation shows it and admits once."""
    owner, guest, stranger = await sign_up(kit.db, 3)
    room_id = await kit.room(owner, visibility=Visibility.HIDDEN)
    strangers_view: list[Awaitable[Any]] = [
        kit.rooms.see(Person(stranger), room_id),
        kit.rooms.join(Person(stranger), room_id),
        kit.rooms.join(Person(stranger), room_id, "guess"),
        kit.rooms.leave(Person(stranger), room_id),
        kit.rooms.update(Person(stranger), room_id, Changes(name="x")),
        kit.sanctions.ban(Person(stranger), room_id, owner, None, ""),
        kit.invitations.invite(Person(stranger), room_id, stranger, HOUR, 1),
    ]
    assert {await kit.refused(act) for act in strangers_view} == {"not_found"}
    await kit.invitations.invite(Person(owner), room_id, guest, HOUR, 1)
    assert (await kit.rooms.see(Person(guest), room_id)).standing.invited
    await kit.rooms.join(Person(guest), room_id)
    await kit.rooms.leave(Person(guest), room_id)
    assert await kit.refused(kit.rooms.join(Person(guest), room_id)) == "not_found"
    await kit.invitations.invite(Person(owner), room_id, guest, HOUR, 1)
    await kit.db.execute("UPDATE conversations.invitations SET expires_at = now()")
    assert await kit.refused(kit.rooms.join(Person(guest), room_id)) == "not_found"


async def test_premium_rooms_take_premium_people(kit: Kit) -> None:
    """An invitation does not make up for a plain role."""
    owner, plain = await sign_up(kit.db, 2)
    room_id = await kit.room(owner, RoomType.PREMIUM)
    await kit.invitations.invite(Person(owner, premium=True), room_id, plain, HOUR, 1)
    assert await kit.refused(kit.rooms.join(Person(plain), room_id)) == "premium_required"
    await kit.rooms.join(Person(plain, premium=True), room_id)


async def test_a_closed_room_takes_nobody_and_nothing(kit: Kit, written: Written) -> None:
    """A closed room refuses messages, joins and changes, is listed no more, and stays readable."""
    owner, person, late = await sign_up(kit.db, 3)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(person), room_id)
    assert await kit.refused(kit.rooms.close(Person(person), room_id, "")) == "forbidden"
    assert await kit.rooms.close(Person(owner), room_id, "done") is not None
    assert await kit.rooms.close(Person(owner), room_id, "done") is None
    assert await kit.refused(written.send(room_id, owner)) == "room_closed"
    assert await kit.refused(kit.rooms.join(Person(late), room_id)) == "room_closed"
    assert await kit.refused(kit.rooms.update(Person(owner), room_id, Changes(name="x"))) == "room_closed"
    assert await kit.lists.rooms(Person(late), None, 1, 10, "") == ([], 0)
    assert not (await kit.rooms.see(Person(person), room_id)).room.is_active


async def test_a_slow_mode_holds_members_back_but_not_moderators(kit: Kit, written: Written) -> None:
    """In slow mode a member's second message waits; its refusal says how long; moderators go on."""
    owner, person = await sign_up(kit.db, 2)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(person), room_id)
    await kit.rooms.update(Person(owner), room_id, Changes(slow_mode_s=60))
    await written.send(room_id, person)
    with pytest.raises(WhisprError) as refused:
        await written.send(room_id, person)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert refused.value.retry_after_s is not None
    assert 50 < refused.value.retry_after_s <= 60
    await written.send(room_id, owner)
    await written.send(room_id, owner)
    await kit.rooms.set_role(Person(owner), room_id, person, Role.MODERATOR)
    await written.send(room_id, person)


async def test_the_owner_hands_over(kit: Kit) -> None:
    """Making somebody the owner makes the owner an admin; a room never has two owners or none."""
    owner, person, judge = await sign_up(kit.db, 3)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(person), room_id)
    await kit.rooms.set_role(Person(owner), room_id, person, Role.OWNER)
    assert (await state(kit.db, room_id))[0] == {owner: "admin", person: "owner"}
    platform = Person(judge, moderates_rooms=True)
    await kit.rooms.set_role(platform, room_id, owner, Role.OWNER)
    assert (await state(kit.db, room_id))[0] == {owner: "owner", person: "admin"}
    with pytest.raises(WhisprError, match="somebody else"):
        await kit.rooms.set_role(platform, room_id, owner, Role.MEMBER)
    assert await kit.refused(kit.rooms.set_role(Person(owner), room_id, NOBODY, Role.MEMBER)) == "not_found"


async def test_a_room_changes_its_own_limits(kit: Kit) -> None:
    """A room's own limit of members is below the operator's, and the lower one counts."""
    owner, *others = await sign_up(kit.db, 3)
    room_id = await kit.room(owner)
    assert (await kit.rooms.see(Person(owner), room_id)).room.member_limit == 5
    change = await kit.rooms.update(
        Person(owner), room_id, Changes(member_limit=2, name="smaller", description="x")
    )
    assert change is not None
    assert change.data["name"] == "smaller"
    assert await kit.rooms.update(Person(owner), room_id, Changes(name="smaller")) is None
    await kit.rooms.join(Person(others[0]), room_id)
    assert await kit.refused(kit.rooms.join(Person(others[1]), room_id)) == "room_full"
    assert await kit.refused(kit.rooms.update(Person(others[0]), room_id, Changes(name="x"))) == "forbidden"


async def test_invitations_are_bounded_and_taken_back(kit: Kit) -> None:
    """A member has so many invitations out at once; makers, moderators and the invited take them back."""
    owner, one, other, guest = await sign_up(kit.db, 4)
    few = make_kit(kit.db, replace(LIMITS, invitations=2))
    room_id = await kit.room(owner)
    for person in (one, other):
        await kit.rooms.join(Person(person), room_id)
    code, _ = await few.invitations.invite(Person(one), room_id, "", HOUR, 0)
    own, _ = await few.invitations.invite(Person(one), room_id, guest, HOUR, 1)
    assert (
        await kit.refused(few.invitations.invite(Person(one), room_id, "", HOUR, 0)) == "too_many_invitations"
    )
    assert await kit.refused(kit.invitations.invite(Person(owner), room_id, one, HOUR, 1)) == "already_member"
    assert [i.id for i in (await kit.invitations.page(Person(owner), room_id, 1, ""))[0]] == [own.id]
    assert (await kit.invitations.page(Person(other), room_id, 0, ""))[0] == []
    assert await kit.refused(kit.invitations.revoke(Person(other), room_id, own.id)) == "forbidden"
    assert len((await kit.invitations.page(Person(one), room_id, 0, ""))[0]) == 2
    await kit.invitations.revoke(Person(guest), room_id, own.id)
    await kit.invitations.revoke(Person(owner), room_id, code.id)
    await kit.invitations.revoke(Person(one), room_id, code.id)
    assert (await kit.invitations.page(Person(one), room_id, 0, ""))[0] == []


# Lists and figures


async def test_lists_show_what_each_may_know_of(kit: Kit) -> None:
    """Lists and their totals hold the listed rooms, and hidden ones for those inside and invited alone."""
    owner, guest, stranger = await sign_up(kit.db, 3)
    made = {
        (room_type, visibility): await kit.room(owner, room_type, visibility, f"{room_type} {visibility}")
        for room_type in (RoomType.PUBLIC, RoomType.PRIVATE, RoomType.PREMIUM)
        for visibility in Visibility
    }
    listed = {made[key] for key in made if key[1] is not Visibility.HIDDEN}
    hidden = set(made.values()) - listed
    await kit.invitations.invite(Person(owner), made[RoomType.PRIVATE, Visibility.HIDDEN], guest, HOUR, 1)

    async def found(who: str, visibility: Visibility | None = None) -> set[str]:
        rooms, total = await kit.lists.rooms(Person(who), visibility, 0, 0, "")
        assert total == len(rooms)
        return {room.id for room in rooms}

    assert await found(stranger) == listed
    assert await found(guest) == listed | {made[RoomType.PRIVATE, Visibility.HIDDEN]}
    assert await found(owner) == listed | hidden
    assert await found(stranger, Visibility.OPEN) == {made[key] for key in made if key[1] is Visibility.OPEN}
    assert await found(stranger, Visibility.HIDDEN) == set()
    assert await found(owner, Visibility.HIDDEN) == hidden
    await kit.rooms.update(
        Person(owner), made[RoomType.PUBLIC, Visibility.OPEN], Changes(visibility=Visibility.HIDDEN)
    )
    await kit.rooms.close(Person(owner), made[RoomType.PREMIUM, Visibility.INVITE_ONLY], "")
    assert len(await found(stranger)) == 4


async def test_lists_come_in_pages_and_by_name(kit: Kit) -> None:
    """Pages follow each other, the newest first; a query finds by the beginning of the name, also a new one."""
    owner, viewer = await sign_up(kit.db, 2)
    made = [await kit.room(owner, name=name) for name in ("Alpha", "alps", "Beta_1", "Beta%2", "gamma")]
    pages = [await kit.lists.rooms(Person(viewer), None, page, 2, "") for page in (1, 2, 3, 4)]
    assert [room.id for rooms, _ in pages for room in rooms] == made[::-1]
    assert {total for _, total in pages} == {5}
    by_name = [room.name for room in (await kit.lists.rooms(Person(viewer), None, 1, 9, "AL"))[0]]
    assert by_name == ["alps", "Alpha"]
    assert [r.name for r in (await kit.lists.rooms(Person(viewer), None, 1, 9, "beta_"))[0]] == ["Beta_1"]
    await kit.rooms.update(Person(owner), made[4], Changes(name="Alm"))
    assert (await kit.lists.rooms(Person(viewer), Visibility.OPEN, 1, 9, "al"))[1] == 3
    for page in (-1, 5001):
        with pytest.raises(WhisprError, match="page"):
            await kit.lists.rooms(Person(viewer), None, page, 2, "")


async def test_figures_of_a_room(kit: Kit, written: Written) -> None:
    """Today's messages are those since midnight, found without counting; who wrote most comes first."""
    owner, one, other = await sign_up(kit.db, 3)
    room_id = await kit.room(owner)
    empty = await kit.lists.stats(room_id)
    assert (empty.members, empty.messages, empty.messages_today, empty.active_ids) == (1, 0, 0, ())
    for person in (one, other):
        await kit.rooms.join(Person(person), room_id)
    for sender in (owner, owner, owner, one, other, other, other):
        await written.send(room_id, sender)
    for old in range(8):
        await kit.db.execute(
            "UPDATE conversations.messages SET sent_at = CASE WHEN seq <= $1 THEN now() - interval '25 h'"
            " ELSE now() END",
            old,
        )
        stats = await kit.lists.stats(room_id)
        assert (stats.members, stats.messages, stats.messages_today) == (3, 7, 7 - old)
    await kit.db.execute("UPDATE conversations.messages SET sent_at = now() - interval '25 h' WHERE seq <= 3")
    await kit.db.execute("UPDATE conversations.messages SET sent_at = now() WHERE seq > 3")
    assert (await kit.lists.stats(room_id)).active_ids == (other, one)


async def test_members_come_in_pages(kit: Kit) -> None:
    """Each member is on one page."""
    owner, *others = await sign_up(kit.db, 5)
    room_id = await kit.room(owner)
    for person in others:
        await kit.rooms.join(Person(person), room_id)
    seen, token = [], ""
    for _ in range(3):
        members, token = await kit.lists.members(room_id, 2, token)
        seen += [member.user_id for member in members]
    assert token == ""
    assert seen == sorted([owner, *others])


async def test_everything_is_an_event(kit: Kit) -> None:
    """Each thing that happens in a room is one event on the chat stream, about the room, in order."""
    owner, person = await sign_up(kit.db, 2)
    room_id = await kit.room(owner, RoomType.PRIVATE)
    await kit.invitations.invite(Person(owner), room_id, person, HOUR, 1)
    await kit.rooms.join(Person(person), room_id)
    await kit.sanctions.mute(Person(owner), room_id, person, HOUR, "")
    await kit.sanctions.unmute(Person(owner), room_id, person, "")
    await kit.sanctions.kick(Person(owner), room_id, person, "")
    await kit.sanctions.ban(Person(owner), room_id, person, None, "")
    await kit.sanctions.unban(Person(owner), room_id, person, "")
    await kit.rooms.update(Person(owner), room_id, Changes(name="x"))
    await kit.rooms.leave(Person(owner), room_id)
    rows = await kit.db.fetch(
        "SELECT stream_subject, about, actor, data FROM events.outbox ORDER BY position"
    )
    assert {row["about"] for row in rows} == {room_id}
    assert [row["stream_subject"].removeprefix("chat.events.") for row in rows] == [
        "room_created",
        "user_invited",
        "user_joined",
        "user_muted",
        "user_unmuted",
        "user_kicked",
        "user_banned",
        "user_unbanned",
        "settings_changed",
        "user_left",
        "room_closed",
    ]
