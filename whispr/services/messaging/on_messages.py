"""MessagingService's RPCs about messages: the protos ⇄ operations."""

from __future__ import annotations

from typing import Protocol

import trio

from whispr.conversations.domain import Draft, MessageType, NewContent
from whispr.conversations.protobuf import message_pb, scheduled_pb
from whispr.errors import invalid
from whispr.identity import current_actor
from whispr.ids import new_id, parse_id
from whispr.services.messaging.callers import (
    Servicer,
    acting,
    conversation_of,
    message_of,
    timestamp_of,
)
from whispr.v1 import messaging_pb2 as pb


class OnMessages(Servicer):
    """Sending, reading and finding messages, and what is done to them."""

    async def SendMessage(self, input_message: pb.SendMessageRequest) -> pb.SendMessageResponse:
        """Append a message; the reply means that it is on disk."""
        by_service = current_actor().is_service
        deadline = trio.current_effective_deadline()
        ticket = await self._operations.send(_draft(input_message), by_service=by_service, deadline=deadline)
        return pb.SendMessageResponse(message=message_pb(await ticket.wait()))

    async def GetMessages(self, input_message: pb.GetMessagesRequest) -> pb.GetMessagesResponse:
        """Return a page of history."""
        page = await self._store.messages(
            conversation_of(input_message.conversation_id),
            acting(),
            before_seq=input_message.before_seq,
            after_seq=input_message.after_seq if input_message.HasField("after_seq") else None,
            size=input_message.page_size,
        )
        return pb.GetMessagesResponse(
            messages=[message_pb(message) for message in page.messages], has_more=page.has_more
        )

    async def GetMessage(self, input_message: pb.GetMessageRequest) -> pb.GetMessageResponse:
        """Return one message."""
        message = await self._store.message(*_named(input_message))
        return pb.GetMessageResponse(message=message_pb(message))

    async def EditMessage(self, input_message: pb.EditMessageRequest) -> pb.EditMessageResponse:
        """Replace what a message says."""
        new = NewContent(
            input_message.content,
            dict(input_message.metadata),
            input_message.signature,
            input_message.sender_public_key,
        )
        conversation_id, me, message_id = _named(input_message)
        message = await self._operations.edit(conversation_id, message_id, me, new)
        return pb.EditMessageResponse(message=message_pb(message))

    async def DeleteMessage(self, input_message: pb.DeleteMessageRequest) -> pb.DeleteMessageResponse:
        """Delete a message, for the caller or for everyone."""
        conversation_id, me, message_id = _named(input_message)
        await self._operations.editing.delete(
            conversation_id, message_id, me, for_everyone=input_message.for_everyone
        )
        return pb.DeleteMessageResponse()

    async def AddReaction(self, input_message: pb.AddReactionRequest) -> pb.AddReactionResponse:
        """Add the caller's reaction."""
        conversation_id, me, message_id = _named(input_message)
        await self._operations.react(conversation_id, message_id, me, input_message.emoji)
        return pb.AddReactionResponse()

    async def RemoveReaction(self, input_message: pb.RemoveReactionRequest) -> pb.RemoveReactionResponse:
        """Take the caller's reaction back."""
        conversation_id, me, message_id = _named(input_message)
        await self._operations.reactions.remove(conversation_id, message_id, me, input_message.emoji)
        return pb.RemoveReactionResponse()

    async def PinMessage(self, input_message: pb.PinMessageRequest) -> pb.PinMessageResponse:
        """Pin a message."""
        conversation_id, me, message_id = _named(input_message)
        await self._operations.reactions.pin(conversation_id, message_id, me)
        return pb.PinMessageResponse()

    async def UnpinMessage(self, input_message: pb.UnpinMessageRequest) -> pb.UnpinMessageResponse:
        """Take a pin off."""
        conversation_id, me, message_id = _named(input_message)
        await self._operations.reactions.unpin(conversation_id, message_id, me)
        return pb.UnpinMessageResponse()

    async def ListPins(self, input_message: pb.ListPinsRequest) -> pb.ListPinsResponse:
        """Return what is pinned."""
        conversation_id = conversation_of(input_message.conversation_id)
        pins = await self._operations.reactions.pins(conversation_id, acting())
        return pb.ListPinsResponse(
            pins=[
                pb.Pin(message=message_pb(pin.message), pinned_by=pin.pinned_by, pinned_at=pin.pinned_at)
                for pin in pins
            ]
        )

    async def SearchMessages(self, input_message: pb.SearchMessagesRequest) -> pb.SearchMessagesResponse:
        """Find messages by their words."""
        wanted = input_message.conversation_id
        found, next_token = await self._operations.search.find(
            acting(),
            input_message.query,
            conversation_of(wanted) if wanted else None,
            input_message.page_size,
            input_message.page_token,
        )
        return pb.SearchMessagesResponse(
            results=[
                pb.SearchResult(message=message_pb(each.message), highlight=each.highlight) for each in found
            ],
            next_page_token=next_token,
        )

    # Scheduled messages

    async def ScheduleMessage(self, input_message: pb.ScheduleMessageRequest) -> pb.ScheduleMessageResponse:
        """Keep a message to be sent later."""
        if not input_message.HasField("send_at"):
            raise invalid({"send_at": "when is the message to be sent?"})
        send_at = timestamp_of(input_message.send_at, "send_at")
        kept = await self._operations.schedule_message(_draft(input_message), send_at)
        return pb.ScheduleMessageResponse(scheduled=scheduled_pb(kept))

    async def ListScheduledMessages(
        self, input_message: pb.ListScheduledMessagesRequest
    ) -> pb.ListScheduledMessagesResponse:
        """Return what waits to be sent."""
        wanted = input_message.conversation_id
        kept, next_token = await self._operations.schedule.waiting(
            acting(),
            conversation_of(wanted) if wanted else None,
            input_message.page_size,
            input_message.page_token,
        )
        return pb.ListScheduledMessagesResponse(
            scheduled=[scheduled_pb(each) for each in kept], next_page_token=next_token
        )

    async def CancelScheduledMessage(
        self, input_message: pb.CancelScheduledMessageRequest
    ) -> pb.CancelScheduledMessageResponse:
        """Drop what waits to be sent."""
        scheduled_id = parse_id(input_message.scheduled_id, "scheduled_id")
        await self._operations.schedule.cancel(scheduled_id, acting())
        return pb.CancelScheduledMessageResponse()


class _AboutMessage(Protocol):
    conversation_id: str
    message_id: str


def _named(request: _AboutMessage) -> tuple[str, str, str]:
    """Return the conversation, the caller and the message of a request about one message."""
    return conversation_of(request.conversation_id), acting(), message_of(request.message_id)


def _draft(request: pb.SendMessageRequest | pb.ScheduleMessageRequest) -> Draft:
    """Turn a request into a draft of the caller's. Raises INVALID_ARGUMENT."""
    reply_to = request.reply_to_id
    return Draft(
        id=new_id(),
        conversation_id=conversation_of(request.conversation_id),
        sender_id=acting(),
        content=request.content,
        message_type=request.message_type or MessageType.TEXT.value,
        metadata=dict(request.metadata),
        client_id=request.client_id,
        reply_to_id=parse_id(reply_to, "reply_to_id") if reply_to else "",
        signature=request.signature,
        sender_public_key=request.sender_public_key,
        expire_after_s=request.expire_after_s,
    )
