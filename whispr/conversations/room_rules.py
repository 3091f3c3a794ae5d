"""The rules of rooms: who opens, sees, finds, enters, invites to and moderates which. Pure: no clock, no I/O.

What decides is the room's type (who may be in it) and its visibility (who finds it, and whether entering takes
an invitation):

    type     visibility   opened with          listed for     known to          entered by             invited to by
    PUBLIC   OPEN         room:create_public   everybody      everybody         everybody              members
    PUBLIC   INVITE_ONLY  room:create_public   everybody      everybody         the invited            members
    PUBLIC   HIDDEN       room:create_public   its own        its own           the invited            members
    PRIVATE  OPEN         room:write           everybody      everybody         the invited            moderators
    PRIVATE  INVITE_ONLY  room:write           everybody      everybody         the invited            moderators
    PRIVATE  HIDDEN       room:write           its own        its own           the invited            moderators
    PREMIUM  OPEN         room:create_premium  everybody      everybody         premium people         members
    PREMIUM  INVITE_ONLY  room:create_premium  everybody      everybody         invited premium people members
    PREMIUM  HIDDEN       room:create_premium  its own        its own           invited premium people members
    DIRECT   HIDDEN       room:write           nobody         its two people    nobody else            nobody

"Its own" are members and the invited. Everything is opened with room:write besides what the table says. "Moderators"
are those and above. People who are banned enter nothing, and of a hidden room they know nothing. Platform
moderators (chat:moderate or room:moderate) know of every room but the direct ones; they enter as others do.

A premium person is one whose role may room:create_premium.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from whispr.conversations.domain import NAME_CHARS_MAX, Role
from whispr.errors import WhisprError, denied, exhausted, invalid, not_found

DESCRIPTION_CHARS_MAX = 1000
REASON_CHARS_MAX = 500
SLOW_MODE_S_MAX = 6 * 3600
MUTE_S_MAX = 365 * 24 * 3600
BAN_S_MAX = 10 * 365 * 24 * 3600
INVITATION_S = 7 * 24 * 3600
"""How long an invitation is good when nobody says how long."""
INVITATION_S_MAX = 30 * 24 * 3600
INVITATION_USES_MAX = 1_000_000
INVITED_AT_ONCE_MAX = 100
CODE_CHARS_MAX = 64

FOR_GOOD = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""How the API says 'infinity': the last second that google.protobuf.Timestamp knows."""

CREATE_PUBLIC, CREATE_PREMIUM, WRITE = "room:create_public", "room:create_premium", "room:write"
MODERATE_PEOPLE, MODERATE_ROOMS = "chat:moderate", "room:moderate"

Allows = Callable[[str], bool]
"""Tells whether the caller holds a permission."""


class RoomType(enum.StrEnum):
    """Who may be in a room."""

    PUBLIC = "PUBLIC"
    PRIVATE = "PRIVATE"
    DIRECT = "DIRECT"
    PREMIUM = "PREMIUM"


class Visibility(enum.StrEnum):
    """Who finds a room, and whether entering takes an invitation."""

    OPEN = "OPEN"
    INVITE_ONLY = "INVITE_ONLY"
    HIDDEN = "HIDDEN"


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """What an operator may set; 0 lifts one."""

    public_members: int = 10_000
    private_members: int = 1_000
    premium_members: int = 10_000
    rooms_per_hour: int = 100
    """Rooms one person opens."""
    invitations: int = 100
    """Good invitations that one member has out for one room."""
    reports_per_hour: int = 30
    flag_reports: int = 3
    """Distinct people whose reports flag a message."""
    hide_reports: int = 5
    """Distinct people whose reports hide a message until it is reviewed."""
    event_queue_len: int = 256
    """Events that wait for one reader of SubscribeRoomEvents."""
    subscriptions: int = 20
    """Readers of SubscribeRoomEvents that one person has on one process."""

    def members_of(self, room_type: RoomType) -> int:
        """Return the most members a type of room may have; 0 is no limit."""
        match room_type:
            case RoomType.PUBLIC:
                return self.public_members
            case RoomType.PRIVATE:
                return self.private_members
            case RoomType.PREMIUM:
                return self.premium_members
            case RoomType.DIRECT:
                return 2


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks: their id, and what their token lets them do anywhere."""

    user_id: str
    premium: bool = False
    moderates_people: bool = False
    moderates_rooms: bool = False

    @property
    def is_platform_moderator(self) -> bool:
        """Whether they know of every room."""
        return self.moderates_people or self.moderates_rooms


@dataclass(frozen=True, slots=True)
class Standing:
    """What somebody is to one room."""

    role: Role | None = None
    invited: bool = False
    banned: bool = False

    @property
    def inside(self) -> bool:
        """Whether they are a member."""
        return self.role is not None


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A room as one person sees it: `role` and `last_seq` are the viewer's, None and 0 for an outsider."""

    id: str
    name: str
    description: str
    type: RoomType
    visibility: Visibility
    created_by: str
    created_at: datetime
    member_count: int
    is_active: bool
    slow_mode_s: int
    member_limit: int
    antispam: bool
    role: Role | None = None
    last_seq: int = 0


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What UpdateRoom changes; None leaves a thing as it is."""

    name: str | None = None
    description: str | None = None
    visibility: Visibility | None = None
    slow_mode_s: int | None = None
    member_limit: int | None = None
    antispam: bool | None = None


# Opening


def check_may_create(room_type: RoomType, allows: Allows) -> None:
    """Refuse who may not open this type of room. Raises PERMISSION_DENIED."""
    needed = [WRITE]
    if room_type is RoomType.PUBLIC:
        needed.append(CREATE_PUBLIC)
    if room_type is RoomType.PREMIUM:
        needed.append(CREATE_PREMIUM)
    for permission in needed:
        if not allows(permission):
            raise denied(
                f"opening a {room_type} room takes the permission {permission}",
                facts={"permission": permission},
            )


def visibility_of(room_type: RoomType, asked: Visibility | None) -> Visibility:
    """Return the visibility of a new room, the type's own when none is asked for. Raises INVALID_ARGUMENT."""
    if room_type is RoomType.DIRECT:
        if asked not in (None, Visibility.HIDDEN):
            raise invalid({"visibility": "a DIRECT room is HIDDEN"})
        return Visibility.HIDDEN
    if asked is not None:
        return asked
    return Visibility.INVITE_ONLY if room_type is RoomType.PRIVATE else Visibility.OPEN


def check_name(name: str) -> str:
    """Return a room's name without surrounding space. Raises INVALID_ARGUMENT."""
    name = name.strip()
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise invalid({"name": f"1 to {NAME_CHARS_MAX} printable characters"})
    return name


def check_text(text: str, field: str, chars_max: int) -> str:
    """Return free text without surrounding space; line breaks may be in it. Raises INVALID_ARGUMENT."""
    text = text.strip()
    if len(text) > chars_max:
        raise invalid({field: f"at most {chars_max} characters"})
    if not all(char.isprintable() or char in "\n\t" for char in text):
        raise invalid({field: "printable characters only"})
    return text


def check_slow_mode(seconds: int) -> int:
    """Return the seconds of a slow mode. Raises INVALID_ARGUMENT."""
    if not 0 <= seconds <= SLOW_MODE_S_MAX:
        raise invalid({"slow_mode_seconds": f"0 to {SLOW_MODE_S_MAX}"})
    return seconds


def check_member_limit(wanted: int, room_type: RoomType, limits: RoomLimits) -> int:
    """Return a room's own limit of members; 0 is the operator's. Raises INVALID_ARGUMENT."""
    most = limits.members_of(room_type)
    if wanted < 0 or (most and wanted > most):
        raise invalid({"member_limit": f"0 to {most}" if most else "must not be negative"})
    return wanted


def member_limit(own: int, room_type: RoomType, limits: RoomLimits) -> int:
    """Return how many members a room may have, 0 for no limit: its own limit and the operator's, both."""
    most = limits.members_of(room_type)
    return min(own, most) if own and most else own or most


def check_changes(changes: Changes, room_type: RoomType, limits: RoomLimits) -> Changes:
    """Return changes that are well-formed. Raises INVALID_ARGUMENT."""
    checked = changes
    if changes.name is not None:
        checked = msgspec.structs.replace(checked, name=check_name(changes.name))
    if changes.description is not None:
        description = check_text(changes.description, "description", DESCRIPTION_CHARS_MAX)
        checked = msgspec.structs.replace(checked, description=description)
    if changes.slow_mode_s is not None:
        check_slow_mode(changes.slow_mode_s)
    if changes.member_limit is not None:
        check_member_limit(changes.member_limit, room_type, limits)
    return checked


# Finding and entering


def is_listed(room_type: RoomType, visibility: Visibility) -> bool:
    """Tell whether everybody finds it in lists."""
    return room_type is not RoomType.DIRECT and visibility is not Visibility.HIDDEN


def needs_invitation(room_type: RoomType, visibility: Visibility) -> bool:
    """Tell whether entering takes an invitation."""
    return room_type is RoomType.PRIVATE or visibility is not Visibility.OPEN


def knows(room_type: RoomType, visibility: Visibility, person: Person, standing: Standing) -> bool:
    """Tell whether somebody may know that the room exists."""
    if standing.inside:
        return True
    if room_type is RoomType.DIRECT:
        return False
    if person.is_platform_moderator or is_listed(room_type, visibility):
        return True
    return standing.invited and not standing.banned


def why_not_enter(room_type: RoomType, visibility: Visibility, person: Person, standing: Standing) -> str:
    """Return the reason why somebody outside may not enter a room, empty when they may."""
    if room_type is RoomType.DIRECT or not knows(room_type, visibility, person, standing):
        return "not_found"
    if standing.banned:
        return "banned"
    if room_type is RoomType.PREMIUM and not person.premium:
        return "premium_required"
    if needs_invitation(room_type, visibility) and not standing.invited:
        return "invitation_required"
    return ""


def check_may_enter(
    room_id: str,
    room_type: RoomType,
    visibility: Visibility,
    person: Person,
    standing: Standing,
    *,
    banned_until: datetime | None = None,
) -> None:
    """Refuse who may not enter.

    Raises NOT_FOUND, PERMISSION_DENIED (banned, premium_required, invitation_required).
    """
    match why_not_enter(room_type, visibility, person, standing):
        case "":
            return
        case "not_found":
            raise not_found("room", room_id)
        case "banned":
            raise banned(banned_until)
        case "premium_required":
            raise denied("the room is for premium people", reason="premium_required")
        case reason:
            raise denied("entering this room takes an invitation", reason=reason)


def banned(until: datetime | None) -> WhisprError:
    """PERMISSION_DENIED for those who are kept out."""
    return denied(
        "you are banned from this room", reason="banned", facts={"until": moment(until)} if until else None
    )


def room_full(limit: int) -> WhisprError:
    """RESOURCE_EXHAUSTED for a room with no place left."""
    return exhausted(f"the room has its {limit} members", reason="room_full")


def check_may_invite(room_type: RoomType, role: Role | None) -> None:
    """Refuse who may not invite. Raises PERMISSION_DENIED."""
    if room_type is RoomType.DIRECT:
        raise denied("a direct conversation is between its two people")
    if role is None:
        raise denied("only members invite", reason="not_a_member")
    if room_type is RoomType.PRIVATE and role.rank < Role.MODERATOR.rank:
        raise denied("only a moderator, an admin or the owner invites to a private room")


# Moderating


def rank(role: Role | None, *, platform: bool) -> int:
    """Where somebody stands: -1 for an outsider, 0 for a member, 3 for the owner, 4 for a platform moderator."""
    if platform:
        return Role.OWNER.rank + 1
    return role.rank if role is not None else -1


def check_moderates(role: Role | None, *, platform: bool) -> None:
    """Refuse who moderates nothing here. Raises PERMISSION_DENIED."""
    if rank(role, platform=platform) < Role.MODERATOR.rank:
        raise denied(
            "only a moderator, an admin or the owner does this",
            reason="forbidden" if role is not None else "not_a_member",
        )


def check_may_sanction(role: Role | None, target: Role | None, *, platform: bool, oneself: bool) -> None:
    """Refuse acting against somebody of the same rank or above, and oneself. Raises PERMISSION_DENIED."""
    check_moderates(role, platform=platform)
    if oneself:
        raise denied("nobody acts against themselves; leave the room instead")
    if rank(role, platform=platform) <= rank(target, platform=False):
        raise denied(f"a {role} does not act against a {target}")


def check_may_administer(role: Role | None, *, platform: bool) -> None:
    """Refuse who may not change the room itself. Raises PERMISSION_DENIED."""
    if rank(role, platform=platform) < Role.ADMIN.rank:
        raise denied(
            "only an admin or the owner changes a room",
            reason="forbidden" if role is not None else "not_a_member",
        )


def check_may_close(role: Role | None, *, platform: bool) -> None:
    """Refuse who may not close the room. Raises PERMISSION_DENIED."""
    if rank(role, platform=platform) < Role.OWNER.rank:
        raise denied(
            "only the owner closes a room", reason="forbidden" if role is not None else "not_a_member"
        )


def check_may_set_role(
    role: Role | None, target: Role, new_role: Role, *, platform: bool, oneself: bool
) -> None:
    """Roles below one's own, to people below oneself; the owner also hands over. Raises PERMISSION_DENIED."""
    own = rank(role, platform=platform)
    if role is None and not platform:
        raise denied("only members of the room may do this", reason="not_a_member")
    if oneself:
        raise denied("nobody changes their own role; an owner hands over to another member")
    if own < Role.MODERATOR.rank or own <= target.rank:
        raise denied(f"a {role} does not change the role of a {target}")
    if own <= new_role.rank and role is not Role.OWNER:
        raise denied(f"a {role} gives roles below {role}")


def period(seconds: int, seconds_max: int) -> timedelta | None:
    """Return how long a sanction lasts, None for good. Raises INVALID_ARGUMENT."""
    if not 0 <= seconds <= seconds_max:
        raise invalid({"duration_seconds": f"0 to {seconds_max}"})
    return timedelta(seconds=seconds) if seconds else None


def invitation_period(seconds: int) -> timedelta:
    """Return how long an invitation is good. Raises INVALID_ARGUMENT."""
    if not 0 <= seconds <= INVITATION_S_MAX:
        raise invalid({"expires_in_seconds": f"0 to {INVITATION_S_MAX}"})
    return timedelta(seconds=seconds or INVITATION_S)


def is_code(code: str) -> bool:
    """Tell whether something may be the code of an invitation at all."""
    return 0 < len(code) <= CODE_CHARS_MAX and code.isascii() and code.isprintable()


def check_uses(uses: int, *, personal: bool) -> int:
    """Return how many an invitation admits, 0 for no limit; one to a person admits them once.

    Raises INVALID_ARGUMENT.
    """
    if not 0 <= uses <= INVITATION_USES_MAX:
        raise invalid({"uses_max": f"0 to {INVITATION_USES_MAX}"})
    if personal and uses > 1:
        raise invalid({"uses_max": "an invitation to a person admits them once"})
    return 1 if personal else uses


def moment(at: datetime) -> str:
    """Write a time in RFC 3339."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def until_of(value: datetime | None) -> datetime | None:
    """Clamp what PostgreSQL says of 'infinity' to the last moment the API knows."""
    if value is None or value >= FOR_GOOD.replace(tzinfo=value.tzinfo):
        return None if value is None else FOR_GOOD
    return value


# Reports


@dataclass(frozen=True, slots=True)
class Reported:
    """What the reports of a message amount to."""

    flagged: bool
    hidden: bool


def weigh_reports(count: int, limits: RoomLimits) -> Reported:
    """Tell what `count` distinct reporters do to a message; a threshold of 0 is never reached."""
    return Reported(
        flagged=0 < limits.flag_reports <= count,
        hidden=0 < limits.hide_reports <= count,
    )


MEDIA_TYPES: Mapping[str, str] = {"IMAGE": "image", "FILE": "file", "AUDIO": "audio", "VIDEO": "video"}
"""Types of a room's message that are message_type media, and their `media_type` in the metadata."""
