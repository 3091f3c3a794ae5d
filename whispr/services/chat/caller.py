"""Who calls: the verified person, what their token lets them do, and the ids they name."""

from __future__ import annotations

from whispr.conversations.room_rules import (
    CREATE_PREMIUM,
    MODERATE_PEOPLE,
    MODERATE_ROOMS,
    REASON_CHARS_MAX,
    Person,
    check_text,
)
from whispr.errors import denied
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.tokens import ROLE_PERMISSIONS

READ_ROOMS, WRITE_ROOMS = "room:read", "room:write"
READ, WRITE = "chat:read", "chat:write"

NOBODY = "00000000-0000-0000-0000-000000000000"
"""Stands for no person; nobody has this id."""

_ANYBODYS = frozenset(ROLE_PERMISSIONS["user"])


def allows(permission: str) -> bool:
    """Tell whether the caller's token holds a permission.

    A service that acts for a person may what any person may; more only by permissions of its own.
    """
    claims = current_actor().claims
    return claims.allows(permission) or (claims.is_service and permission in _ANYBODYS)


def caller(permission: str) -> Person:
    """Return the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    user_id = current_actor().person
    if not allows(permission):
        raise denied(f"this takes the permission {permission}", facts={"permission": permission})
    return Person(
        parse_id(user_id, "x-whispr-actor"),
        premium=allows(CREATE_PREMIUM),
        moderates_people=allows(MODERATE_PEOPLE),
        moderates_rooms=allows(MODERATE_ROOMS),
    )


def caller_or_service(permission: str) -> Person:
    """Return the person who calls; a service that acts for nobody may know of every room. As `caller`."""
    actor = current_actor()
    if actor.is_service and not actor.user_id:
        return Person(NOBODY, moderates_people=True)
    return caller(permission)


def room(room_id: str) -> str:
    """Parse the id of a room. Raises INVALID_ARGUMENT."""
    return parse_id(room_id, "room_id")


def user(user_id: str) -> str:
    """Parse the id of a person. Raises INVALID_ARGUMENT."""
    return parse_id(user_id, "user_id")


def because(reason: str) -> str:
    """Return a reason as it is kept. Raises INVALID_ARGUMENT."""
    return check_text(reason, "reason", REASON_CHARS_MAX)
