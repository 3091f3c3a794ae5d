"""MessagingService's RPCs for other services, and the one by which media are linked to messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime

from whispr.conversations import domain
from whispr.errors import invalid
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.services.messaging.callers import Servicer, acting, conversation_of, message_of, timestamp_of
from whispr.v1 import messaging_pb2 as pb
from whispr.v1.common_pb2 import DataRecord, ExportUserDataRequest

EVENT_TYPES = ("member_added", "member_removed", "settings_changed")


class ForServices(Servicer):
    """What other services tell and ask."""

    async def NotifyConversationEvent(
        self, input_message: pb.NotifyConversationEventRequest
    ) -> pb.NotifyConversationEventResponse:
        """Make true what another service tells, and tell the members."""
        kind = input_message.event_type
        if kind not in EVENT_TYPES:
            raise invalid({"event_type": f"must be one of {', '.join(EVENT_TYPES)}"})
        about = input_message.user_id
        user_id = "" if kind == "settings_changed" else parse_id(about, "user_id")
        at = datetime.now(UTC)
        if input_message.HasField("timestamp"):
            at = timestamp_of(input_message.timestamp, "timestamp")
        event_id = await self._operations.notified(
            conversation_of(input_message.conversation_id), kind, user_id, dict(input_message.metadata), at
        )
        return pb.NotifyConversationEventResponse(event_id=event_id)

    async def NotifyGroupCreation(
        self, input_message: pb.NotifyGroupCreationRequest
    ) -> pb.NotifyGroupCreationResponse:
        """Open the conversation of a group that another service has made."""
        conversation = await self._operations.open_group(
            parse_id(input_message.creator_id, "creator_id"),
            [parse_id(member_id, "member_ids") for member_id in input_message.member_ids],
            domain.check_name(input_message.group_name, "group_name"),
            dict(input_message.settings),
            group_id=parse_id(input_message.group_id, "group_id"),
        )
        return pb.NotifyGroupCreationResponse(conversation_id=conversation.id)

    async def LinkMediaToMessage(self, input_message: pb.LinkMediaRequest) -> pb.LinkMediaResponse:
        """Link a medium to a message, for its sender or for a service."""
        actor = current_actor()
        link = await self._core.attachments.link(
            message_of(input_message.message_id),
            None if actor.is_service and not actor.user_id else acting(),
            parse_id(input_message.media_id, "media_id"),
            input_message.media_type,
            dict(input_message.metadata),
        )
        return pb.LinkMediaResponse(link_id=link.link_id, state=link.state)

    async def ExportUserData(self, input_message: ExportUserDataRequest) -> AsyncGenerator[DataRecord, None]:
        """Hand over everything held about a person."""
        user_id = parse_id(input_message.user_id, "user_id")
        async with aclosing(self._core.privacy.export(user_id)) as records:
            async for kind, json in records:
                yield DataRecord(source="messaging", kind=kind, json=json)
