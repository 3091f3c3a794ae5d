"""RPCs of moderation, and figures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from whispr.conversations import audit
from whispr.conversations import room_rules as rules
from whispr.conversations.domain import clamp_page
from whispr.conversations.protobuf import message_pb
from whispr.errors import denied
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.services.chat import wire
from whispr.services.chat.caller import (
    READ,
    READ_ROOMS,
    WRITE,
    allows,
    because,
    caller,
    caller_or_service,
    room,
    user,
)
from whispr.services.chat.parts import Parts, topic
from whispr.services.chat.personal import PersonalData
from whispr.v1 import chat_pb2 as pb
from whispr.v1 import common_pb2

HOUR_S = 3600.0


class ModerationHandlers:
    """Sanctions, acts on messages, reports, the audit log, figures."""

    _parts: Parts
    _personal: PersonalData

    async def MuteUser(self, input_message: pb.MuteUserRequest) -> pb.MuteUserResponse:
        """Silence a member for a time, or for good."""
        person, reason = caller(READ_ROOMS), because(input_message.reason)
        room_id, user_id = room(input_message.room_id), user(input_message.user_id)
        lasts = rules.period(input_message.duration_seconds, rules.MUTE_S_MAX)
        done = await self._parts.sanctions.mute(person, room_id, user_id, lasts, reason)
        self._parts.announcer.sanctioned(room_id, user_id, done)
        return pb.MuteUserResponse(muted_until=done.until)

    async def UnmuteUser(self, input_message: pb.UnmuteUserRequest) -> pb.UnmuteUserResponse:
        """Let a member speak again."""
        person, reason = caller(READ_ROOMS), because(input_message.reason)
        room_id, user_id = room(input_message.room_id), user(input_message.user_id)
        self._parts.announcer.changed(await self._parts.sanctions.unmute(person, room_id, user_id, reason))
        return pb.UnmuteUserResponse()

    async def BanUser(self, input_message: pb.BanUserRequest) -> pb.BanUserResponse:
        """Remove a person and keep them out, for a time or for good."""
        person, reason = caller(READ_ROOMS), because(input_message.reason)
        room_id, user_id = room(input_message.room_id), user(input_message.user_id)
        lasts = rules.period(input_message.duration_seconds, rules.BAN_S_MAX)
        done = await self._parts.sanctions.ban(person, room_id, user_id, lasts, reason)
        self._parts.announcer.sanctioned(room_id, user_id, done)
        return pb.BanUserResponse(banned_until=done.until)

    async def UnbanUser(self, input_message: pb.UnbanUserRequest) -> pb.UnbanUserResponse:
        """Let a banned person come back."""
        person, reason = caller(READ_ROOMS), because(input_message.reason)
        room_id, user_id = room(input_message.room_id), user(input_message.user_id)
        self._parts.announcer.changed(await self._parts.sanctions.unban(person, room_id, user_id, reason))
        return pb.UnbanUserResponse()

    async def KickUser(self, input_message: pb.KickUserRequest) -> pb.KickUserResponse:
        """Remove a member, who may come back."""
        person, reason = caller(READ_ROOMS), because(input_message.reason)
        room_id, user_id = room(input_message.room_id), user(input_message.user_id)
        self._parts.announcer.changed(await self._parts.sanctions.kick(person, room_id, user_id, reason))
        return pb.KickUserResponse()

    async def ListBans(self, input_message: pb.ListBansRequest) -> pb.ListBansResponse:
        """Return bans in force, to moderators."""
        found = await self._parts.moderated(caller(READ_ROOMS), room(input_message.room_id))
        bans, token = await self._parts.sanctions.bans(
            found.id, input_message.page_size, input_message.page_token
        )
        return pb.ListBansResponse(bans=[wire.ban_pb(ban) for ban in bans], next_page_token=token)

    async def ModerateMessage(self, input_message: pb.ModerateMessageRequest) -> pb.ModerateMessageResponse:
        """Act on a message, as a moderator."""
        person, reason = caller(WRITE), because(input_message.reason)
        message_id = parse_id(input_message.message_id, "message_id")
        action = wire.action_of(input_message.action)
        done = await self._parts.moderation.moderate(
            person, message_id, action, reason, input_message.content
        )
        self._parts.announcer.moderated(done)
        return pb.ModerateMessageResponse(message=message_pb(done.message))

    async def ReportMessage(self, input_message: pb.ReportMessageRequest) -> pb.ReportMessageResponse:
        """Report a message to moderators."""
        person, reason = caller(READ), because(input_message.reason)
        message_id = parse_id(input_message.message_id, "message_id")
        parts = self._parts
        await parts.core.limiter.take(f"reports:{person.user_id}", parts.limits.reports_per_hour, HOUR_S)
        found, done = await parts.moderation.report(person, message_id, reason)
        parts.announcer.moderated(done)
        return pb.ReportMessageResponse(flagged=found.flagged, hidden=found.hidden)

    async def ListFlaggedMessages(
        self, input_message: pb.ListFlaggedMessagesRequest
    ) -> pb.ListFlaggedMessagesResponse:
        """Return what waits for review, to moderators: of a room, or of everywhere."""
        person = caller(READ)
        room_id = ""
        if input_message.room_id:
            room_id = (await self._parts.moderated(person, room(input_message.room_id))).id
        elif not person.moderates_people:
            raise denied(
                f"this takes the permission {rules.MODERATE_PEOPLE}",
                facts={"permission": rules.MODERATE_PEOPLE},
            )
        flagged, token = await self._parts.moderation.open_flags(
            room_id, input_message.page_size, input_message.page_token
        )
        messages = [wire.flagged_pb(each) for each in flagged]
        return pb.ListFlaggedMessagesResponse(messages=messages, next_page_token=token)

    async def GetAuditLog(self, input_message: pb.GetAuditLogRequest) -> pb.GetAuditLogResponse:
        """Return what was done by way of moderation, to moderators."""
        found = await self._parts.moderated(caller(READ_ROOMS), room(input_message.room_id))
        target_id = parse_id(input_message.target_id, "target_id") if input_message.target_id else ""
        size = clamp_page(input_message.page_size, self._parts.core.limits)
        entries, token = await audit.page(
            self._parts.core.db, found.id, size, input_message.page_token, target_id
        )
        return pb.GetAuditLogResponse(
            entries=[wire.audit_pb(entry) for entry in entries], next_page_token=token
        )

    # Figures

    async def GetRoomStats(self, input_message: pb.GetRoomStatsRequest) -> pb.RoomStats:
        """Return the figures of a room."""
        parts = self._parts
        found = await parts.readable(caller_or_service(READ), room(input_message.room_id))
        stats = await parts.lists.stats(found.id)
        online = await parts.online.counts([topic(found)])
        return pb.RoomStats(
            room_id=found.id,
            total_members=stats.members,
            online_members=online[topic(found)],
            messages_today=stats.messages_today,
            total_messages=stats.messages,
            active_users=stats.active_ids,
        )

    async def GetUserActivity(self, input_message: pb.GetUserActivityRequest) -> pb.UserActivity:
        """Return the figures of a person, to themselves, services and platform moderators."""
        user_id = self._whose(input_message.user_id)
        figures = await self._parts.activity.of(user_id)
        status = (await self._parts.online.status([user_id]))[user_id]
        # Others see no more than the person shows.
        own = user_id == current_actor().user_id
        connected = await self._parts.online.connected([user_id]) if own else ()
        return pb.UserActivity(
            user_id=user_id,
            rooms_joined=figures.rooms_joined,
            messages_sent=figures.messages_sent,
            last_activity=figures.last_activity,
            is_online=user_id in connected if own else status != "offline",
            current_status=status,
        )

    def _whose(self, user_id: str) -> str:
        actor = current_actor()
        if user_id in ("", "me"):
            return caller(READ).user_id
        asked = user(user_id)
        if not actor.is_service and asked != caller(READ).user_id and not allows(rules.MODERATE_PEOPLE):
            raise denied("user_id is somebody else")
        return asked

    async def ExportUserData(
        self, input_message: common_pb2.ExportUserDataRequest
    ) -> AsyncIterator[common_pb2.DataRecord]:
        """Yield everything chat holds about a person."""
        async with aclosing(self._personal.export(user(input_message.user_id))) as records:
            async for kind, json in records:
                yield common_pb2.DataRecord(source="chat", kind=kind, json=json)
