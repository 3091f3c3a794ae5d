"""What a person may do: by the role of the account and, in a conversation, by what they are in there.

A role permits `resource:action` everywhere. Asked about one conversation or room, `read` and `write` take the role's
permission and a membership that admits it (blocks and sanctions count); `moderate` takes either the role's
permission, which is for all rooms, or a moderator's place in this one; `manage` an admin's and `own` the owner's.
`*:*` is all of it, in whatever exists. Anything else is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from whispr.conversations.domain import Role
from whispr.errors import invalid
from whispr.ids import parse_id
from whispr.services.auth.domain import Account
from whispr.services.auth.neighbours import Neighbours
from whispr.tokens import ROLE_PERMISSIONS, permits

_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CONVERSATIONS = {"chat": "chat", "conversation": "chat", "room": "room"}
"""Resources whose id is that of a conversation → the resource of their permissions."""
_NEEDED = {"moderate": Role.MODERATOR, "manage": Role.ADMIN, "own": Role.OWNER}
"""Action → the least that a person has to be in a conversation."""
EVERYTHING = "*:*"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it is allowed, what the role permits, and what the person is in the conversation asked about."""

    allowed: bool
    permissions: tuple[str, ...]
    resource_role: str = ""


async def check(
    neighbours: Neighbours, account: Account, resource: str, action: str, resource_id: str
) -> Verdict:
    """Decide about one person, one action and one thing. Raises INVALID_ARGUMENT, UNAVAILABLE."""
    words = {"resource": resource, "action": action}
    if faults := {
        name: "must be a lower-case word" for name, word in words.items() if not _WORD.fullmatch(word)
    }:
        raise invalid(faults)
    permissions = ROLE_PERMISSIONS[account.role] if account.is_active else ()
    by_role = permits(permissions, f"{_CONVERSATIONS.get(resource, resource)}:{action}")
    if not resource_id or resource not in _CONVERSATIONS:
        return Verdict(by_role, permissions)
    conversation_id = parse_id(resource_id, "resource_id")
    standing = await neighbours.standing(str(account.id), conversation_id)
    if standing is None or not account.is_active:
        return Verdict(False, permissions)
    if EVERYTHING in permissions:
        return Verdict(True, permissions, standing.role)
    return Verdict(_allowed(action, standing.role, standing.permissions.get(action, False), by_role),
                   permissions, standing.role)  # fmt: skip


def _allowed(action: str, role: str, admitted: bool, by_role: bool) -> bool:
    if action in ("read", "write"):
        return by_role and admitted
    if action == "moderate" and by_role:
        return True
    return action in _NEEDED and role != "" and Role(role).rank >= _NEEDED[action].rank
