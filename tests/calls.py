"""Every RPC of the product: whom it is for, and how somebody asks about something of their own.

A row's `request` makes whatever the call needs, so that rows do not depend on one another. Groups and rooms are
the same for all callers of one RPC, who each find them as they need them: what one call deletes, the next one made
anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from tests.world import PASSWORD, PEOPLE, ROLES, World
from whispr.errors import Code

Request = Callable[[World, str], Awaitable[Mapping[str, Any]]]
"""Makes the request of somebody of that role, as proto3 JSON."""

SOON = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
ALL = frozenset(ROLES)
SIGNED_IN = frozenset(PEOPLE)
PEOPLE_AND_SERVICES = SIGNED_IN | {"service"}
MEMBERS = frozenset({"member", "moderator", "owner"})
MODERATORS = frozenset({"moderator", "owner"})
OWNER = frozenset({"owner"})
SERVICE = frozenset({"service"})
ADMIN = frozenset({"admin"})


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


def about_a_message(method: str, allowed: Collection[str], by: str = "member", **more: Any) -> None:
    """Enter an RPC that names a message in a group, sent by somebody of a role, and the rest of its request."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del role
        message = await world.message(await world.group(), by)
        return {"conversation_id": message.conversation_id, "message_id": message.id, **more}

    row(method, allowed)(make)


def about_a_room(method: str, allowed: Collection[str], *codes: Code, **more: Any) -> None:
    """Enter an RPC that names a room, and the rest of its request."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del role
        return {"room_id": await world.room(), **more}

    row(method, allowed, *codes)(make)


def about_a_stream(method: str, allowed: Collection[str], *codes: Code, **more: Any) -> None:
    """Enter an RPC that names a stream that runs, and the rest of its request."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del role
        return {"stream_id": await world.stream(), **more}

    row(method, allowed, *codes)(make)


def about_somebody_in_a_room(method: str, allowed: Collection[str], **more: Any) -> None:
    """Enter an RPC that names a room and a member of it, and the rest of its request."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del role
        somebody = await world.sign_up()
        return {"room_id": await world.room(somebody), "user_id": somebody.user_id, **more}

    row(method, allowed)(make)


def exports(service: str) -> None:
    """Enter a service's ExportUserData."""

    async def make(world: World, role: str) -> Mapping[str, Any]:
        del role
        return {"user_id": world.id("member")}

    row(f"{service}/ExportUserData", SERVICE)(make)


# AuthService


@row("AuthService/Register", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"username": f"new{uuid4().hex[:12]}", "password": PASSWORD}


@row("AuthService/Login", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"username": world.people["stranger"].username, "password": PASSWORD}


@row("AuthService/Refresh", ALL)
async def _(world: World, role: str) -> Mapping[str, Any]:
    body = {"username": f"new{uuid4().hex[:12]}", "password": PASSWORD}
    return {"refresh_token": (await world.call("AuthService/Register", body, "anonymous")).refresh_token}


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
same("AuthService/ListSessions", SIGNED_IN, {})
exports("AuthService")


@row("AuthService/RevokeSession", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    token = await world.new_token(role)
    own = await world.call_with("AuthService/ListSessions", {}, token) if role in PEOPLE else None
    current = next((s.session_id for s in own.sessions if s.current), "") if own else ""
    return {"session_id": current or world.people["member"].session_id}


@row("AuthService/RevokeToken", ADMIN | SERVICE)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"token": (await world.sign_up()).token, "reason": "test"}


same(
    "AuthService/ChangePassword",
    SIGNED_IN,
    {"current_password": "not the password", "new_password": PASSWORD},
    Code.UNAUTHENTICATED,
)


@row("AuthService/CheckPermissions", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id(role), "resource": "chat", "action": "read"}


same("AuthService/IssueServiceToken", ADMIN, {"service": "worker", "services": ["chat"]})


@row("AuthService/SetRole", ADMIN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id, "role": "premium"}


@row("AuthService/DeactivateUser", ADMIN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id, "reason": "test"}


@row("AuthService/ReactivateUser", ADMIN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id}


same("AuthService/DeleteAccount", SIGNED_IN, {"password": "not the password"}, Code.UNAUTHENTICATED)
same("AuthService/RequestDataExport", SIGNED_IN, {})


async def _an_export(world: World, role: str) -> Mapping[str, Any]:
    return {"export_id": (await world.call("AuthService/RequestDataExport", {}, "member")).export.id}


row("AuthService/GetDataExport", {"member", "admin"})(_an_export)
row("AuthService/GetDataExportPart", {"member", "admin"}, Code.FAILED_PRECONDITION)(_an_export)


@row("AuthService/SetDisplayName", SERVICE)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id("member"), "display_name": "Member"}


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
same("UserService/SearchUsers", SIGNED_IN, {"query": "person"})


@row("UserService/GetProfile", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id("member")}


same("UserService/UpdateProfile", SIGNED_IN, {"bio": "hello"})
same("UserService/ListContacts", SIGNED_IN, {})
exports("UserService")


@row("UserService/AddContact", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id}


@row("UserService/RemoveContact", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": (await world.sign_up()).user_id}


@row("UserService/CheckPresenceVisibility", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"viewer_id": world.id(role), "user_ids": [world.id("moderator")]}


@row("UserService/ListVisibleContacts", SERVICE)
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
about_a_message("MessagingService/GetMessage", MEMBERS)
about_a_message("MessagingService/EditMessage", {"member"}, content="ZWRpdGVk")
about_a_message("MessagingService/DeleteMessage", MEMBERS, for_everyone=True)
about_a_message("MessagingService/AddReaction", MEMBERS, emoji="👍")
about_a_message("MessagingService/RemoveReaction", MEMBERS, emoji="👍")
about_a_message("MessagingService/PinMessage", MODERATORS)
about_a_message("MessagingService/UnpinMessage", MODERATORS)
about_a_group("MessagingService/ListPins", MEMBERS)
about_a_group("MessagingService/SearchMessages", MEMBERS, query="hello")
about_a_group("MessagingService/ScheduleMessage", MEMBERS, content="aGVsbG8=", send_at=SOON)
same("MessagingService/ListScheduledMessages", SIGNED_IN, {})
about_a_group("MessagingService/SaveDraft", MEMBERS, content="aGVsbG8=")
about_a_group("MessagingService/GetDraft", MEMBERS)
about_a_group("MessagingService/ArchiveConversation", MEMBERS, archived=True)
about_a_group("MessagingService/MuteConversation", MEMBERS, muted=True)
same("MessagingService/MarkAllRead", SIGNED_IN, {})
same("MessagingService/Sync", SIGNED_IN, {})
about_a_group(
    "MessagingService/NotifyConversationEvent", SERVICE, event_type="settings_changed", metadata={"a": "b"}
)
exports("MessagingService")


@row("MessagingService/CancelScheduledMessage", {"member"})
async def _(world: World, role: str) -> Mapping[str, Any]:
    body = {"conversation_id": await world.group(), "content": "aGVsbG8=", "send_at": SOON}
    kept = await world.call("MessagingService/ScheduleMessage", body, "member")
    return {"scheduled_id": kept.scheduled.id}


@row("MessagingService/NotifyGroupCreation", SERVICE)
async def _(world: World, role: str) -> Mapping[str, Any]:
    people = {"creator_id": world.id("owner"), "member_ids": [world.id("member")]}
    return {"group_id": str(uuid4()), "group_name": "made elsewhere", **people}


@row("MessagingService/LinkMediaToMessage", {"member"} | SERVICE, Code.FAILED_PRECONDITION)
async def _(world: World, role: str) -> Mapping[str, Any]:
    message = await world.message(await world.group())
    return {"message_id": message.id, "media_id": await world.medium(), "media_type": "image"}


# ChatService

ROOM_MODERATORS = MODERATORS | ADMIN
"""Those of the room, and who may moderate everywhere."""

same("ChatService/CreateRoom", SIGNED_IN, {"name": "a room", "type": "PUBLIC", "visibility": "OPEN"})
about_a_room("ChatService/JoinRoom", SIGNED_IN)
about_a_room("ChatService/LeaveRoom", SIGNED_IN)
about_a_room("ChatService/GetRoomInfo", PEOPLE_AND_SERVICES)
same("ChatService/ListRooms", PEOPLE_AND_SERVICES, {})
about_a_room("ChatService/UpdateRoom", OWNER | ADMIN, description="another")


@row("ChatService/CloseRoom", OWNER | ADMIN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    world.renew()
    return {"room_id": await world.room()}


about_a_room("ChatService/SendMessage", MEMBERS, content="aGVsbG8=")
about_a_room("ChatService/GetMessageHistory", MEMBERS | ADMIN)
about_a_room("ChatService/ListRoomMembers", MEMBERS | ADMIN)
about_a_room("ChatService/InviteUser", MEMBERS)
about_a_room("ChatService/ListInvitations", MEMBERS | ADMIN)  # who is no moderator sees their own
about_somebody_in_a_room("ChatService/SetMemberRole", OWNER | ADMIN, role="moderator")
about_somebody_in_a_room("ChatService/MuteUser", ROOM_MODERATORS, duration_seconds=60, reason="test")
about_somebody_in_a_room("ChatService/UnmuteUser", ROOM_MODERATORS)
about_somebody_in_a_room("ChatService/BanUser", ROOM_MODERATORS, reason="test")
about_somebody_in_a_room("ChatService/UnbanUser", ROOM_MODERATORS)
about_somebody_in_a_room("ChatService/KickUser", ROOM_MODERATORS, reason="test")
about_a_room("ChatService/ListBans", ROOM_MODERATORS)
about_a_room("ChatService/ListFlaggedMessages", ROOM_MODERATORS)
about_a_room("ChatService/GetAuditLog", ROOM_MODERATORS)
about_a_room("ChatService/GetRoomStats", MEMBERS | ADMIN | SERVICE)
exports("ChatService")


@row("ChatService/DeleteMessage", {"member"} | ROOM_MODERATORS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    message = await world.room_message(await world.room())
    return {"room_id": message.conversation_id, "message_id": message.id}


@row("ChatService/SendDirectMessage", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"recipient_id": (await world.sign_up()).user_id, "content": "aGVsbG8="}


@row("ChatService/GetDirectMessages", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"other_user_id": (await world.sign_up()).user_id}


@row("ChatService/RevokeInvitation", ROOM_MODERATORS)  # and who made it, and the invited
async def _(world: World, role: str) -> Mapping[str, Any]:
    room = await world.room()
    invited = await world.call("ChatService/InviteUser", {"room_id": room})
    return {"room_id": room, "invitation_id": invited.invitation.id}


@row("ChatService/ModerateMessage", ROOM_MODERATORS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    message = await world.room_message(await world.room())
    return {"message_id": message.id, "action": "FLAG", "reason": "test"}


@row("ChatService/ReportMessage", MEMBERS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    message = await world.room_message(await world.room(), "owner" if role != "owner" else "member")
    return {"message_id": message.id, "reason": "test"}


@row("ChatService/GetUserActivity", {"member", "admin", "service"})
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"user_id": world.id("member")}


@row("ChatService/SubscribeRoomEvents", MEMBERS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    room = await world.room()
    await world.room_message(room)
    return {"room_id": room, "since_seq": 0}


# MediaService

A_FILE = {"filename": "a.png", "content_type": "image/png", "file_size": 100}
same("MediaService/CreateUpload", SIGNED_IN, A_FILE)
same("MediaService/ValidateMediaMetadata", SIGNED_IN, A_FILE)
same("MediaService/ListMedia", SIGNED_IN, {})
exports("MediaService")


@row("MediaService/GetMediaMetadata", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"media_id": await world.medium()}


@row("MediaService/GetDownloadUrl", {"member", "service"}, Code.FAILED_PRECONDITION)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"media_id": await world.medium()}


@row("MediaService/DeleteMedia", SIGNED_IN)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"media_id": await world.medium(role if role in PEOPLE else "member")}


@row("MediaService/ValidateMediaAccess", PEOPLE_AND_SERVICES)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"media_id": await world.medium(), "user_id": world.id(role), "access_type": "read"}


@row("MediaService/LinkMediaToMessage", SERVICE, Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION)
async def _(world: World, role: str) -> Mapping[str, Any]:
    message = await world.message(await world.group())
    return {
        "media_id": await world.medium(),
        "message_id": message.id,
        "conversation_id": message.conversation_id,
        "link_id": str(uuid4()),
    }


# NotificationService


async def _news(world: World) -> Mapping[str, Any]:
    message = await world.message(await world.group())
    return {
        "message_id": message.id,
        "conversation_id": message.conversation_id,
        "sender_id": world.id("member"),
        "recipient_ids": [world.id("owner")],
        "message_type": "text",
    }


@row("NotificationService/SendMessageNotification", SERVICE)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return await _news(world)


@row("NotificationService/SendBulkNotifications", SERVICE)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"notifications": [await _news(world)]}


@row("NotificationService/SendConversationNotification", SERVICE)
async def _(world: World, role: str) -> Mapping[str, Any]:
    people = {"actor_id": world.id("owner"), "recipient_ids": [world.id("member")]}
    return {"conversation_id": await world.group(), "event_type": "member_added", "title": "hello", **people}


same("NotificationService/MarkNotificationsAsRead", SIGNED_IN, {"notification_ids": [str(uuid4())]})
same("NotificationService/ListNotifications", SIGNED_IN, {})
same(
    "NotificationService/RegisterDevice",
    SIGNED_IN,
    {"platform": "fcm", "token": "a" * 100, "name": "phone"},
    Code.FAILED_PRECONDITION,
)
same("NotificationService/UnregisterDevice", SIGNED_IN, {"device_id": str(uuid4())}, Code.NOT_FOUND)
same("NotificationService/ListDevices", SIGNED_IN, {})
same("NotificationService/GetPushConfig", PEOPLE_AND_SERVICES, {})
same("NotificationService/GetPreferences", SIGNED_IN, {})
same("NotificationService/UpdatePreferences", SIGNED_IN, {"previews": False})
exports("NotificationService")

# StreamService

MAY_STREAM = OWNER | ADMIN
"""Whose role has stream:write."""
STREAM_MODERATORS = OWNER | ADMIN
"""The streamer, and who may moderate everywhere."""

same("StreamService/CreateStream", MAY_STREAM, {"title": "a stream", "category": "MUSIC"})
about_a_stream("StreamService/StartStream", OWNER)


@row("StreamService/StopStream", STREAM_MODERATORS)
async def _(world: World, role: str) -> Mapping[str, Any]:
    world.renew()
    return {"stream_id": await world.stream()}


about_a_stream("StreamService/PauseStream", OWNER)
about_a_stream("StreamService/ResumeStream", OWNER)
about_a_stream("StreamService/GetStreamInfo", PEOPLE_AND_SERVICES)
about_a_stream("StreamService/UpdateStream", OWNER, description="another")
about_a_stream("StreamService/RotateStreamKey", OWNER)
same("StreamService/ListActiveStreams", PEOPLE_AND_SERVICES, {})
same("StreamService/ListOwnStreams", SIGNED_IN, {})
about_a_stream("StreamService/JoinStream", SIGNED_IN)
about_a_stream("StreamService/LeaveStream", SIGNED_IN)
about_a_stream("StreamService/GetListeners", STREAM_MODERATORS)
about_a_stream("StreamService/RemoveListener", STREAM_MODERATORS, listener_id=str(uuid4()))
about_a_stream("StreamService/CreateListenUrl", OWNER)
about_a_stream("StreamService/ChangeQuality", SIGNED_IN, quality="LOW")
about_a_stream("StreamService/SetVolume", SIGNED_IN, volume=50)
about_a_stream("StreamService/GetAudioMetrics", PEOPLE_AND_SERVICES)
about_a_stream("StreamService/StartRecording", OWNER)
about_a_stream("StreamService/GetStreamAnalytics", STREAM_MODERATORS)
about_a_stream("StreamService/SubscribeToStreamEvents", SIGNED_IN)
same("StreamService/GetRecordings", SIGNED_IN, {})
same("StreamService/GetUserListeningHistory", SIGNED_IN, {})
exports("StreamService")


@row("StreamService/InviteListener", OWNER)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"stream_id": await world.stream(), "user_id": (await world.sign_up()).user_id}


@row("StreamService/UninviteListener", OWNER)
async def _(world: World, role: str) -> Mapping[str, Any]:
    return {"stream_id": await world.stream(), "user_id": world.id("member")}


async def _a_recording(world: World, role: str) -> Mapping[str, Any]:
    body = {"stream_id": await world.stream()}
    return {"recording_id": (await world.call("StreamService/StartRecording", body)).recording_id}


row("StreamService/StopRecording", OWNER)(_a_recording)
row("StreamService/DeleteRecording", STREAM_MODERATORS)(_a_recording)
