"""RPCs about rooms and who is in them."""

from __future__ import annotations

from whispr.conversations import room_rules as rules
from whispr.conversations import seats
from whispr.conversations.domain import Role
from whispr.conversations.room_rules import Changes, Person, RoomType
from whispr.errors import invalid
from whispr.ids import parse_id
from whispr.services.chat import wire
from whispr.services.chat.caller import READ_ROOMS, allows, caller, caller_or_service, room, user
from whispr.services.chat.parts import Parts
from whispr.v1 import chat_pb2 as pb

HOUR_S = 3600.0


class RoomHandlers:
    """Opening, finding, entering and leaving rooms; invitations and roles."""

    _parts: Parts

    async def CreateRoom(self, input_message: pb.CreateRoomRequest) -> pb.CreateRoomResponse:
        """Open a room, or the direct conversation of a pair."""
        person = caller(READ_ROOMS)
        room_type = wire.room_type_of(input_message.type)
        visibility = wire.visibility_of(input_message.visibility)
        others = sorted(
            {parse_id(each, "member_ids") for each in input_message.member_ids} - {person.user_id}
        )
        if room_type is RoomType.DIRECT:
            rules.check_may_create(room_type, allows)
            rules.visibility_of(room_type, visibility)
            room_id = await self._open_direct(person, others, input_message)
        else:
            room_id = await self._open_room(person, room_type, others, input_message)
        return pb.CreateRoomResponse(room=await self._room(person, room_id))

    async def _open_direct(self, person: Person, others: list[str], wanted: pb.CreateRoomRequest) -> str:
        if len(others) != 1:
            raise invalid({"member_ids": "exactly one other person for a DIRECT room"})
        if wanted.name or wanted.description or wanted.slow_mode_seconds:
            raise invalid({"name": "a DIRECT room has neither name nor settings"})
        conversation, _ = await self._parts.core.operations.open_direct(person.user_id, others[0])
        return conversation.id

    async def _open_room(
        self, person: Person, room_type: RoomType, others: list[str], wanted: pb.CreateRoomRequest
    ) -> str:
        parts = self._parts
        if len(others) > rules.INVITED_AT_ONCE_MAX:
            raise invalid({"member_ids": f"at most {rules.INVITED_AT_ONCE_MAX} at once"})
        rules.check_may_create(room_type, allows)
        await seats.check_people(parts.core.db, others)
        for other in others:
            await parts.core.permissions.check_contact(person.user_id, other)
        await parts.core.limiter.take(f"rooms:{person.user_id}", parts.limits.rooms_per_hour, HOUR_S)
        made = await parts.rooms.create(
            person,
            allows,
            name=wanted.name,
            description=wanted.description,
            room_type=room_type,
            visibility=wire.visibility_of(wanted.visibility),
            slow_mode_s=wanted.slow_mode_seconds,
        )
        parts.core.permissions.forget(made.conversation_id)
        for other in others:
            await self._invite(person, made.conversation_id, other, 0)
        return made.conversation_id

    async def JoinRoom(self, input_message: pb.JoinRoomRequest) -> pb.JoinRoomResponse:
        """Enter a room."""
        person = caller(READ_ROOMS)
        room_id = room(input_message.room_id)
        entered = await self._parts.rooms.join(person, room_id, input_message.invite_code)
        self._parts.announcer.changed(entered.changes)
        [member] = await self._parts.members([entered.member])
        return pb.JoinRoomResponse(member=member, room=await self._room(person, room_id))

    async def LeaveRoom(self, input_message: pb.LeaveRoomRequest) -> pb.LeaveRoomResponse:
        """Leave a room."""
        changes = await self._parts.rooms.leave(caller(READ_ROOMS), room(input_message.room_id))
        self._parts.announcer.changed(changes)
        return pb.LeaveRoomResponse()

    async def GetRoomInfo(self, input_message: pb.GetRoomInfoRequest) -> pb.GetRoomInfoResponse:
        """Return a room to who may know of it."""
        return pb.GetRoomInfoResponse(
            room=await self._room(caller_or_service(READ_ROOMS), room(input_message.room_id))
        )

    async def ListRooms(self, input_message: pb.ListRoomsRequest) -> pb.ListRoomsResponse:
        """Return a page of rooms."""
        person = caller_or_service(READ_ROOMS)
        found, total = await self._parts.lists.rooms(
            person,
            wire.visibility_of(input_message.visibility),
            input_message.page,
            input_message.limit,
            input_message.query,
        )
        return pb.ListRoomsResponse(rooms=await self._parts.shown(found), total=total)

    async def UpdateRoom(self, input_message: pb.UpdateRoomRequest) -> pb.UpdateRoomResponse:
        """Change what is given of a room."""
        person = caller(READ_ROOMS)
        room_id = room(input_message.room_id)
        given = {
            name: getattr(input_message, name)
            for name in ("name", "description", "member_limit", "antispam")
            if input_message.HasField(name)
        }
        if input_message.HasField("slow_mode_seconds"):
            given["slow_mode_s"] = input_message.slow_mode_seconds
        if input_message.HasField("visibility"):
            given["visibility"] = wire.visibility_of(input_message.visibility)
        change = await self._parts.rooms.update(person, room_id, Changes(**given))
        if change is not None:
            self._parts.announcer.changed([change])
        return pb.UpdateRoomResponse(room=await self._room(person, room_id))

    async def CloseRoom(self, input_message: pb.CloseRoomRequest) -> pb.CloseRoomResponse:
        """Close a room for good."""
        person = caller(READ_ROOMS)
        change = await self._parts.rooms.close(person, room(input_message.room_id), input_message.reason)
        if change is not None:
            self._parts.announcer.changed([change])
        return pb.CloseRoomResponse()

    async def ListRoomMembers(self, input_message: pb.ListRoomMembersRequest) -> pb.ListRoomMembersResponse:
        """Return a page of members."""
        parts = self._parts
        found = await parts.readable(caller(READ_ROOMS), room(input_message.room_id))
        members, token = await parts.lists.members(
            found.id, input_message.page_size, input_message.page_token
        )
        return pb.ListRoomMembersResponse(members=await parts.members(members), next_page_token=token)

    async def SetMemberRole(self, input_message: pb.SetRoomMemberRoleRequest) -> pb.SetRoomMemberRoleResponse:
        """Give a member a role."""
        try:
            role = Role(input_message.role)
        except ValueError:
            raise invalid({"role": f"must be one of {', '.join(Role)}"}) from None
        person = caller(READ_ROOMS)
        member, changes = await self._parts.rooms.set_role(
            person, room(input_message.room_id), user(input_message.user_id), role
        )
        self._parts.announcer.changed(changes)
        [shown] = await self._parts.members([member])
        return pb.SetRoomMemberRoleResponse(member=shown)

    async def InviteUser(self, input_message: pb.InviteUserRequest) -> pb.InviteUserResponse:
        """Invite a person, or make a code."""
        person = caller(READ_ROOMS)
        room_id = room(input_message.room_id)
        user_id = user(input_message.user_id) if input_message.user_id else ""
        uses = rules.check_uses(input_message.uses_max, personal=bool(user_id))
        if user_id:
            await self._parts.rooms.see(person, room_id)
            await self._parts.core.permissions.check_contact(person.user_id, user_id)
        invitation = await self._invite(person, room_id, user_id, input_message.expires_in_seconds, uses)
        return pb.InviteUserResponse(invitation=invitation)

    async def _invite(
        self, person: Person, room_id: str, user_id: str, expires_in_s: int, uses: int = 1
    ) -> pb.Invitation:
        lasts = rules.invitation_period(expires_in_s)
        invitation, seen = await self._parts.invitations.invite(person, room_id, user_id, lasts, uses)
        if user_id:
            self._parts.announcer.invited(seen.room, invitation)
        return wire.invitation_pb(invitation)

    async def ListInvitations(self, input_message: pb.ListInvitationsRequest) -> pb.ListInvitationsResponse:
        """Return invitations that are good."""
        found, token = await self._parts.invitations.page(
            caller(READ_ROOMS),
            room(input_message.room_id),
            input_message.page_size,
            input_message.page_token,
        )
        invitations = [wire.invitation_pb(each) for each in found]
        return pb.ListInvitationsResponse(invitations=invitations, next_page_token=token)

    async def RevokeInvitation(
        self, input_message: pb.RevokeInvitationRequest
    ) -> pb.RevokeInvitationResponse:
        """Take an invitation back, or decline it."""
        invitation_id = parse_id(input_message.invitation_id, "invitation_id")
        await self._parts.invitations.revoke(caller(READ_ROOMS), room(input_message.room_id), invitation_id)
        return pb.RevokeInvitationResponse()

    async def _room(self, person: Person, room_id: str) -> pb.Room:
        [shown] = await self._parts.shown([(await self._parts.rooms.see(person, room_id)).room])
        return shown
