"""Every RPC of the product: whom it is for, and how somebody asks about something of their own.

A row's `request` makes whatever the call needs, so that rows do not depend on one another: what one call
deletes, the next one made anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.world import PASSWORD, PEOPLE, ROLES, World
from whispr.errors import Code

Request = Callable[[World, str], Awaitable[Mapping[str, Any]]]
"""Makes the request of somebody of that role, as proto3 JSON."""

ALL = frozenset(ROLES)
SIGNED_IN = frozenset(PEOPLE)
PEOPLE_AND_SERVICES = SIGNED_IN | {"service"}
MEMBERS = frozenset({"member", "moderator", "owner"})
MODERATORS = frozenset({"moderator", "owner"})
OWNER = frozenset({"owner"})
SERVICE = frozenset({"service"})


@dataclass(frozen=True)
class Row:
    """One RPC."""

    allowed: Collection[str]
    """The roles it answers."""
    request: Request
    codes: Collection[Code] = ()
    """Errors that are an answer too: the caller was let through to them."""
    own_session: bool = False
    """Whether the call is made in a session of its own, for it ends the session."""


ROWS: dict[str, Row] = {}


def row(
    method: str, allowed: Collection[str], *codes: Code, own_session: bool = False
) -> Callable[[Request], Request]:
    """Enter an RPC by what makes its request."""

    def enter(request: Request) -> Request:
        assert method not in ROWS, f"two rows for {method}"
        ROWS[method] = Row(allowed, request, codes, own_session)
        return request

    return enter


def same(method: str, allowed: Collection[str], request: Mapping[str, Any], *codes: Code) -> None:
    """Enter an RPC whose request is the same for everybody."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del world, role
        return request

    row(method, allowed, *codes)(make)


def about_a_group(method: str, allowed: Collection[str], **more: Any) -> None:
    """Enter an RPC that names a group, and the rest of its request."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del role
        return {"conversation_id": await world.group(), **more}

    row(method, allowed)(make)


# AuthService


@row("AuthService/Register", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"username": f"new{uuid4().hex[:12]}", "password": PASSWORD}


@row("AuthService/Login", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"username": world.people["stranger"].username, "password": PASSWORD}


@row("AuthService/Refresh", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"refresh_token": (await world.sign_up()).refresh_token}


@row("AuthService/Logout", SIGNED_IN, own_session=True)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {}


@row("AuthService/ValidateToken", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"token": world.token("member")}


@row("AuthService/GetUserInfo", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id("member")}


same("AuthService/GetJwks", ALL, {})


# UserService


@row("UserService/ValidateMessagePermissions", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"sender_id": world.id(role), "conversation_id": await world.group()}


@row("UserService/ValidateConversationAccess", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id(role), "conversation_id": await world.group(), "action": "read"}


about_a_group("UserService/GetConversationParticipants", MEMBERS | SERVICE)


@row("UserService/CheckUserBlocks", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id(role), "target_user_ids": [world.id("moderator")]}


@row("UserService/BlockUser", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id}


@row("UserService/UnblockUser", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id}


same("UserService/ListBlocks", SIGNED_IN, {})
same("UserService/SearchUsers", PEOPLE_AND_SERVICES, {"query": "person"})


@row("UserService/GetProfile", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id("member")}


# MessagingService


@row("MessagingService/CreateConversation", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"kind": "direct", "member_ids": [(await world.sign_up()).user_id]}


about_a_group("MessagingService/GetConversation", MEMBERS)
same("MessagingService/ListConversations", SIGNED_IN, {})
about_a_group("MessagingService/UpdateConversation", OWNER, name="another name")
about_a_group("MessagingService/ListMembers", MEMBERS)


@row("MessagingService/AddMember", MODERATORS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"conversation_id": await world.group(), "user_ids": [(await world.sign_up()).user_id]}


@row("MessagingService/RemoveMember", MODERATORS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    somebody = (await world.sign_up()).user_id
    return {"conversation_id": await world.group(somebody), "user_id": somebody}


@row("MessagingService/SetMemberRole", OWNER)
async def _(world: World, role: str) -> Mapping[str, Any]:
    somebody = (await world.sign_up()).user_id
    return {"conversation_id": await world.group(somebody), "user_id": somebody, "role": "moderator"}


about_a_group("MessagingService/SendMessage", MEMBERS, content="aGVsbG8=")
about_a_group("MessagingService/GetMessages", MEMBERS)
about_a_group("MessagingService/MarkDelivered", MEMBERS, seq=1)
about_a_group("MessagingService/MarkRead", MEMBERS)
about_a_group("MessagingService/GetConversationStats", MEMBERS | SERVICE)
