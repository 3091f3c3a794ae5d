"""ChatService's RPCs over the wire: what each does, and to whom it is refused."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conversations.kit import NOBODY, sign_up
from tests.services.chat.kit import ROOM_LIMITS, World, expect, refused
from tests.services.kit import as_, as_service
from whispr.errors import Code, WhisprError
from whispr.events import Event
from whispr.ids import new_id
from whispr.v1 import chat_pb2 as pb
from whispr.v1 import common_pb2, messaging_pb2, user_pb2
from whispr.v1.chat_pb2 import Room

MODERATOR = "/moderator"
TYPES = pb.SendRoomMessageRequest


# Rooms


async def test_a_room_is_opened_found_entered_and_left(world: World) -> None:
    """A room has the defaults of its type, is listed with a total, and knows who is in it."""
    owner, guest = await sign_up(world.db, 2)
    request = pb.CreateRoomRequest(name=" Tea ", description="about tea", slow_mode_seconds=5)
    made = (await world.chat.CreateRoom(request, metadata=as_(owner))).room
    assert (made.name, made.description, made.type, made.visibility) == (
        "Tea",
        "about tea",
        Room.PUBLIC,
        Room.OPEN,
    )
    assert (made.created_by, made.member_count, made.role, made.is_active) == (owner, 1, "owner", True)
    assert (made.slow_mode_seconds, made.member_limit, made.antispam) == (5, 50, True)
    listed = await world.chat.ListRooms(pb.ListRoomsRequest(), metadata=as_(guest))
    assert ([room.id for room in listed.rooms], listed.total) == ([made.id], 1)
    joined = await world.chat.JoinRoom(pb.JoinRoomRequest(room_id=made.id), metadata=as_(guest))
    assert (joined.member.user_id, joined.member.role, joined.room.member_count) == (guest, "member", 2)
    assert joined.member.username
    members = await world.chat.ListRoomMembers(
        pb.ListRoomMembersRequest(room_id=made.id), metadata=as_(guest)
    )
    assert {member.user_id for member in members.members} == {owner, guest}
    for _ in range(2):
        await world.chat.LeaveRoom(pb.LeaveRoomRequest(room_id=made.id), metadata=as_(guest))
    seen = (await world.chat.GetRoomInfo(pb.GetRoomInfoRequest(room_id=made.id), metadata=as_(guest))).room
    assert (seen.member_count, seen.role, seen.last_seq) == (1, "", 0)


async def test_types_of_rooms_take_the_permissions_of_the_role(world: World) -> None:
    """Anybody opens public and private rooms; premium ones take a premium role, to open and to enter."""
    owner, guest = await sign_up(world.db, 2)
    private = pb.CreateRoomRequest(name="x", type=Room.PRIVATE)
    assert (await world.chat.CreateRoom(private, metadata=as_(owner))).room.visibility == Room.INVITE_ONLY
    premium = pb.CreateRoomRequest(name="x", type=Room.PREMIUM)
    error = await refused(world.chat.CreateRoom(premium, metadata=as_(owner)))
    assert (error.code, error.facts["permission"]) == (Code.PERMISSION_DENIED, "room:create_premium")
    made = (await world.chat.CreateRoom(premium, metadata=as_(f"{owner}/premium"))).room
    join = pb.JoinRoomRequest(room_id=made.id)
    assert (await refused(world.chat.JoinRoom(join, metadata=as_(guest)))).reason == "premium_required"
    await world.chat.JoinRoom(join, metadata=as_(f"{guest}/premium"))


async def test_a_direct_room_is_the_direct_conversation(world: World) -> None:
    """A DIRECT room is the one conversation that MessagingService has for the pair."""
    one, other, stranger = await sign_up(world.db, 3)
    request = pb.CreateRoomRequest(type=Room.DIRECT, member_ids=[other])
    made = (await world.chat.CreateRoom(request, metadata=as_(one))).room
    assert (made.type, made.visibility, made.member_count) == (Room.DIRECT, Room.HIDDEN, 2)
    create = messaging_pb2.CreateConversationRequest(kind="direct", member_ids=[one])
    same = await world.messaging.CreateConversation(create, metadata=as_(other))
    assert (same.conversation.id, same.created) == (made.id, False)
    info = pb.GetRoomInfoRequest(room_id=made.id)
    assert (await refused(world.chat.GetRoomInfo(info, metadata=as_(stranger)))).code is Code.NOT_FOUND
    leave = pb.LeaveRoomRequest(room_id=made.id)
    assert (await refused(world.chat.LeaveRoom(leave, metadata=as_(one)))).code is Code.PERMISSION_DENIED
    for wrong in (
        pb.CreateRoomRequest(type=Room.DIRECT),
        pb.CreateRoomRequest(type=Room.DIRECT, member_ids=[other], name="x"),
        pb.CreateRoomRequest(type=Room.DIRECT, member_ids=[other], visibility=Room.OPEN),
    ):
        assert (await refused(world.chat.CreateRoom(wrong, metadata=as_(one)))).code is Code.INVALID_ARGUMENT


async def test_rooms_are_changed_and_closed(world: World) -> None:
    """UpdateRoom changes what is given alone; a closed room refuses messages and people."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    update = pb.UpdateRoomRequest(room_id=room_id, visibility=Room.HIDDEN, slow_mode_seconds=9)
    changed = (await world.chat.UpdateRoom(update, metadata=as_(owner))).room
    assert (changed.name, changed.visibility, changed.slow_mode_seconds) == ("a room", Room.HIDDEN, 9)
    refusal = await refused(world.chat.UpdateRoom(update, metadata=as_(member)))
    assert refusal.code is Code.PERMISSION_DENIED
    close = pb.CloseRoomRequest(room_id=room_id, reason="done")
    assert (await refused(world.chat.CloseRoom(close, metadata=as_(member)))).code is Code.PERMISSION_DENIED
    await world.chat.CloseRoom(close, metadata=as_(owner))
    error = await refused(world.say(room_id, owner))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "room_closed")
    history = pb.GetMessageHistoryRequest(room_id=room_id)
    assert list((await world.chat.GetMessageHistory(history, metadata=as_(member))).messages) == []


async def test_people_are_invited_by_name_and_by_code(world: World) -> None:
    """An invitation or a code opens a private room; the invited hear of it, and blocks are respected."""
    owner, guest, other, foe = await sign_up(world.db, 4)
    request = pb.CreateRoomRequest(name="x", type=Room.PRIVATE, member_ids=[guest])
    async with world.server.connect(guest) as phoenix:
        own = await phoenix.join(f"user:{guest}")
        room_id = (await world.chat.CreateRoom(request, metadata=as_(owner))).room.id
        assert (await expect(own, "conversation_invitation"))["conversation_id"] == room_id
    await world.chat.JoinRoom(pb.JoinRoomRequest(room_id=room_id), metadata=as_(guest))
    join = pb.JoinRoomRequest(room_id=room_id)
    assert (await refused(world.chat.JoinRoom(join, metadata=as_(other)))).reason == "invitation_required"
    code = pb.InviteUserRequest(room_id=room_id, uses_max=1)
    assert (await refused(world.chat.InviteUser(code, metadata=as_(guest)))).code is Code.PERMISSION_DENIED
    invitation = (await world.chat.InviteUser(code, metadata=as_(owner))).invitation
    wrong = pb.JoinRoomRequest(room_id=room_id, invite_code="wrong")
    assert (await refused(world.chat.JoinRoom(wrong, metadata=as_(other)))).reason == "invitation_required"
    await world.chat.JoinRoom(
        pb.JoinRoomRequest(room_id=room_id, invite_code=invitation.code), metadata=as_(other)
    )
    await world.users.BlockUser(user_pb2.BlockUserRequest(user_id=owner), metadata=as_(foe))
    blocked = pb.InviteUserRequest(room_id=room_id, user_id=foe)
    assert (await refused(world.chat.InviteUser(blocked, metadata=as_(owner)))).code is Code.PERMISSION_DENIED
    again = pb.InviteUserRequest(room_id=room_id, user_id=NOBODY)
    assert (await refused(world.chat.InviteUser(again, metadata=as_(owner)))).code is Code.NOT_FOUND
    code = pb.InviteUserRequest(room_id=room_id, expires_in_seconds=60)
    kept = (await world.chat.InviteUser(code, metadata=as_(owner))).invitation
    listing = pb.ListInvitationsRequest(room_id=room_id)
    found = (await world.chat.ListInvitations(listing, metadata=as_(owner))).invitations
    assert [each.id for each in found] == [kept.id]
    revoke = pb.RevokeInvitationRequest(room_id=room_id, invitation_id=kept.id)
    await world.chat.RevokeInvitation(revoke, metadata=as_(owner))
    assert not (await world.chat.ListInvitations(listing, metadata=as_(owner))).invitations


# Messages


async def test_messages_of_a_room_are_conversation_messages(world: World) -> None:
    """What ChatService writes MessagingService counts; history goes back from a message."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    sent = [await world.say(room_id, owner, f"m{n}") for n in range(5)]
    assert [message.seq for message in sent] == [1, 2, 3, 4, 5]
    stats = messaging_pb2.GetConversationStatsRequest(conversation_id=room_id)
    counted = (await world.messaging.GetConversationStats(stats, metadata=as_(member))).stats
    assert (counted["message_count"], counted["unread_count"]) == (5, 5)

    async def history(**fields: Any) -> tuple[list[bytes], bool]:
        request = pb.GetMessageHistoryRequest(room_id=room_id, **fields)
        page = await world.chat.GetMessageHistory(request, metadata=as_(member))
        return [message.content for message in page.messages], page.has_more

    assert await history(limit=2) == ([b"m3", b"m4"], True)
    assert await history(limit=2, before_id=sent[3].id) == ([b"m1", b"m2"], True)
    assert await history(limit=2, before_id=sent[1].id) == ([b"m0"], False)
    assert await history(before_id=sent[0].id) == ([], False)
    with pytest.raises(WhisprError, match="no such message"):
        await history(before_id=NOBODY)
    again = await world.say(room_id, owner, "once", client_id="c")
    assert (await world.say(room_id, owner, "once", client_id="c")).id == again.id
    assert (await refused(world.say(room_id, owner, "twice", client_id="c"))).reason == "duplicate_mismatch"
    reply = await world.say(room_id, member, "yes", reply_to=again.id)
    assert reply.reply_to_id == again.id


async def test_types_of_messages(world: World) -> None:
    """Media carry what they are; system messages are for services; unknown types are named."""
    owner = (await sign_up(world.db, 1))[0]
    room_id = await world.room(owner)
    for kind, medium in (
        (TYPES.IMAGE, "image"),
        (TYPES.FILE, "file"),
        (TYPES.AUDIO, "audio"),
        (TYPES.VIDEO, "video"),
    ):
        message = await world.say(room_id, owner, "", type=kind, metadata={"a": "b"})
        assert (message.message_type, dict(message.metadata)) == ("media", {"a": "b", "media_type": medium})
    assert (await world.say(room_id, owner, type=TYPES.TEXT)).message_type == "text"
    error = await refused(world.say(room_id, owner, type=TYPES.SYSTEM))
    assert error.code is Code.PERMISSION_DENIED
    system = pb.SendRoomMessageRequest(room_id=room_id, content=b"hi", type=TYPES.SYSTEM)
    by_service = await world.chat.SendMessage(system, metadata=as_service(owner))
    assert by_service.message.message_type == "system"
    assert "type" in (await refused(world.say(room_id, owner, type=99))).fields


async def test_direct_messages(world: World) -> None:
    """Direct messages open the one direct conversation, keep to blocks, and page backwards."""
    one, other, foe = await sign_up(world.db, 3)

    def to(recipient: str, text: str) -> pb.SendDirectMessageRequest:
        return pb.SendDirectMessageRequest(recipient_id=recipient, content=text.encode())

    nothing = pb.GetDirectMessagesRequest(other_user_id=one)
    assert not (await world.chat.GetDirectMessages(nothing, metadata=as_(other))).messages
    sent = [
        (await world.chat.SendDirectMessage(to(other, f"{n}"), metadata=as_(one))).message for n in range(3)
    ]
    assert len({message.conversation_id for message in sent}) == 1
    back = (await world.chat.SendDirectMessage(to(one, "hi"), metadata=as_(other))).message
    assert (back.conversation_id, back.seq) == (sent[0].conversation_id, 4)
    page = pb.GetDirectMessagesRequest(other_user_id=one, limit=2, before_id=back.id)
    found = await world.chat.GetDirectMessages(page, metadata=as_(other))
    assert ([message.content for message in found.messages], found.has_more) == ([b"1", b"2"], True)
    for wrong, code in ((one, Code.INVALID_ARGUMENT), (NOBODY, Code.NOT_FOUND), ("x", Code.INVALID_ARGUMENT)):
        assert (await refused(world.chat.SendDirectMessage(to(wrong, "x"), metadata=as_(one)))).code is code
    as_path = pb.SendDirectMessageRequest(other_user_id=other, content=b"by path")
    assert (await world.chat.SendDirectMessage(as_path, metadata=as_(one))).message.seq == 5
    as_path.recipient_id = foe
    error = await refused(world.chat.SendDirectMessage(as_path, metadata=as_(one)))
    assert list(error.fields) == ["recipient_id"]
    await world.users.BlockUser(user_pb2.BlockUserRequest(user_id=one), metadata=as_(other))
    await world.users.BlockUser(user_pb2.BlockUserRequest(user_id=one), metadata=as_(foe))
    for recipient in (other, foe):
        error = await refused(world.chat.SendDirectMessage(to(recipient, "x"), metadata=as_(one)))
        assert error.code is Code.PERMISSION_DENIED


async def test_messages_are_deleted_by_senders_and_moderators(world: World) -> None:
    """One's own go within their time, others' by a moderator of higher rank, who is in the audit log."""
    owner, member, other, stranger = await sign_up(world.db, 4)
    room_id = await world.room(owner, member, other)

    async def delete(message: Any, who: str, **fields: str) -> None:
        request = pb.DeleteRoomMessageRequest(message_id=message.id, **fields)
        await world.chat.DeleteMessage(request, metadata=as_(who))

    mine, theirs = await world.say(room_id, member), await world.say(room_id, member)
    assert (await refused(delete(mine, other))).code is Code.PERMISSION_DENIED
    assert (await refused(delete(mine, stranger))).code is Code.NOT_FOUND
    assert (await refused(delete(mine, member, room_id=NOBODY))).code is Code.NOT_FOUND
    await delete(mine, member, room_id=room_id)
    await delete(theirs, owner, reason="rude")
    history = pb.GetMessageHistoryRequest(room_id=room_id)
    messages = (await world.chat.GetMessageHistory(history, metadata=as_(other))).messages
    assert [(m.content, m.HasField("deleted_at")) for m in messages] == [(b"", True), (b"", True)]
    log = await world.chat.GetAuditLog(pb.GetAuditLogRequest(room_id=room_id), metadata=as_(owner))
    assert [(e.action, e.actor_id, e.target_id, e.reason) for e in log.entries] == [
        ("delete_message", owner, member, "rude")
    ]
    direct = pb.SendDirectMessageRequest(recipient_id=other, content=b"x")
    whispered = (await world.chat.SendDirectMessage(direct, metadata=as_(member))).message
    assert (await refused(delete(whispered, stranger))).code is Code.NOT_FOUND
    await delete(whispered, member)


# Moderation


async def test_sanctions_over_the_wire(world: World) -> None:
    """Mutes, bans and kicks say until when, act at once, are taken back, and are listed."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    mute = pb.MuteUserRequest(room_id=room_id, user_id=member, duration_seconds=60, reason="noise")
    until = (await world.chat.MuteUser(mute, metadata=as_(owner))).muted_until
    error = await refused(world.say(room_id, member))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "muted")
    assert error.facts["until"][:16] == until.ToDatetime().isoformat()[:16]
    members = await world.chat.ListRoomMembers(
        pb.ListRoomMembersRequest(room_id=room_id), metadata=as_(owner)
    )
    assert [m.muted_until for m in members.members if m.user_id == member] == [until]
    await world.chat.UnmuteUser(pb.UnmuteUserRequest(room_id=room_id, user_id=member), metadata=as_(owner))
    await world.say(room_id, member)
    for_good = pb.MuteUserRequest(room_id=room_id, user_id=member)
    assert (await world.chat.MuteUser(for_good, metadata=as_(owner))).muted_until.ToDatetime().year == 9999
    await world.chat.KickUser(pb.KickUserRequest(room_id=room_id, user_id=member), metadata=as_(owner))
    assert (await refused(world.say(room_id, member))).reason == "not_a_member"
    await world.chat.JoinRoom(pb.JoinRoomRequest(room_id=room_id), metadata=as_(member))
    ban = pb.BanUserRequest(room_id=room_id, user_id=member, reason="rude", duration_seconds=3600)
    banned = (await world.chat.BanUser(ban, metadata=as_(owner))).banned_until
    error = await refused(world.chat.JoinRoom(pb.JoinRoomRequest(room_id=room_id), metadata=as_(member)))
    assert (error.reason, error.facts["until"][:16]) == ("banned", banned.ToDatetime().isoformat()[:16])
    bans = (await world.chat.ListBans(pb.ListBansRequest(room_id=room_id), metadata=as_(owner))).bans
    assert [(b.user_id, b.banned_by, b.reason) for b in bans] == [(member, owner, "rude")]
    await world.chat.UnbanUser(pb.UnbanUserRequest(room_id=room_id, user_id=member), metadata=as_(owner))
    await world.chat.JoinRoom(pb.JoinRoomRequest(room_id=room_id), metadata=as_(member))
    for wrong in (
        world.chat.MuteUser(
            pb.MuteUserRequest(room_id=room_id, user_id=member, duration_seconds=-1), metadata=as_(owner)
        ),
        world.chat.BanUser(
            pb.BanUserRequest(room_id=room_id, user_id=member, reason="x" * 501), metadata=as_(owner)
        ),
        world.chat.KickUser(pb.KickUserRequest(room_id=room_id, user_id="x"), metadata=as_(owner)),
    ):
        assert (await refused(wrong)).code is Code.INVALID_ARGUMENT


async def test_messages_are_reported_reviewed_and_moderated(world: World) -> None:
    """Reports flag and hide; moderators see what waits, act, and have it in the log."""
    owner, member, one, other = await sign_up(world.db, 4)
    room_id = await world.room(owner, member, one, other)
    message = await world.say(room_id, member, "rude")
    report = pb.ReportMessageRequest(message_id=message.id, reason="rude")
    first = await world.chat.ReportMessage(report, metadata=as_(one))
    second = await world.chat.ReportMessage(report, metadata=as_(other))
    assert [(r.flagged, r.hidden) for r in (first, second)] == [(True, False), (True, True)]
    listing = pb.ListFlaggedMessagesRequest(room_id=room_id)
    [flagged] = (await world.chat.ListFlaggedMessages(listing, metadata=as_(owner))).messages
    assert (flagged.message.content, flagged.reports, flagged.hidden) == (b"rude", 2, True)
    everywhere = pb.ListFlaggedMessagesRequest()
    assert (await refused(world.chat.ListFlaggedMessages(everywhere, metadata=as_(owner)))).code is (
        Code.PERMISSION_DENIED
    )
    [found] = (await world.chat.ListFlaggedMessages(everywhere, metadata=as_(other + MODERATOR))).messages
    assert (found.message.id, found.conversation_kind, bool(found.conversation_name)) == (
        message.id,
        "room",
        True,
    )
    edit = messaging_pb2.EditMessageRequest(conversation_id=room_id, message_id=message.id, content=b"nice")
    assert (await refused(world.messaging.EditMessage(edit, metadata=as_(member)))).reason == "not_editable"

    async def moderate(action: pb.ModerateMessageRequest.Action, **fields: Any) -> messaging_pb2.Message:
        request = pb.ModerateMessageRequest(message_id=message.id, action=action, reason="why", **fields)
        return (await world.chat.ModerateMessage(request, metadata=as_(owner))).message

    actions = pb.ModerateMessageRequest
    assert (await moderate(actions.RESTORE)).content == b"rude"
    assert (await moderate(actions.EDIT, content=b"****")).content == b"****"
    assert "content" in (await refused(moderate(actions.EDIT))).fields
    assert "action" in (await refused(moderate(actions.ACTION_UNSPECIFIED))).fields
    await moderate(actions.WARN)
    await moderate(actions.FLAG)
    assert (await moderate(actions.DELETE)).HasField("deleted_at")
    log = pb.GetAuditLogRequest(room_id=room_id, target_id=member, page_size=3)
    page = await world.chat.GetAuditLog(log, metadata=as_(owner))
    assert [entry.action for entry in page.entries] == ["delete_message", "flag_message", "warn"]
    log.page_token = page.next_page_token
    page = await world.chat.GetAuditLog(log, metadata=as_(owner))
    assert [entry.action for entry in page.entries] == ["edit_message", "restore_message", "hide_message"]


async def test_platform_moderators_moderate_any_room(world: World) -> None:
    """Who has chat:moderate reads, moderates and sanctions in rooms, and not in direct conversations."""
    owner, other, judge = await sign_up(world.db, 3)
    room_id = await world.room(owner, type=Room.PRIVATE, visibility=Room.HIDDEN)
    message = await world.say(room_id, owner, "bad")
    by = as_(judge + MODERATOR)
    history = pb.GetMessageHistoryRequest(room_id=room_id)
    assert [m.content for m in (await world.chat.GetMessageHistory(history, metadata=by)).messages] == [
        b"bad"
    ]
    assert (await refused(world.chat.GetMessageHistory(history, metadata=as_(judge)))).code is Code.NOT_FOUND
    warn = pb.ModerateMessageRequest(message_id=message.id, action=pb.ModerateMessageRequest.WARN)
    await world.chat.ModerateMessage(warn, metadata=by)
    await world.chat.MuteUser(pb.MuteUserRequest(room_id=room_id, user_id=owner), metadata=by)
    assert (await world.chat.GetAuditLog(pb.GetAuditLogRequest(room_id=room_id), metadata=by)).entries
    await world.chat.UpdateRoom(pb.UpdateRoomRequest(room_id=room_id, name="calm"), metadata=by)
    direct = pb.SendDirectMessageRequest(recipient_id=other, content=b"x")
    whispered = (await world.chat.SendDirectMessage(direct, metadata=as_(owner))).message
    for call in (
        world.chat.GetMessageHistory(
            pb.GetMessageHistoryRequest(room_id=whispered.conversation_id), metadata=by
        ),
        world.chat.MuteUser(
            pb.MuteUserRequest(room_id=whispered.conversation_id, user_id=owner), metadata=by
        ),
        world.chat.ModerateMessage(
            pb.ModerateMessageRequest(message_id=whispered.id, action="DELETE"), metadata=by
        ),
    ):
        assert (await refused(call)).code is Code.NOT_FOUND


# Who may call what


STRANGER_IN_HIDDEN: dict[str, Callable[[str, str, str], Any]] = {
    "JoinRoom": lambda room, _, __: pb.JoinRoomRequest(room_id=room),
    "LeaveRoom": lambda room, _, __: pb.LeaveRoomRequest(room_id=room),
    "GetRoomInfo": lambda room, _, __: pb.GetRoomInfoRequest(room_id=room),
    "UpdateRoom": lambda room, _, __: pb.UpdateRoomRequest(room_id=room, name="x"),
    "CloseRoom": lambda room, _, __: pb.CloseRoomRequest(room_id=room),
    "SendMessage": lambda room, _, __: pb.SendRoomMessageRequest(room_id=room, content=b"x"),
    "GetMessageHistory": lambda room, _, __: pb.GetMessageHistoryRequest(room_id=room),
    "DeleteMessage": lambda room, _, message: pb.DeleteRoomMessageRequest(room_id=room, message_id=message),
    "ListRoomMembers": lambda room, _, __: pb.ListRoomMembersRequest(room_id=room),
    "SetMemberRole": lambda room, user, _: pb.SetRoomMemberRoleRequest(
        room_id=room, user_id=user, role="member"
    ),
    "InviteUser": lambda room, user, _: pb.InviteUserRequest(room_id=room, user_id=user),
    "ListInvitations": lambda room, _, __: pb.ListInvitationsRequest(room_id=room),
    "RevokeInvitation": lambda room, user, _: pb.RevokeInvitationRequest(room_id=room, invitation_id=user),
    "MuteUser": lambda room, user, _: pb.MuteUserRequest(room_id=room, user_id=user),
    "UnmuteUser": lambda room, user, _: pb.UnmuteUserRequest(room_id=room, user_id=user),
    "BanUser": lambda room, user, _: pb.BanUserRequest(room_id=room, user_id=user),
    "UnbanUser": lambda room, user, _: pb.UnbanUserRequest(room_id=room, user_id=user),
    "KickUser": lambda room, user, _: pb.KickUserRequest(room_id=room, user_id=user),
    "ListBans": lambda room, _, __: pb.ListBansRequest(room_id=room),
    "ModerateMessage": lambda _, __, message: pb.ModerateMessageRequest(message_id=message, action="WARN"),
    "ReportMessage": lambda _, __, message: pb.ReportMessageRequest(message_id=message),
    "ListFlaggedMessages": lambda room, _, __: pb.ListFlaggedMessagesRequest(room_id=room),
    "GetAuditLog": lambda room, _, __: pb.GetAuditLogRequest(room_id=room),
    "GetRoomStats": lambda room, _, __: pb.GetRoomStatsRequest(room_id=room),
}
"""RPCs about one room, which a stranger to a hidden one must not be able to tell from no room at all."""
OTHERS = {
    "CreateRoom": pb.CreateRoomRequest(name="x"),
    "ListRooms": pb.ListRoomsRequest(),
    "SendDirectMessage": pb.SendDirectMessageRequest(recipient_id=NOBODY, content=b"x"),
    "GetDirectMessages": pb.GetDirectMessagesRequest(other_user_id=NOBODY),
    "GetUserActivity": pb.GetUserActivityRequest(),
}
FOR_SERVICES = {"GetRoomInfo", "ListRooms", "GetRoomStats"}
"""RPCs that a service may call for nobody."""
STREAMS = {"SubscribeRoomEvents", "ExportUserData"}


def test_every_rpc_is_in_a_table() -> None:
    """A new RPC without a row here fails."""
    service = pb.DESCRIPTOR.services_by_name["ChatService"]
    assert {method.name for method in service.methods} == {*STRANGER_IN_HIDDEN, *OTHERS, *STREAMS}


async def first(stream: Any) -> Any:
    """Return the first of a stream."""
    async with stream as call:
        return await anext(call)


async def test_who_may_not_is_refused_everywhere(world: World) -> None:
    """Nobody without a token or a person is let in; to strangers a hidden room is as none, in every RPC."""
    owner, stranger = await sign_up(world.db, 2)
    room_id = await world.room(owner, type=Room.PRIVATE, visibility=Room.HIDDEN)
    message = await world.say(room_id, owner)
    calls = {name: make(room_id, owner, message.id) for name, make in STRANGER_IN_HIDDEN.items()}
    for name, request in (calls | OTHERS).items():
        method = getattr(world.chat, name)
        assert (await refused(method(request))).code is Code.UNAUTHENTICATED, name
        if name not in FOR_SERVICES:
            assert (await refused(method(request, metadata=as_service()))).code is Code.PERMISSION_DENIED, (
                name
            )
    for name, request in calls.items():
        error = await refused(getattr(world.chat, name)(request, metadata=as_(stranger)))
        assert error.code is Code.NOT_FOUND, f"{name}: {error}"
        bare = STRANGER_IN_HIDDEN[name](new_id(), owner, new_id())
        absent = await refused(getattr(world.chat, name)(bare, metadata=as_(stranger)))
        assert absent.code is Code.NOT_FOUND, f"{name}: {absent}"
    subscribe = pb.SubscribeRoomEventsRequest(room_id=room_id)
    stream = first(world.chat.SubscribeRoomEvents(subscribe, metadata=as_(stranger)))
    assert (await refused(stream)).code is Code.NOT_FOUND
    for who in (as_(owner), as_(owner + MODERATOR)):
        request = common_pb2.ExportUserDataRequest(user_id=owner)
        export = first(world.chat.ExportUserData(request, metadata=who))
        assert (await refused(export)).code is Code.PERMISSION_DENIED


async def test_plain_members_moderate_nothing(world: World) -> None:
    """Every RPC of moderation and administration is refused to a member, and to outsiders of a listed room."""
    owner, member, outsider = await sign_up(world.db, 3)
    room_id = await world.room(owner, member)
    message = await world.say(room_id, owner)
    denied = (
        "UpdateRoom", "CloseRoom", "SetMemberRole", "MuteUser", "UnmuteUser", "BanUser", "UnbanUser",
        "KickUser", "ListBans", "ModerateMessage", "ListFlaggedMessages", "GetAuditLog",
    )  # fmt: skip
    for name in denied:
        request = STRANGER_IN_HIDDEN[name](room_id, owner, message.id)
        for who in (member, outsider):
            error = await refused(getattr(world.chat, name)(request, metadata=as_(who)))
            expected = (
                {Code.PERMISSION_DENIED, Code.NOT_FOUND} if who == outsider else {Code.PERMISSION_DENIED}
            )
            assert error.code in expected, f"{name}: {error}"
    for name in ("SendMessage", "GetMessageHistory", "ListRoomMembers", "GetRoomStats", "InviteUser"):
        request = STRANGER_IN_HIDDEN[name](room_id, member, message.id)
        error = await refused(getattr(world.chat, name)(request, metadata=as_(outsider)))
        assert error.reason == "not_a_member", name


async def test_services_act_as_the_person_they_name(world: World) -> None:
    """A service may for a person what that person may, and not moderate for them."""
    owner, other = await sign_up(world.db, 2)
    room_id = await world.room(owner)
    await world.chat.JoinRoom(pb.JoinRoomRequest(room_id=room_id), metadata=as_service(other))
    ban = pb.BanUserRequest(room_id=room_id, user_id=owner)
    assert (await refused(world.chat.BanUser(ban, metadata=as_service(other)))).code is Code.PERMISSION_DENIED


# Figures and personal data


async def test_figures_of_rooms_and_people(world: World) -> None:
    """Counts are right at once, before and after they are derived; only those concerned may ask."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    for n in range(3):
        await world.say(room_id, owner, str(n))
    direct = pb.SendDirectMessageRequest(recipient_id=member, content=b"x")
    latest = (await world.chat.SendDirectMessage(direct, metadata=as_(owner))).message
    stats = await world.chat.GetRoomStats(pb.GetRoomStatsRequest(room_id=room_id), metadata=as_(member))
    assert (stats.total_members, stats.total_messages, stats.messages_today) == (2, 3, 3)
    assert list(stats.active_users) == [owner]
    own = pb.GetUserActivityRequest(user_id="me")
    for _ in range(2):
        found = await world.chat.GetUserActivity(own, metadata=as_(owner))
        assert (found.rooms_joined, found.messages_sent, found.user_id) == (1, 4, owner)
        assert found.last_activity == latest.sent_at
        assert (found.is_online, found.current_status) == (False, "offline")
        await world.db.execute("SELECT conversations.count_sent(id) FROM conversations.conversations")
    theirs = pb.GetUserActivityRequest(user_id=owner)
    error = await refused(world.chat.GetUserActivity(theirs, metadata=as_(member)))
    assert error.code is Code.PERMISSION_DENIED
    for allowed in (as_(member + MODERATOR), as_service()):
        assert (await world.chat.GetUserActivity(theirs, metadata=allowed)).messages_sent == 4


async def test_counts_follow_events_and_sweeps(world: World) -> None:
    """Events of messages, repeated and late ones too, and sweeps bring the counts to what was sent."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    activity, counted = world.service.consumers[0], "SELECT sum(messages_sent) FROM conversations.sent_counts"

    def event(message: messaging_pb2.Message) -> Event:
        data = {"conversation_id": message.conversation_id, "seq": message.seq}
        return Event(id=message.id, type="message_sent", source="chat", subject=room_id, time=now, data=data)

    sent = [await world.say(room_id, who, str(n)) for n, who in enumerate((owner, member, owner))]
    now = sent[0].sent_at.ToDatetime()
    for message in (sent[0], sent[0], sent[2], sent[1]):
        await activity.handle(event(message))
        assert await world.db.fetchval(counted) == 3
    await world.say(room_id, member)
    assert await world.service._activity.sweep() == 1
    assert await world.db.fetchval(counted) == 4
    assert activity.reset is not None
    async with world.db.transaction() as tx:
        await activity.reset(tx)
    await activity.handle(event(sent[0]))
    assert await world.db.fetchval(counted) == 4
    another = await world.room(member, owner)
    there = [await world.say(another, who) for who in (owner, member, owner)]
    assert activity.handle_many is not None
    for _ in range(2):
        await activity.handle_many([event(message) for message in (there[2], sent[0], there[0])])
        rows = await world.db.fetch("SELECT user_id, messages_sent FROM conversations.sent_counts")
        assert {str(row["user_id"]): row["messages_sent"] for row in rows} == {owner: 4, member: 3}


async def test_what_is_held_of_a_person_is_handed_over_and_erased(world: World) -> None:
    """An export holds rooms, invitations, reports and sanctions; a deleted account leaves its rooms, and no trace."""
    owner, member, other = await sign_up(world.db, 3)
    room_id = await world.room(owner, member)
    lonely = await world.room(member)
    message = await world.say(room_id, owner)
    await world.chat.ReportMessage(pb.ReportMessageRequest(message_id=message.id), metadata=as_(member))
    await world.chat.InviteUser(pb.InviteUserRequest(room_id=room_id, user_id=other), metadata=as_(member))
    mute = pb.MuteUserRequest(room_id=room_id, user_id=member, duration_seconds=60)
    await world.chat.MuteUser(mute, metadata=as_(owner))
    await world.db.execute("SELECT conversations.count_sent($1)", room_id)

    async def export(user_id: str) -> list[str]:
        request = common_pb2.ExportUserDataRequest(user_id=user_id)
        async with world.chat.ExportUserData(request, metadata=as_service()) as call:
            records = [each async for each in call]
        assert {record.source for record in records} <= {"chat"}
        return sorted(record.kind for record in records)

    assert await export(member) == ["invitation", "moderation", "report", "room", "room"]
    assert await export(owner) == ["activity", "moderation", "moderation", "room"]
    # Messaging, which hears of it too, may have been first to take a seat away.
    await world.db.execute(
        "UPDATE conversations.members SET left_at = now() WHERE conversation_id = $1", lonely
    )
    await world.db.execute("UPDATE conversations.conversations SET member_count = 0 WHERE id = $1", lonely)
    gone = Event(
        id=new_id(), type="account_deleted", source="user", subject=member, time=message.sent_at.ToDatetime()
    )
    for _ in range(2):
        await world.service.consumers[1].handle(gone)
    assert await export(member) == ["moderation", "room", "room"]
    seen = await world.chat.GetRoomInfo(pb.GetRoomInfoRequest(room_id=room_id), metadata=as_(owner))
    assert seen.room.member_count == 1
    assert (
        await world.db.fetchval("SELECT is_active FROM conversations.conversations WHERE id = $1", lonely)
        is False
    )


async def test_rates_are_limited(world: World) -> None:
    """Opening rooms and reporting are counted per person."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    message = await world.say(room_id, owner)
    calls: list[Awaitable[object]] = [
        world.chat.ReportMessage(pb.ReportMessageRequest(message_id=message.id), metadata=as_(member))
        for _ in range(31)
    ]
    for call in calls[:30]:
        await call
    error = await refused(calls[30])
    assert (error.code, error.retry_after_s) == (Code.RESOURCE_EXHAUSTED, 1.5)
    opened = 1
    with pytest.raises(WhisprError) as caught:
        while opened <= ROOM_LIMITS.rooms_per_hour:
            await world.room(owner)
            opened += 1
    assert (caught.value.code, opened) == (Code.RESOURCE_EXHAUSTED, ROOM_LIMITS.rooms_per_hour)


async def test_whatever_is_asked_has_a_clear_answer(world: World) -> None:
    """Made-up tokens, codes with control characters and texts that no column holds are the caller's mistake."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, type=Room.PRIVATE)
    by = as_(owner)
    tokens = [
        base64.urlsafe_b64encode(text).decode() for text in (b'["x"]', b"[1e30]", b"[-1]", b'"a"', b"[]")
    ]
    for token in [*tokens, "%%%"]:
        fields: Any = {"room_id": room_id, "page_token": token}
        for call in (
            world.chat.ListRoomMembers(pb.ListRoomMembersRequest(**fields), metadata=by),
            world.chat.ListInvitations(pb.ListInvitationsRequest(**fields), metadata=by),
            world.chat.ListBans(pb.ListBansRequest(**fields), metadata=by),
            world.chat.ListFlaggedMessages(pb.ListFlaggedMessagesRequest(**fields), metadata=by),
            world.chat.GetAuditLog(pb.GetAuditLogRequest(**fields), metadata=by),
        ):
            assert "page_token" in (await refused(call)).fields
    join = pb.JoinRoomRequest(room_id=room_id, invite_code="a\0b")
    assert (await refused(world.chat.JoinRoom(join, metadata=as_(member)))).reason == "invitation_required"
    for wrong in (
        world.chat.CreateRoom(pb.CreateRoomRequest(name="a\0b"), metadata=by),
        world.chat.CreateRoom(pb.CreateRoomRequest(name="x", description="\0"), metadata=by),
        world.chat.CreateRoom(pb.CreateRoomRequest(name="x", slow_mode_seconds=-1), metadata=by),
        world.chat.ListRooms(pb.ListRoomsRequest(query="\0"), metadata=by),
        world.chat.ListRooms(pb.ListRoomsRequest(page=2**31 - 1, limit=100), metadata=by),
        world.chat.ListRooms(pb.ListRoomsRequest(limit=-1), metadata=by),
        world.chat.KickUser(pb.KickUserRequest(room_id=room_id, user_id=member, reason="\0"), metadata=by),
        world.chat.InviteUser(pb.InviteUserRequest(room_id=room_id, uses_max=-1), metadata=by),
        world.say(room_id, owner, "x", metadata={"a": "\0"}),
        world.say(room_id, owner, "x", reply_to="x"),
        world.say(room_id, owner, ""),
    ):
        assert (await refused(wrong)).code is Code.INVALID_ARGUMENT
