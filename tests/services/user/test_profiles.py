"""Profiles, privacy, contacts, blocks and search, over gRPC on a real database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conversations.kit import NOBODY, a_group, sign_up
from tests.services.kit import Tokens, as_, as_service
from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Limits
from whispr.conversations.membership import Membership
from whispr.conversations.paging import to_token
from whispr.errors import Code, WhisprError
from whispr.events import Event
from whispr.identity import AuthInterceptor, Identity
from whispr.services.user.domain import PRIVACY, changes, prefix_range
from whispr.services.user.neighbours import Neighbours
from whispr.services.user.service import UserLimits, UserService
from whispr.testing import open_rpc_pair
from whispr.v1 import common_pb2
from whispr.v1 import user_pb2 as pb
from whispr.v1.user_grpc import UserServiceStub

SEEN_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PICTURE = "0190163d-8694-739b-aea5-966c26f8ad91"


class People:
    """The user service, its stub, and what it asks of others."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.names: list[tuple[str, str]] = []
        self.seen: dict[str, datetime] = {}
        self.forgotten: list[tuple[str, str]] = []
        self.service = UserService(
            db,
            limits=Limits(page_size=50),
            own_limits=UserLimits(blocks=3, contacts=3),
            neighbours=Neighbours(self._set_display_name, self._owns_picture, self._last_seen),
            on_blocks_changed=lambda *pair: self.forgotten.append(pair),
        )
        self.stub: UserServiceStub

    async def _set_display_name(self, user_id: str, name: str) -> str:
        self.names.append((user_id, name))
        return str(
            await self.db.fetchval(
                "UPDATE auth.accounts SET display_name = $2 WHERE id = $1 RETURNING display_name",
                *(user_id, name),
            )
        )

    async def _owns_picture(self, _user_id: str, media_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return media_id == PICTURE

    async def _last_seen(self, user_ids: Any) -> dict[str, datetime]:
        await trio.lowlevel.checkpoint()
        return {each: at for each, at in self.seen.items() if each in user_ids}

    async def update(self, user_id: str, **fields: str) -> pb.Profile:
        request = pb.UpdateProfileRequest(**fields)
        return (await self.stub.UpdateProfile(request, metadata=as_(user_id))).profile

    async def profile(self, user_id: str, viewer: str) -> pb.Profile:
        request = pb.GetProfileRequest(user_id=user_id)
        return (await self.stub.GetProfile(request, metadata=as_(viewer))).profile

    async def add(self, user_id: str, other: str) -> pb.Contact:
        request = pb.AddContactRequest(user_id=other)
        return (await self.stub.AddContact(request, metadata=as_(user_id))).contact

    async def remove(self, user_id: str, other: str) -> None:
        await self.stub.RemoveContact(pb.RemoveContactRequest(user_id=other), metadata=as_(user_id))

    async def block(self, user_id: str, other: str) -> None:
        await self.stub.BlockUser(pb.BlockUserRequest(user_id=other), metadata=as_(user_id))

    async def unblock(self, user_id: str, other: str) -> None:
        await self.stub.UnblockUser(pb.UnblockUserRequest(user_id=other), metadata=as_(user_id))

    async def visible(self, viewer: str, *user_ids: str) -> list[str]:
        request = pb.CheckPresenceVisibilityRequest(user_ids=user_ids)
        reply = await self.stub.CheckPresenceVisibility(request, metadata=as_(viewer))
        return list(reply.visible_user_ids)

    async def search(self, viewer: str, query: str, size: int = 50, token: str = "") -> tuple[list[str], str]:
        request = pb.SearchUsersRequest(query=query, page_size=size, page_token=token)
        reply = await self.stub.SearchUsers(request, metadata=as_(viewer))
        return [user.username for user in reply.users], reply.next_page_token

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        rows = await self.db.fetch("SELECT stream_subject, data FROM events.outbox ORDER BY position")
        return [(row["stream_subject"].rpartition(".")[2], json.loads(row["data"])) for row in rows]


@asynccontextmanager
async def running(db: Postgres) -> AsyncIterator[People]:
    people = People(db)
    interceptors = [AuthInterceptor(cast("Identity", Tokens()))]
    async with open_rpc_pair([people.service.servicer], server_interceptors=interceptors) as pair:
        people.stub = UserServiceStub(pair.channel)
        yield people


@pytest.fixture
async def people(db: Postgres) -> AsyncIterator[People]:
    async with running(db) as running_people:
        yield running_people


async def refusal(call: Awaitable[Any]) -> tuple[Code, str]:
    with pytest.raises(WhisprError) as refused:
        await call
    return refused.value.code, refused.value.reason


async def name(people: People, *pairs: tuple[str, str]) -> list[str]:
    """Make people of these usernames and display names."""
    ids = await sign_up(people.db, len(pairs))
    for user_id, (username, display_name) in zip(ids, pairs, strict=True):
        await people.db.execute(
            "UPDATE auth.accounts SET username = $2, display_name = $3 WHERE id = $1",
            *(user_id, username, display_name),
        )
    return ids


# Profiles


async def test_a_profile_is_changed_field_by_field(people: People) -> None:
    """What is given changes, the rest stays; an empty text takes a thing back; the event says what changed."""
    one, two = await sign_up(people.db, 2)
    first = await people.update(one, bio=" Line one\r\nline two ", status_text=" here ", locale="fr-CH")
    assert (first.bio, first.status_text, first.locale) == ("Line one\nline two", "here", "fr-CH")
    second = await people.update(
        one, display_name="Ada", avatar_media_id=PICTURE.upper(), time_zone="Europe/Zurich", status_text=""
    )
    assert (second.bio, second.status_text, second.display_name) == ("Line one\nline two", "", "Ada")
    assert second.avatar_media_id == PICTURE
    assert people.names == [(one, "Ada")]
    assert (
        await people.db.fetchval("SELECT media_id::text FROM users.avatars WHERE user_id = $1", one)
        == PICTURE
    )
    assert (await people.update(one, avatar_media_id="")).avatar_media_id == ""
    seen = await people.profile(one, two)
    assert (seen.bio, seen.display_name) == ("Line one\nline two", "Ada")
    assert (seen.locale, seen.time_zone, seen.message_privacy) == ("", "", "")
    own = await people.profile("me", one)
    assert (own.locale, own.time_zone, own.message_privacy) == ("fr-CH", "Europe/Zurich", "everyone")
    told = [data["changed"] for kind, data in await people.events() if kind == "profile_updated"]
    assert told[0] == ["bio", "locale", "status_text"]
    assert len(told) == 3


async def test_an_empty_change_changes_nothing(people: People) -> None:
    """No field, no event."""
    one = (await sign_up(people.db, 1))[0]
    assert (await people.update(one)).id == one
    assert await people.events() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("display_name", "x" * 65),
        ("display_name", "a\nb"),
        ("bio", "x" * 501),
        ("bio", "a\u202eb"),
        ("status_text", "x" * 141),
        ("status_text", "a\nb"),
        ("locale", "french please"),
        ("locale", "fr" + "-aaaaaaaa" * 4),
        ("time_zone", "Mars/Olympus"),
        ("avatar_media_id", "nonsense"),
        ("message_privacy", "friends"),
        ("presence_privacy", ""),
    ],
)
def test_bad_fields_are_named(field: str, value: str) -> None:
    """Over each limit and outside each vocabulary, by name."""
    with pytest.raises(WhisprError) as refused:
        changes({field: value, "bio": "fine"} if field != "bio" else {field: value})
    assert set(refused.value.fields) == {field}


def test_limits_are_inclusive() -> None:
    """At a limit is within it, and all faults are told at once."""
    changes({"display_name": "x" * 64, "bio": "x" * 500, "status_text": "x" * 140, "locale": "zh-Hant-TW"})
    with pytest.raises(WhisprError) as refused:
        changes({"display_name": "x" * 65, "bio": "x" * 501, "message_privacy": "?"})
    assert set(refused.value.fields) == {"display_name", "bio", "message_privacy"}


async def test_an_avatar_is_a_picture_of_ones_own(people: People) -> None:
    """What media does not vouch for is refused, and nothing else of the call is done."""
    one = (await sign_up(people.db, 1))[0]
    call = people.update(one, avatar_media_id=NOBODY, bio="hello")
    assert await refusal(call) == (Code.FAILED_PRECONDITION, "avatar_unusable")
    assert (await people.profile("me", one)).bio == ""


# Privacy


async def test_direct_messages_respect_privacy(people: People) -> None:
    """Everyone, contacts or nobody: as the receiver says, at once, and only in direct conversations."""
    group, (one, two) = await a_group(people.db)
    direct, _ = await Membership(people.db, Limits()).open_direct(one, two)

    async def answer(conversation: str, sender: str) -> tuple[bool, str]:
        request = pb.ValidateMessagePermissionsRequest(conversation_id=conversation)
        reply = await people.stub.ValidateMessagePermissions(request, metadata=as_(sender))
        return reply.permission_granted, reply.reason

    async def may_message(sender: str, receiver: str) -> bool:
        request = pb.CheckUserBlocksRequest(user_id=sender, target_user_ids=[receiver])
        reply = await people.stub.CheckUserBlocks(request, metadata=as_service())
        return bool(reply.may_message[receiver])

    assert await answer(direct, one) == (True, "")
    await people.update(two, message_privacy="contacts")
    assert await answer(direct, one) == (False, "privacy")
    assert not await may_message(one, two)
    assert await answer(direct, two) == (True, "")
    assert await answer(group, one) == (True, "")
    await people.add(one, two)  # that one knows two gives one nothing
    assert await answer(direct, one) == (False, "privacy")
    await people.add(two, one)
    assert await answer(direct, one) == (True, "")
    assert await may_message(one, two)
    await people.update(two, message_privacy="nobody")
    assert await answer(direct, one) == (False, "privacy")
    access = pb.ValidateConversationAccessRequest(conversation_id=direct, action="write")
    reply = await people.stub.ValidateConversationAccess(access, metadata=as_(one))
    assert (reply.access_granted, reply.reason, reply.role) == (False, "privacy", "member")


async def test_last_seen_is_told_to_whom_it_is_shown(people: People) -> None:
    """Participants show when others were there, unless a block or their privacy hides it; services see it all."""
    group, (one, two, three, four) = await a_group(people.db, 4)
    people.seen = {two: SEEN_AT, three: SEEN_AT, four: SEEN_AT}
    await people.update(three, presence_privacy="nobody")
    await people.block(four, one)

    async def seen(metadata: Sequence[tuple[str, str]]) -> set[str]:
        request = pb.GetConversationParticipantsRequest(conversation_id=group)
        reply = await people.stub.GetConversationParticipants(request, metadata=metadata)
        return {each.user_id for each in reply.participants if each.HasField("last_seen")}

    assert await seen(as_(one)) == {two}
    assert await seen(as_(two)) == {two, four}
    assert await seen(as_(three)) == {two, three, four}
    assert await seen(as_service()) == {two, three, four}


async def test_participants_come_by_page(people: People) -> None:
    """Nobody is lost or repeated; the number is of all of them."""
    group, members = await a_group(people.db, 5)
    found: list[str] = []
    token = ""
    for _ in range(3):
        request = pb.GetConversationParticipantsRequest(conversation_id=group, page_size=2, page_token=token)
        reply = await people.stub.GetConversationParticipants(request, metadata=as_(members[0]))
        assert reply.total_count == 5
        found += [each.user_id for each in reply.participants]
        token = reply.next_page_token
    assert (sorted(found), token) == (sorted(members), "")


async def test_contacts_show_themselves_to_whom_they_like(people: People) -> None:
    """Each contact is named, as showing themselves or not; by page, and asked about one by one."""
    one, *others = await sign_up(people.db, 4)
    for other in others:
        await people.db.execute(
            "INSERT INTO users.contacts (user_id, contact_id) VALUES ($1, $2)", one, other
        )
    others.sort()

    async def shown(size: int = 0, *among: str) -> tuple[list[str], list[str]]:
        visible: list[str] = []
        hidden: list[str] = []
        token = ""
        while True:
            request = pb.ListVisibleContactsRequest(
                user_id=one, page_size=size, page_token=token, among=among
            )
            reply = await people.stub.ListVisibleContacts(request, metadata=as_service())
            visible += reply.visible_user_ids
            hidden += reply.hidden_user_ids
            token = reply.next_page_token
            if not token:
                return visible, hidden

    assert await shown(2) == await shown() == (others, [])
    await people.block(others[0], one)
    await people.update(others[1], presence_privacy="contacts")
    assert await shown(1) == (others[2:], others[:2])
    await people.add(others[1], one)
    assert await shown(0, others[1], NOBODY) == ([others[1]], [])
    assert people.forgotten[-2:] == [(others[1], others[1]), (others[1], one)]


async def test_access_says_whether_a_presence_is_shown(people: People) -> None:
    """In a direct conversation as the other may see it, in a group as everybody may; never of a stranger."""
    group, (one, two) = await a_group(people.db)
    direct, _ = await Membership(people.db, Limits()).open_direct(one, two)

    async def shown(user_id: str) -> tuple[bool, bool]:
        answers = []
        for conversation in (direct, group):
            request = pb.ValidateConversationAccessRequest(conversation_id=conversation, action="join")
            reply = await people.stub.ValidateConversationAccess(request, metadata=as_(user_id))
            answers.append(reply.shows_presence)
        return answers[0], answers[1]

    stranger = (await sign_up(people.db, 1))[0]
    assert await shown(stranger) == (False, False)
    assert await shown(one) == (True, True)
    await people.update(one, presence_privacy="contacts")
    assert await shown(one) == (False, False)
    await people.add(one, two)
    assert await shown(one) == (True, False)
    await people.update(one, presence_privacy="nobody")
    assert await shown(one) == (False, False)
    await people.update(one, presence_privacy="everyone")
    await people.block(two, one)
    assert await shown(one) == (False, True)
    assert await shown(two) == (False, True)


# Contacts and blocks


async def test_contacts_are_added_listed_and_removed(people: People) -> None:
    """Again changes nothing; mutual says that they know one, too; the list is by page, latest first."""
    one, *others = await sign_up(people.db, 4)
    assert not (await people.add(one, others[0])).mutual
    assert (await people.add(others[0], one)).mutual
    for other in (*others, others[0]):
        await people.add(one, other)

    async def listed(size: int) -> list[tuple[str, bool]]:
        found: list[tuple[str, bool]] = []
        token = ""
        while True:
            request = pb.ListContactsRequest(page_size=size, page_token=token)
            reply = await people.stub.ListContacts(request, metadata=as_(one))
            found += [(each.profile.id, each.mutual) for each in reply.contacts]
            token = reply.next_page_token
            if not token:
                return found

    expected = [(others[2], False), (others[1], False), (others[0], True)]
    assert await listed(1) == await listed(50) == expected
    for _ in range(2):
        await people.remove(one, others[1])
    assert await listed(50) == [expected[0], expected[2]]
    kinds = [kind for kind, _ in await people.events()]
    assert (kinds.count("contact_added"), kinds.count("contact_removed")) == (4, 1)


async def test_impossible_contacts_are_refused(people: People) -> None:
    """Oneself, nobody, nonsense, somebody one blocked, and one too many."""
    one, *others = await sign_up(people.db, 6)
    assert (await refusal(people.add(one, one)))[0] is Code.INVALID_ARGUMENT
    assert (await refusal(people.add(one, NOBODY)))[0] is Code.NOT_FOUND
    assert (await refusal(people.add(one, "x")))[0] is Code.INVALID_ARGUMENT
    await people.block(one, others[0])
    assert await refusal(people.add(one, others[0])) == (Code.FAILED_PRECONDITION, "blocked")
    for other in others[1:4]:
        await people.add(one, other)
    assert await refusal(people.add(one, others[4])) == (Code.RESOURCE_EXHAUSTED, "too_many_contacts")
    await people.add(one, others[1])  # one that is there already is no more


async def test_a_block_ends_a_contact(people: People) -> None:
    """Whoever is blocked leaves the contacts; callers are told to forget what they know of the two."""
    one, two = await sign_up(people.db, 2)
    await people.add(one, two)
    await people.block(one, two)
    reply = await people.stub.ListContacts(pb.ListContactsRequest(), metadata=as_(one))
    assert not reply.contacts
    assert people.forgotten == [(one, two)] * 2
    await people.block(one, two)
    await people.unblock(one, two)
    await people.unblock(one, two)
    kinds = [kind for kind, _ in await people.events()]
    assert kinds == ["contact_added", "user_blocked", "user_unblocked"]


async def test_blocks_are_limited(people: People) -> None:
    """One too many is refused; one that is there already is none more."""
    one, *others = await sign_up(people.db, 5)
    for other in others[:3]:
        await people.block(one, other)
    await people.block(one, others[0])
    assert await refusal(people.block(one, others[3])) == (Code.RESOURCE_EXHAUSTED, "too_many_blocks")


async def test_limits_hold_however_many_calls_come_at_once(people: People) -> None:
    """Of ten contacts added at the same moment three are; of the same contact ten times, one."""
    one, two, *others = await sign_up(people.db, 12)
    added: list[str] = []

    async def try_to_add(owner: str, other: str) -> None:
        try:
            await people.add(owner, other)
        except WhisprError as error:
            if error.reason != "too_many_contacts":
                raise
        else:
            added.append(other)

    async with trio.open_nursery() as nursery:
        for other in others:
            nursery.start_soon(try_to_add, one, other)
            nursery.start_soon(try_to_add, two, others[0])
    assert len(added) == 3 + 10
    counts = await people.db.fetch("SELECT count(*) AS n FROM users.contacts GROUP BY user_id ORDER BY n")
    assert [row["n"] for row in counts] == [1, 3]


# Search


async def test_search_ranks_exact_names_then_usernames_then_display_names(people: People) -> None:
    """Each kind in order, nobody twice, page after page."""
    searcher, *_ = await name(
        people,
        ("searcher", "Me"),
        ("anna", "Zed"),
        ("anna.b", "Anna Two"),
        ("annabel", "Bel"),
        ("zzz", "anna of the hills"),
        ("yyy", "Annalise"),
        ("xxx", "Banana"),
    )
    expected = ["anna", "anna.b", "annabel", "zzz", "yyy"]
    assert await people.search(searcher, "ANNA") == (expected, "")
    paged: list[str] = []
    token = ""
    for _ in range(5):
        page, token = await people.search(searcher, "anna", 1, token)
        paged += page
    assert (paged, token) == (expected, "")


async def test_a_made_up_page_of_a_search_is_refused(people: People) -> None:
    """A token that no page has returned is INVALID_ARGUMENT, whatever it holds."""
    one = (await sign_up(people.db, 1))[0]
    made_up: list[Any] = [[99, ""], [-2, ""], [10**30, ""], [1, "\0"], [1, "x" * 201], [1], {"place": 1}, "x"]
    for token in made_up:
        call = people.search(one, "a", 5, to_token(token))
        assert (await refusal(call))[0] is Code.INVALID_ARGUMENT, token


async def test_search_respects_blocks_both_ways(people: People) -> None:
    """Neither whom one blocked nor who blocked one is found, and pages are full all the same."""
    one, two, three, four = await name(people, ("ann1", "A"), ("ann2", "A"), ("ann3", "A"), ("ann4", "A"))
    await people.block(one, two)
    await people.block(three, one)
    assert await people.search(one, "ann", 2) == (["ann1", "ann4"], "")
    assert (await people.search(two, "ann"))[0] == ["ann2", "ann3", "ann4"]
    assert (await people.search(three, "ann"))[0] == ["ann2", "ann3", "ann4"]
    assert (await people.search(four, "ann"))[0] == ["ann1", "ann2", "ann3", "ann4"]


@given(st.text(min_size=1, max_size=6), st.text(max_size=6))
def test_a_range_holds_what_begins_with_its_prefix(prefix: str, other: str) -> None:
    """And nothing else, in code point order."""
    first, end = prefix_range(prefix)
    for text in (prefix, prefix + other, other):
        within = first <= text and (end is None or text < end)
        assert within == text.startswith(prefix)


# What is held


async def test_all_that_is_held_is_exported_and_erased(people: People) -> None:
    """ExportUserData gives profile, contacts and blocks; after the account is deleted none of it is left."""
    one, two, three = await sign_up(people.db, 3)
    await people.update(one, bio="hello")
    await people.add(one, two)
    await people.add(two, one)
    await people.block(one, three)
    await people.block(three, one)

    async def held(user_id: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        request = common_pb2.ExportUserDataRequest(user_id=user_id)
        async with people.stub.ExportUserData(request, metadata=as_service()) as call:
            async for record in call:
                assert record.source == "user"
                found.setdefault(record.kind, []).append(json.loads(record.json))
        return found

    mine = await held(one)
    assert mine["profile"][0]["bio"] == "hello"
    assert [each["contact_id"] for each in mine["contact"]] == [two]
    assert [each["blocked_id"] for each in mine["block"]] == [three]
    event = Event(
        id=NOBODY, type="user.events.account_deleted", version=1, time=SEEN_AT, source="auth", subject=one,
        actor=one, trace="", data={"user_id": one},
    )  # fmt: skip
    for _ in range(2):
        await people.service.consumers[0].handle(event)
    assert await held(one) == {}
    assert await held(two) == {}
    assert await held(three) == {}


async def test_what_is_held_is_for_services(people: People) -> None:
    """Not even oneself reads it here: people ask for an export."""
    one = (await sign_up(people.db, 1))[0]
    with pytest.raises(WhisprError) as refused:
        async with people.stub.ExportUserData(
            common_pb2.ExportUserDataRequest(user_id=one), metadata=as_(one)
        ) as call:
            async for _ in call:
                pass
    assert refused.value.reason == "service_only"


# A model


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["add", "remove", "block", "unblock"]), st.integers(0, 2), st.integers(0, 2)
        ),
        st.tuples(st.just("privacy"), st.integers(0, 2), st.sampled_from(PRIVACY)),
    ),
    max_size=25,
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_presence_follows_a_model(
    steps: list[tuple[str, int, Any]], model_runner: Callable[[Callable[[Postgres], Awaitable[None]]], None]
) -> None:
    """Whatever is done in whatever order, a presence is seen exactly where contacts, blocks and privacy say."""

    async def play(db: Postgres) -> None:
        async with running(db) as people:
            ids = await sign_up(db, 3)
            contacts: set[tuple[int, int]] = set()
            blocks: set[tuple[int, int]] = set()
            privacy = dict.fromkeys(range(3), "everyone")
            for what, who, other in steps:
                if what == "privacy":
                    await people.update(ids[who], presence_privacy=other)
                    privacy[who] = other
                elif who != other:
                    await step(people, what, ids[who], ids[other])
                    apply(what, (who, other), contacts, blocks)
            for viewer in range(3):
                expected = [ids[seen] for seen in range(3) if sees(viewer, seen, contacts, blocks, privacy)]
                assert await people.visible(ids[viewer], *ids) == expected

    model_runner(play)


async def step(people: People, what: str, one: str, other: str) -> None:
    if what == "add":
        try:
            await people.add(one, other)
        except WhisprError as error:
            if error.reason != "blocked":
                raise
    else:
        await getattr(people, what)(one, other)


def apply(
    what: str, pair: tuple[int, int], contacts: set[tuple[int, int]], blocks: set[tuple[int, int]]
) -> None:
    match what:
        case "add" if pair not in blocks:
            contacts.add(pair)
        case "remove":
            contacts.discard(pair)
        case "block":
            blocks.add(pair)
            contacts.discard(pair)
        case "unblock":
            blocks.discard(pair)


def sees(
    viewer: int,
    seen: int,
    contacts: set[tuple[int, int]],
    blocks: set[tuple[int, int]],
    privacy: dict[int, str],
) -> bool:
    if viewer == seen:
        return True
    if (viewer, seen) in blocks or (seen, viewer) in blocks:
        return False
    return privacy[seen] == "everyone" or (privacy[seen] == "contacts" and (seen, viewer) in contacts)
