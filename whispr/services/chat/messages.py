"""RPCs about messages, in rooms and between two people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import trio

from whispr.conversations.domain import Draft, Kind, Message, MessagePage
from whispr.conversations.message_rules import no_message
from whispr.conversations.moderation import Action
from whispr.conversations.protobuf import message_pb
from whispr.conversations.room_rules import Person
from whispr.errors import WhisprError, denied, invalid
from whispr.identity import current_actor
from whispr.ids import new_id, parse_id
from whispr.services.chat import wire
from whispr.services.chat.caller import READ, WRITE, because, caller, room
from whispr.services.chat.parts import Parts, topic
from whispr.services.chat.subscriptions import PAGE_LEN
from whispr.v1 import chat_pb2 as pb
from whispr.v1 import messaging_pb2

EVENT_TYPES_MAX = 32


class MessageHandlers:
    """Sending, reading, deleting, and following live."""

    _parts: Parts

    async def SendMessage(self, input_message: pb.SendRoomMessageRequest) -> pb.SendRoomMessageResponse:
        """Append a message to a room; the reply means that it is on disk."""
        person = caller(WRITE)
        room_id = room(input_message.room_id)
        try:
            message = await self._send(person, room_id, input_message)
        except WhisprError as error:
            if error.reason == "not_a_member":
                await self._parts.rooms.see(person, room_id)  # what they may not know of is not found
            raise
        return pb.SendRoomMessageResponse(message=message)

    async def SendDirectMessage(
        self, input_message: pb.SendDirectMessageRequest
    ) -> pb.SendDirectMessageResponse:
        """Append a message to the direct conversation with a person."""
        person = caller(WRITE)
        named = {input_message.recipient_id, input_message.other_user_id} - {""}
        if len(named) > 1:
            raise invalid({"recipient_id": "is not other_user_id"})
        other_id = parse_id("".join(named), "recipient_id")
        if other_id == person.user_id:
            raise invalid({"recipient_id": "a direct message is to another person"})
        core = self._parts.core
        found = await core.membership.find_direct(person.user_id, other_id)
        if found is None:
            opened, _ = await core.operations.open_direct(person.user_id, other_id)
            found = opened.id
        return pb.SendDirectMessageResponse(message=await self._send(person, found, input_message))

    async def _send(
        self,
        person: Person,
        conversation_id: str,
        wanted: pb.SendRoomMessageRequest | pb.SendDirectMessageRequest,
    ) -> messaging_pb2.Message:
        message_type, metadata = wire.message_type_of(wanted.type, dict(wanted.metadata))
        draft = Draft(
            id=new_id(),
            conversation_id=conversation_id,
            sender_id=person.user_id,
            content=wanted.content,
            message_type=message_type,
            metadata=metadata,
            client_id=wanted.client_id,
            reply_to_id=parse_id(wanted.reply_to, "reply_to") if wanted.reply_to else "",
        )
        by_service = current_actor().is_service
        deadline = trio.current_effective_deadline()
        ticket = await self._parts.core.operations.send(draft, by_service=by_service, deadline=deadline)
        return message_pb(await ticket.wait())

    async def GetMessageHistory(
        self, input_message: pb.GetMessageHistoryRequest
    ) -> pb.GetMessageHistoryResponse:
        """Return the messages before one, or the latest."""
        person = caller(READ)
        found = await self._parts.readable(person, room(input_message.room_id))
        page = await self._history(
            person, found.id, input_message.before_id, input_message.limit, overseen=found.role is None
        )
        return pb.GetMessageHistoryResponse(messages=_pbs(page.messages), has_more=page.has_more)

    async def GetDirectMessages(
        self, input_message: pb.GetDirectMessagesRequest
    ) -> pb.GetDirectMessagesResponse:
        """Return the messages with a person before one, or the latest; none when nothing was ever said."""
        person = caller(READ)
        other_id = parse_id(input_message.other_user_id, "other_user_id")
        found = await self._parts.core.membership.find_direct(person.user_id, other_id)
        if found is None:
            return pb.GetDirectMessagesResponse()
        page = await self._history(person, found, input_message.before_id, input_message.limit)
        return pb.GetDirectMessagesResponse(messages=_pbs(page.messages), has_more=page.has_more)

    async def _history(
        self, person: Person, conversation_id: str, before_id: str, limit: int, *, overseen: bool = False
    ) -> MessagePage:
        before_seq = 0
        store = self._parts.core.store
        if before_id:
            found = await self._parts.moderation.message(parse_id(before_id, "before_id"))
            if found.conversation_id != conversation_id:
                raise no_message(before_id)
            before_seq = found.seq
            if before_seq == 1:
                return MessagePage([], has_more=False)
        if overseen:
            return await store.overseen(conversation_id, before_seq, limit)
        return await store.messages(conversation_id, person.user_id, before_seq=before_seq, size=limit)

    async def DeleteMessage(self, input_message: pb.DeleteRoomMessageRequest) -> pb.DeleteRoomMessageResponse:
        """Delete a message for everyone: one's own, or as a moderator."""
        person = caller(WRITE)
        message_id = parse_id(input_message.message_id, "message_id")
        reason = because(input_message.reason)
        parts = self._parts
        message = await parts.moderation.message(message_id)
        if input_message.room_id and message.conversation_id != room(input_message.room_id):
            raise no_message(message_id)
        if message.kind is Kind.ROOM and message.sender_id != person.user_id:
            done = await parts.moderation.moderate(person, message_id, Action.DELETE, reason, b"")
            parts.announcer.moderated(done)
            return pb.DeleteRoomMessageResponse()
        try:
            await parts.editing.delete(message.conversation_id, message_id, person.user_id, for_everyone=True)
        except WhisprError as error:
            # Who is not in there does not learn that the message is.
            raise (no_message(message_id) if error.reason == "not_a_member" else error) from None
        return pb.DeleteRoomMessageResponse()

    async def SubscribeRoomEvents(
        self, input_message: pb.SubscribeRoomEventsRequest
    ) -> AsyncIterator[pb.RoomEvent]:
        """Follow a room live, for as long as the caller may."""
        person = caller(READ)
        room_id = room(input_message.room_id)
        parts, claims = self._parts, current_actor().claims
        if len(input_message.event_types) > EVENT_TYPES_MAX:
            raise invalid({"event_types": f"at most {EVENT_TYPES_MAX}"})

        async def last_seq() -> int:
            seen = (await parts.rooms.see(person, room_id)).room
            if seen.role is None:
                raise denied("only members of the room may do this", reason="not_a_member")
            return seen.last_seq

        async def read_on(after_seq: int) -> MessagePage:
            return await parts.core.store.messages(
                room_id, person.user_id, after_seq=after_seq, size=PAGE_LEN
            )

        seen = await parts.rooms.see(person, room_id)
        events = parts.subscriptions.events(
            topic(seen.room),
            person.user_id,
            claims.session_id,
            claims.expires_at,
            read_on=read_on,
            last_seq=last_seq,
            since_seq=input_message.since_seq if input_message.HasField("since_seq") else None,
            types=input_message.event_types,
        )
        async with aclosing(events) as following:
            async for event in following:
                yield pb.RoomEvent(
                    type=event.type,
                    room_id=room_id,
                    seq=event.seq,
                    time=event.time,
                    data=event.payload.decode(),
                )


def _pbs(messages: Sequence[Message]) -> list[messaging_pb2.Message]:
    return [message_pb(message) for message in messages]
