"""The rules of conversations, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.conversations import domain
from whispr.conversations.domain import Action, Draft, Kind, Limits, Member, Role
from whispr.conversations.paging import Place, from_token, to_token
from whispr.errors import Code, WhisprError
from whispr.ids import is_id, new_id, parse_id

LIMITS = Limits()
ROLES = st.sampled_from(Role)


def draft(**fields: Any) -> Draft:
    return Draft(**{"id": new_id(), "conversation_id": "c", "sender_id": "s", "content": b"hi"} | fields)


def wrong_fields(draft: Draft, limits: Limits = LIMITS) -> set[str]:
    try:
        domain.check_draft(draft, limits)
    except WhisprError as error:
        return set(error.fields) or {error.reason}
    return set()


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, set()),
        ({"content": b"x" * 65536}, set()),
        ({"content": b"x" * 65537}, {"content"}),
        ({"content": b""}, {"content"}),
        ({"content": b"", "message_type": "media"}, set()),
        ({"message_type": "gif"}, {"message_type"}),
        ({"message_type": "system"}, {"forbidden"}),
        ({"client_id": "x" * 128}, set()),
        ({"client_id": "x" * 129}, {"client_id"}),
        ({"client_id": "a\nb"}, {"client_id"}),
        ({"metadata": {str(n): "" for n in range(32)}}, set()),
        ({"metadata": {str(n): "" for n in range(33)}}, {"metadata"}),
        ({"metadata": {"": "x"}}, {"metadata"}),
        ({"metadata": {"k" * 65: "x"}}, {"metadata"}),
        ({"metadata": {"k": "v" * 8192}}, {"metadata"}),
        ({"metadata": {"k": "a\0b"}}, {"metadata"}),
        ({"signature": b"x" * 1025}, {"signature"}),
        ({"sender_public_key": b"x" * 1025}, {"sender_public_key"}),
        ({"client_id": "x" * 129, "signature": b"x" * 1025}, {"client_id", "signature"}),
    ],
)
def test_a_draft_is_judged_field_by_field(fields: dict[str, Any], wrong: set[str]) -> None:
    """Each bound holds exactly, and every offending field is named."""
    assert wrong_fields(draft(**fields)) == wrong


def test_limits_of_zero_are_lifted() -> None:
    """0 lifts the limits on bodies, members and page sizes."""
    lifted = Limits(message_body_bytes=0, group_members=0, page_size_max=0)
    assert wrong_fields(draft(content=b"x" * 100_000), lifted) == set()
    domain.check_member_limit(5000, lifted)
    assert domain.clamp_page(5000, lifted) == 5000


def test_page_sizes_are_clamped() -> None:
    """0 is the default, the maximum holds, negative sizes are refused."""
    assert [domain.clamp_page(size, LIMITS) for size in (0, 1, 100, 101)] == [50, 1, 100, 100]
    with pytest.raises(WhisprError):
        domain.clamp_page(-1, LIMITS)


@given(st.binary(), st.binary(), st.dictionaries(st.text(), st.text(), max_size=2))
def test_a_repeat_is_the_same_in_everything_but_its_id(
    one: bytes, two: bytes, metadata: dict[str, str]
) -> None:
    """same_message ignores the id alone."""
    first = draft(content=one, metadata=metadata)
    assert domain.same_message(msgspec.structs.replace(first, id=new_id()), first)
    assert domain.same_message(msgspec.structs.replace(first, content=two), first) == (one == two)
    for field in ("conversation_id", "message_type", "reply_to_id"):
        assert not domain.same_message(msgspec.structs.replace(first, **{field: "?"}), first)


_SETTINGS = st.dictionaries(st.sampled_from("abc"), st.text("xyz", max_size=2))


@given(_SETTINGS, _SETTINGS)
def test_settings_merge(settings: dict[str, str], changes: dict[str, str]) -> None:
    """A change wins over what was there, an empty value removes, nothing else changes."""
    merged = domain.merged_settings(settings, changes)
    for key in "abc":
        assert merged.get(key, "") == changes.get(key, settings.get(key, ""))
    assert "" not in merged.values()


def test_settings_and_names_are_bounded() -> None:
    """Too many or too long settings and names are refused; names lose surrounding space."""
    with pytest.raises(WhisprError, match="settings"):
        domain.merged_settings({str(n): "x" for n in range(32)}, {"one": "more"})
    assert domain.check_name("  a b ") == "a b"
    for name in ("x" * 101, "a\nb", "a\0b"):
        with pytest.raises(WhisprError, match="name"):
            domain.check_name(name)


def test_roles_are_ranked() -> None:
    """Member < moderator < admin < owner, and nobody outranks themselves."""
    assert all(higher.outranks(lower) for lower, higher in pairwise(Role))
    assert not any(role.outranks(role) for role in Role)


def allowed(check: Any, *args: Any, **named: Any) -> bool:
    try:
        check(*args, **named)
    except WhisprError as error:
        if error.code is not Code.PERMISSION_DENIED:
            raise
        return False
    return True


@given(ROLES, ROLES, ROLES)
def test_nobody_touches_those_at_or_above_their_own_role(actor: Role, target: Role, new: Role) -> None:
    """Whatever the roles: adding, removing and promoting never reach the actor's own rank, handing over apart."""
    if allowed(domain.check_may_add, Kind.GROUP, actor, new):
        assert actor.rank >= Role.MODERATOR.rank
        assert actor.rank > new.rank
    if allowed(domain.check_may_remove, Kind.GROUP, actor, target, oneself=False):
        assert actor.rank >= Role.MODERATOR.rank
        assert actor.rank > target.rank
    if allowed(domain.check_may_set_role, Kind.GROUP, actor, target, new, oneself=False):
        assert actor.rank > target.rank
        assert actor.rank > new.rank or actor is new is Role.OWNER
    assert allowed(domain.check_may_remove, Kind.GROUP, actor, actor, oneself=True)
    assert not allowed(domain.check_may_set_role, Kind.GROUP, actor, actor, new, oneself=True)
    assert allowed(domain.check_may_update, Kind.GROUP, actor, "name", {}) == (actor.rank >= Role.ADMIN.rank)


@given(ROLES, ROLES, ROLES)
def test_a_direct_conversation_does_not_change(actor: Role, target: Role, new: Role) -> None:
    """No role changes who is in a direct conversation, or what it is called."""
    assert not allowed(domain.check_may_add, Kind.DIRECT, actor, new)
    assert not allowed(domain.check_may_remove, Kind.DIRECT, actor, target, oneself=True)
    assert not allowed(domain.check_may_set_role, Kind.DIRECT, actor, target, new, oneself=False)
    assert not allowed(domain.check_may_update, Kind.DIRECT, actor, "name", {})
    assert domain.allowed_actions(Kind.DIRECT, actor) == dict.fromkeys(Action, True) | {Action.LEAVE: False}


def test_strangers_may_nothing() -> None:
    """Every action is denied to whoever has no role."""
    for kind in Kind:
        assert not any(domain.allowed_actions(kind, None).values())


_MEMBERS = st.builds(
    Member,
    user_id=st.text("ab", min_size=3, max_size=3),
    username=st.just(""),
    display_name=st.just(""),
    role=ROLES,
    joined_at=st.integers(0, 3).map(lambda day: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)),
    delivered_seq=st.just(0),
    read_seq=st.just(0),
)


@given(st.lists(_MEMBERS, max_size=6, unique_by=lambda member: member.user_id), st.randoms())
def test_the_successor_is_one_whatever_the_order(members: list[Member], random: Any) -> None:
    """Nobody of a higher role, or of the same role and longer present, is passed over."""
    heir = domain.successor(members)
    random.shuffle(members)
    assert domain.successor(members) == heir
    for member in members:
        assert heir is not None
        assert not member.role.outranks(heir.role)
        assert member.role is not heir.role or member.joined_at >= heir.joined_at
    assert (heir is None) == (not members)


def test_ids_are_uuid_v7_in_the_order_of_time() -> None:
    """Version and variant are right (RFC 9562), and the first 48 bits are the time."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(is_id(each) and each[14] == "7" and each[19] in "89ab" for each in ids)
    times = [int(each.replace("-", "")[:12], 16) for each in ids]
    assert times == sorted(times)
    assert abs(times[0] / 1000 - datetime.now(UTC).timestamp()) < 60


def test_only_canonical_ids_are_taken() -> None:
    """Upper case is folded; anything else is INVALID_ARGUMENT naming the field."""
    one = new_id()
    assert parse_id(one.upper(), "f") == one
    for bad in ("", "x", one[:-1], one + "0", one.replace("-", ""), one + "\n", f"{{{one}}}"):
        assert not is_id(bad)
        with pytest.raises(WhisprError, match="f:"):
            parse_id(bad, "f")


def test_page_tokens_come_back() -> None:
    """A token is the place it was made of; what is not a token is INVALID_ARGUMENT."""
    place = Place(datetime.now(UTC), new_id())
    assert from_token(to_token(place), Place) == place
    assert from_token("", Place) is None
    for bad in (
        "x",
        "é",
        to_token("text"),
        to_token([datetime(2026, 1, 1), place.id]),
        to_token([place.at, "x"]),
    ):
        with pytest.raises(WhisprError, match="page_token"):
            from_token(bad, Place)
