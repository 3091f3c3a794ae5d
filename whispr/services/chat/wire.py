"""The domain's values as the messages of chat.proto, and back."""

from __future__ import annotations

from whispr.conversations.domain import MessageType
from whispr.conversations.moderation import Action, Flagged
from whispr.conversations.protobuf import message_pb
from whispr.conversations.room_rows import AuditEntry, Ban, Invitation, RoomMember
from whispr.conversations.room_rules import MEDIA_TYPES, Room, RoomType, Visibility
from whispr.errors import invalid
from whispr.v1 import chat_pb2 as pb

_KIND = pb.SendRoomMessageRequest.Type
MEDIA_TYPE = "media_type"
"""The key in the metadata that says which medium a message is."""


def room_pb(room: Room, online_count: int) -> pb.Room:
    """Build `whispr.v1.Room`."""
    return pb.Room(
        id=room.id,
        name=room.name,
        description=room.description,
        type=room.type.value,
        visibility=room.visibility.value,
        created_by=room.created_by,
        created_at=room.created_at,
        member_count=room.member_count,
        online_count=online_count,
        is_active=room.is_active,
        slow_mode_seconds=room.slow_mode_s,
        member_limit=room.member_limit,
        antispam=room.antispam,
        role=room.role.value if room.role is not None else "",
        last_seq=room.last_seq,
    )


def member_pb(member: RoomMember, is_online: bool) -> pb.RoomMember:
    """Build `whispr.v1.RoomMember`."""
    return pb.RoomMember(
        user_id=member.user_id,
        username=member.username,
        role=member.role.value,
        joined_at=member.joined_at,
        is_online=is_online,
        last_seen=member.read_at,
        muted_until=member.muted_until,
    )


def invitation_pb(invitation: Invitation) -> pb.Invitation:
    """Build `whispr.v1.Invitation`."""
    return pb.Invitation(
        id=invitation.id,
        room_id=invitation.room_id,
        user_id=invitation.user_id,
        code=invitation.code,
        created_by=invitation.created_by,
        created_at=invitation.created_at,
        expires_at=invitation.expires_at,
        uses_max=invitation.uses_max,
        uses=invitation.uses,
    )


def ban_pb(ban: Ban) -> pb.Ban:
    """Build `whispr.v1.Ban`."""
    return pb.Ban(
        user_id=ban.user_id,
        banned_by=ban.banned_by,
        banned_at=ban.banned_at,
        banned_until=ban.until,
        reason=ban.reason,
    )


def audit_pb(entry: AuditEntry) -> pb.AuditEntry:
    """Build `whispr.v1.AuditEntry`."""
    return pb.AuditEntry(
        id=entry.id,
        room_id=entry.room_id,
        at=entry.at,
        actor_id=entry.actor_id,
        action=entry.action,
        target_id=entry.target_id,
        message_id=entry.message_id,
        reason=entry.reason,
        details=dict(entry.details),
    )


def flagged_pb(flagged: Flagged) -> pb.FlaggedMessage:
    """Build `whispr.v1.FlaggedMessage`."""
    return pb.FlaggedMessage(
        message=message_pb(flagged.message),
        reports=flagged.reports,
        reasons=flagged.reasons,
        hidden=flagged.hidden,
        flagged_at=flagged.flagged_at,
        conversation_kind=flagged.message.kind.value,
        conversation_name=flagged.conversation_name,
    )


def room_type_of(value: int) -> RoomType:
    """Read a room's type; PUBLIC when unspecified. Raises INVALID_ARGUMENT."""
    if value == pb.Room.TYPE_UNSPECIFIED:
        return RoomType.PUBLIC
    if value not in pb.Room.Type.values():
        raise invalid({"type": f"must be one of {', '.join(RoomType)}"})
    return RoomType(pb.Room.Type.Name(pb.Room.Type.ValueType(value)))


def visibility_of(value: int) -> Visibility | None:
    """Read a room's visibility; None when unspecified. Raises INVALID_ARGUMENT."""
    if value == pb.Room.VISIBILITY_UNSPECIFIED:
        return None
    if value not in pb.Room.Visibility.values():
        raise invalid({"visibility": f"must be one of {', '.join(Visibility)}"})
    return Visibility(pb.Room.Visibility.Name(pb.Room.Visibility.ValueType(value)))


def action_of(value: int) -> Action:
    """Read what is done to a message. Raises INVALID_ARGUMENT."""
    actions = pb.ModerateMessageRequest.Action
    if value == pb.ModerateMessageRequest.ACTION_UNSPECIFIED or value not in actions.values():
        raise invalid({"action": f"must be one of {', '.join(Action)}"})
    return Action(actions.Name(actions.ValueType(value)))


def message_type_of(value: int, metadata: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Read what a message is: its message_type, and its metadata with the medium. Raises INVALID_ARGUMENT."""
    if value in (pb.SendRoomMessageRequest.TYPE_UNSPECIFIED, pb.SendRoomMessageRequest.TEXT):
        return MessageType.TEXT.value, metadata
    if value == pb.SendRoomMessageRequest.SYSTEM:
        return MessageType.SYSTEM.value, metadata
    if value not in _KIND.values():
        names = [name for name in _KIND.keys() if name != "TYPE_UNSPECIFIED"]  # noqa: SIM118  # no mapping
        raise invalid({"type": f"must be one of {', '.join(names)}"})
    medium = MEDIA_TYPES[_KIND.Name(_KIND.ValueType(value))]
    return MessageType.MEDIA.value, {**metadata, MEDIA_TYPE: medium}
