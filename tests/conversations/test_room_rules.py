"""The rules of rooms, every combination of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.conversations import room_rules as rules
from whispr.conversations.domain import Role
from whispr.conversations.room_rules import Changes, Person, RoomLimits, RoomType, Standing, Visibility
from whispr.errors import Code, WhisprError
from whispr.tokens import ROLE_PERMISSIONS

LIMITS = RoomLimits()
# (type, visibility) → permission beside room:write, listed, entered by, invited to by: the table of the module.
TABLE = {
    ("PUBLIC", "OPEN"): ("room:create_public", True, "anybody", Role.MEMBER),
    ("PUBLIC", "INVITE_ONLY"): ("room:create_public", True, "invited", Role.MEMBER),
    ("PUBLIC", "HIDDEN"): ("room:create_public", False, "invited", Role.MEMBER),
    ("PRIVATE", "OPEN"): (None, True, "invited", Role.MODERATOR),
    ("PRIVATE", "INVITE_ONLY"): (None, True, "invited", Role.MODERATOR),
    ("PRIVATE", "HIDDEN"): (None, False, "invited", Role.MODERATOR),
    ("PREMIUM", "OPEN"): ("room:create_premium", True, "premium", Role.MEMBER),
    ("PREMIUM", "INVITE_ONLY"): ("room:create_premium", True, "invited premium", Role.MEMBER),
    ("PREMIUM", "HIDDEN"): ("room:create_premium", False, "invited premium", Role.MEMBER),
}
PEOPLE = [
    (Person("p", premium, people, rooms), Standing(role, invited, banned))
    for premium, people, rooms, role, invited, banned in product(
        *[(False, True)] * 3, (None, *Role), *[(False, True)] * 2
    )
    if not (role is not None and (invited or banned))
]


def refusal(check: object, *args: object, **kwargs: object) -> str:
    """Return the reason of a refusal, empty when there is none."""
    assert callable(check)
    try:
        check(*args, **kwargs)
    except WhisprError as error:
        return error.reason
    return ""


@pytest.mark.parametrize(("kind", "row"), TABLE.items(), ids=lambda v: "-".join(map(str, v)))
def test_the_table_of_rooms(kind: tuple[str, str], row: tuple[str | None, bool, str, Role]) -> None:
    """Who is shown, admitted to and lets others into each sort of room is what the table says, for everybody."""
    room_type, visibility = RoomType(kind[0]), Visibility(kind[1])
    permission, listed, entered_by, invited_by = row
    assert rules.is_listed(room_type, visibility) is listed
    for person, standing in PEOPLE:
        known = (
            standing.inside
            or person.is_platform_moderator
            or listed
            or (standing.invited and not standing.banned)
        )
        assert rules.knows(room_type, visibility, person, standing) is known
        if standing.inside:
            continue
        may = (
            known
            and not standing.banned
            and ("premium" not in entered_by or person.premium)
            and ("invited" not in entered_by or standing.invited)
        )
        why = rules.why_not_enter(room_type, visibility, person, standing)
        assert (why == "") is may
        assert (why == "not_found") is not known
    for role in (None, *Role):
        may = role is not None and role.rank >= invited_by.rank
        assert (refusal(rules.check_may_invite, room_type, role) == "") is may
    for held in (set(), {"room:write"}, {permission}, {"room:write", permission}):
        may = "room:write" in held and (permission is None or permission in held)
        assert (refusal(rules.check_may_create, room_type, held.__contains__) == "") is may


def test_direct_rooms_are_of_their_two_people() -> None:
    """A direct conversation is listed for nobody, entered by nobody, and known to its two alone."""
    for person, standing in PEOPLE:
        assert rules.knows(RoomType.DIRECT, Visibility.HIDDEN, person, standing) is standing.inside
        assert rules.why_not_enter(RoomType.DIRECT, Visibility.HIDDEN, person, standing) == "not_found"
    for visibility in Visibility:
        assert not rules.is_listed(RoomType.DIRECT, visibility)
    for role in (None, *Role):
        assert refusal(rules.check_may_invite, RoomType.DIRECT, role) == "forbidden"
    with pytest.raises(WhisprError, match="HIDDEN"):
        rules.visibility_of(RoomType.DIRECT, Visibility.OPEN)


@pytest.mark.parametrize(
    ("role", "opens"),
    [
        ("user", {"PUBLIC", "PRIVATE", "DIRECT"}),
        ("premium", {"PUBLIC", "PRIVATE", "DIRECT", "PREMIUM"}),
        ("moderator", {"PUBLIC", "PRIVATE", "DIRECT"}),
    ],
)
def test_roles_of_accounts_open_what_their_permissions_say(role: str, opens: set[str]) -> None:
    """A plain user opens public and private rooms, and only premium people open premium ones."""
    allowed = {
        t for t in RoomType if not refusal(rules.check_may_create, t, ROLE_PERMISSIONS[role].__contains__)
    }
    assert allowed == opens


@pytest.mark.parametrize("platform", [False, True])
@pytest.mark.parametrize("target", [None, *Role])
@pytest.mark.parametrize("role", [None, *Role])
def test_sanctions_go_down_the_ranks(role: Role | None, target: Role | None, platform: bool) -> None:
    """Only moderators and above act, only against lower ranks, never against themselves."""
    own = 4 if platform else -1 if role is None else role.rank
    may = own >= Role.MODERATOR.rank and own > (-1 if target is None else target.rank)
    check = rules.check_may_sanction
    assert (refusal(check, role, target, platform=platform, oneself=False) == "") is may
    assert refusal(check, role, target, platform=platform, oneself=True) != ""


@pytest.mark.parametrize("platform", [False, True])
@pytest.mark.parametrize(("target", "new"), list(product(Role, Role)))
@pytest.mark.parametrize("role", [None, *Role])
def test_roles_are_given_below_ones_own(role: Role | None, target: Role, new: Role, platform: bool) -> None:
    """A role is given below the giver's to those below the giver; the owner also hands over."""
    own = 4 if platform else -1 if role is None else role.rank
    may = own >= Role.MODERATOR.rank and own > target.rank and (own > new.rank or role is Role.OWNER)
    check = rules.check_may_set_role
    assert (refusal(check, role, target, new, platform=platform, oneself=False) == "") is may
    assert refusal(check, role, target, new, platform=platform, oneself=True) != ""


def test_the_room_itself_is_changed_by_admins_and_closed_by_its_owner() -> None:
    """UpdateRoom takes an admin, CloseRoom the owner; a platform moderator may both."""
    for role in (None, *Role):
        own = -1 if role is None else role.rank
        assert (refusal(rules.check_may_administer, role, platform=False) == "") is (own >= Role.ADMIN.rank)
        assert (refusal(rules.check_may_close, role, platform=False) == "") is (role is Role.OWNER)
        assert refusal(rules.check_may_administer, role, platform=True) == ""
        assert refusal(rules.check_may_close, role, platform=True) == ""


@given(own=st.integers(0, 20_000), room_type=st.sampled_from(RoomType), most=st.integers(0, 20_000))
def test_the_lower_limit_of_members_counts(own: int, room_type: RoomType, most: int) -> None:
    """A room's own limit never widens the operator's; 0 of either leaves the other."""
    limits = RoomLimits(public_members=most, private_members=most, premium_members=most)
    allowed = limits.members_of(room_type)
    found = rules.member_limit(own, room_type, limits)
    assert found == min((n for n in (own, allowed) if n), default=0)
    if allowed and own > allowed:
        with pytest.raises(WhisprError) as refused:
            rules.check_member_limit(own, room_type, limits)
        assert "member_limit" in refused.value.fields


@given(count=st.integers(0, 20), flag=st.integers(0, 10), hide=st.integers(0, 10))
def test_reports_have_thresholds(count: int, flag: int, hide: int) -> None:
    """A message is flagged and hidden from the numbers set on; 0 turns a threshold off."""
    found = rules.weigh_reports(count, RoomLimits(flag_reports=flag, hide_reports=hide))
    assert found.flagged is (flag > 0 and count >= flag)
    assert found.hidden is (hide > 0 and count >= hide)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (Changes(name="  "), "name"),
        (Changes(name="x" * 101), "name"),
        (Changes(name="a\x07b"), "name"),
        (Changes(description="x" * 1001), "description"),
        (Changes(slow_mode_s=-1), "slow_mode_seconds"),
        (Changes(slow_mode_s=21_601), "slow_mode_seconds"),
        (Changes(member_limit=-1), "member_limit"),
        (Changes(member_limit=10_001), "member_limit"),
    ],
)
def test_changes_out_of_bounds_are_named(changes: Changes, field: str) -> None:
    """What is wrong with a change is said by its field."""
    with pytest.raises(WhisprError) as refused:
        rules.check_changes(changes, RoomType.PUBLIC, LIMITS)
    assert list(refused.value.fields) == [field]


def test_changes_within_bounds_pass() -> None:
    """Names and descriptions lose the space around them; what is not given stays out."""
    found = rules.check_changes(
        Changes(name=" a ", description="two\nlines ", slow_mode_s=21_600, member_limit=10_000),
        RoomType.PUBLIC,
        LIMITS,
    )
    assert found == Changes(name="a", description="two\nlines", slow_mode_s=21_600, member_limit=10_000)


def test_periods_are_bounded() -> None:
    """A sanction lasts for the time given, for good when none is given; nothing lasts a negative time."""
    assert rules.period(0, 10) is None
    assert rules.period(10, 10) == timedelta(seconds=10)
    for seconds in (-1, 11):
        with pytest.raises(WhisprError, match="duration_seconds"):
            rules.period(seconds, 10)
    assert rules.invitation_period(0) == timedelta(days=7)
    with pytest.raises(WhisprError, match="expires_in_seconds"):
        rules.invitation_period(31 * 86400)
    assert rules.check_uses(0, personal=True) == 1
    assert rules.check_uses(0, personal=False) == 0
    with pytest.raises(WhisprError, match="once"):
        rules.check_uses(2, personal=True)


def test_a_ban_says_until_when() -> None:
    """The error of a banned person carries the end of the ban, and the code of a refusal."""
    until = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    with pytest.raises(WhisprError) as refused:
        rules.check_may_enter(
            "r",
            RoomType.PUBLIC,
            Visibility.OPEN,
            Person("p"),
            Standing(banned=True),
            banned_until=until,
        )
    assert refused.value.code is Code.PERMISSION_DENIED
    assert refused.value.facts == {"until": "2030-01-02T03:04:05.000Z"}


def test_for_good_is_the_last_moment_of_the_api() -> None:
    """What PostgreSQL calls infinity becomes a time that a Timestamp can hold."""
    infinity = datetime.max.replace(tzinfo=UTC)
    assert rules.until_of(infinity) == rules.FOR_GOOD
    assert rules.until_of(None) is None
