"""MessagingService's RPCs: the protos ⇄ operations. The actor is the verified caller, never a field."""

from __future__ import annotations

from datetime import UTC, datetime

import trio

from whispr.conversations.domain import Draft, Kind, MessageType, Role
from whispr.conversations.ids import new_id, parse_id
from whispr.conversations.operations import Operations
from whispr.conversations.protobuf import conversation_pb, member_pb, message_pb
from whispr.errors import denied, invalid
from whispr.identity import current_actor
from whispr.v1 import messaging_pb2 as pb
from whispr.v1.messaging_grpc import MessagingServiceServicer

METRICS = ("message_count", "unread_count", "last_activity")


class MessagingServicer(MessagingServiceServicer):
    """Answers for the caller, or for the person a service acts for."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations
        self._store = operations.store

    # Conversations

    async def CreateConversation(
        self, input_message: pb.CreateConversationRequest
    ) -> pb.CreateConversationResponse:
        """Open a group, or the direct conversation of a pair."""
        actor_id = _actor()
        others = [parse_id(user_id, "member_ids") for user_id in input_message.member_ids]
        if input_message.kind == Kind.DIRECT:
            if len(others) != 1:
                raise invalid({"member_ids": "exactly one other person for a direct conversation"})
            if input_message.name or input_message.settings:
                raise invalid({"name": "a direct conversation has neither name nor settings"})
            conversation, created = await self._operations.open_direct(actor_id, others[0])
        elif input_message.kind == Kind.GROUP:
            settings = dict(input_message.settings)
            conversation = await self._operations.open_group(actor_id, others, input_message.name, settings)
            created = True
        else:
            raise invalid({"kind": "must be direct or group"})
        return pb.CreateConversationResponse(conversation=conversation_pb(conversation), created=created)

    async def GetConversation(self, input_message: pb.GetConversationRequest) -> pb.GetConversationResponse:
        """Return a conversation with its members."""
        conversation = await self._store.conversation(_conversation(input_message.conversation_id), _actor())
        return pb.GetConversationResponse(conversation=conversation_pb(conversation))

    async def ListConversations(
        self, input_message: pb.ListConversationsRequest
    ) -> pb.ListConversationsResponse:
        """Return a page of the caller's conversations."""
        conversations, next_token = await self._store.conversations(
            _actor(), input_message.page_size, input_message.page_token
        )
        return pb.ListConversationsResponse(
            conversations=[conversation_pb(each) for each in conversations], next_page_token=next_token
        )

    async def UpdateConversation(
        self, input_message: pb.UpdateConversationRequest
    ) -> pb.UpdateConversationResponse:
        """Rename a group or merge settings."""
        conversation = await self._operations.update(
            _conversation(input_message.conversation_id),
            _actor(),
            input_message.name,
            dict(input_message.settings),
        )
        return pb.UpdateConversationResponse(conversation=conversation_pb(conversation))

    # Members

    async def ListMembers(self, input_message: pb.ListMembersRequest) -> pb.ListMembersResponse:
        """Return those present, to one of them."""
        conversation_id = _conversation(input_message.conversation_id)
        members = await self._store.members_seen_by(conversation_id, _actor())
        return pb.ListMembersResponse(members=[member_pb(member) for member in members])

    async def AddMember(self, input_message: pb.AddMemberRequest) -> pb.AddMemberResponse:
        """Add people to a group."""
        user_ids = [parse_id(user_id, "user_ids") for user_id in input_message.user_ids]
        if not user_ids:
            raise invalid({"user_ids": "at least one"})
        members = await self._operations.add(
            _conversation(input_message.conversation_id),
            _actor(),
            user_ids,
            _role(input_message.role or Role.MEMBER),
        )
        return pb.AddMemberResponse(members=[member_pb(member) for member in members])

    async def RemoveMember(self, input_message: pb.RemoveMemberRequest) -> pb.RemoveMemberResponse:
        """Remove somebody, or leave."""
        actor_id = _actor()
        wanted = input_message.user_id
        user_id = actor_id if wanted == "me" else parse_id(wanted, "user_id")
        await self._operations.remove(_conversation(input_message.conversation_id), actor_id, user_id)
        return pb.RemoveMemberResponse()

    async def SetMemberRole(self, input_message: pb.SetMemberRoleRequest) -> pb.SetMemberRoleResponse:
        """Give somebody a role."""
        member = await self._operations.set_role(
            _conversation(input_message.conversation_id),
            _actor(),
            parse_id(input_message.user_id, "user_id"),
            _role(input_message.role),
        )
        return pb.SetMemberRoleResponse(member=member_pb(member))

    # Messages

    async def SendMessage(self, input_message: pb.SendMessageRequest) -> pb.SendMessageResponse:
        """Append a message; the reply means that it is on disk."""
        reply_to = input_message.reply_to_id
        draft = Draft(
            id=new_id(),
            conversation_id=_conversation(input_message.conversation_id),
            sender_id=_actor(),
            content=input_message.content,
            message_type=input_message.message_type or MessageType.TEXT.value,
            metadata=dict(input_message.metadata),
            client_id=input_message.client_id,
            reply_to_id=parse_id(reply_to, "reply_to_id") if reply_to else "",
            signature=input_message.signature,
            sender_public_key=input_message.sender_public_key,
        )
        by_service = current_actor().is_service
        deadline = trio.current_effective_deadline()
        ticket = await self._operations.send(draft, by_service=by_service, deadline=deadline)
        return pb.SendMessageResponse(message=message_pb(await ticket.wait()))

    async def GetMessages(self, input_message: pb.GetMessagesRequest) -> pb.GetMessagesResponse:
        """Return a page of history."""
        page = await self._store.messages(
            _conversation(input_message.conversation_id),
            _actor(),
            before_seq=input_message.before_seq,
            after_seq=input_message.after_seq if input_message.HasField("after_seq") else None,
            size=input_message.page_size,
        )
        return pb.GetMessagesResponse(
            messages=[message_pb(message) for message in page.messages], has_more=page.has_more
        )

    async def MarkDelivered(self, input_message: pb.MarkDeliveredRequest) -> pb.MarkDeliveredResponse:
        """Move the delivered watermark."""
        conversation_id = _conversation(input_message.conversation_id)
        mark = await self._operations.mark_delivered(conversation_id, _actor(), input_message.seq)
        return pb.MarkDeliveredResponse(delivered_seq=mark.seq)

    async def MarkRead(self, input_message: pb.MarkReadRequest) -> pb.MarkReadResponse:
        """Move the read watermark."""
        conversation_id = _conversation(input_message.conversation_id)
        mark = await self._operations.mark_read(conversation_id, _actor(), input_message.seq)
        return pb.MarkReadResponse(read_seq=mark.seq, unread_count=mark.unread_count)

    async def GetConversationStats(
        self, input_message: pb.GetConversationStatsRequest
    ) -> pb.GetConversationStatsResponse:
        """Return the counters asked for; to a service that names nobody, those that are nobody's."""
        conversation_id = _conversation(input_message.conversation_id)
        wanted = set(input_message.metrics) or set(METRICS)
        if unknown := wanted.difference(METRICS):
            raise invalid({"metrics": f"{sorted(unknown)[0]!r} is not one of {', '.join(METRICS)}"})
        counters = await self._store.counters(conversation_id, _whose(input_message.user_id))
        stats = {"message_count": counters.message_count}
        stats["last_activity"] = int(counters.last_activity.timestamp())
        if counters.unread_count is not None:
            stats["unread_count"] = counters.unread_count
        return pb.GetConversationStatsResponse(
            stats={name: value for name, value in stats.items() if name in wanted},
            last_updated=datetime.now(UTC),
        )


def _actor() -> str:
    """Return the id of the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    user_id = current_actor().user_id
    if not user_id:
        raise denied("a service says for whom it acts, in x-whispr-actor")
    return parse_id(user_id, "x-whispr-actor")


def _whose(user_id: str) -> str | None:
    """Return whose counters are asked for: the caller's, another's only by a service, or nobody's."""
    actor = current_actor()
    if user_id in ("", "me"):
        return None if actor.is_service and not actor.user_id else _actor()
    asked = parse_id(user_id, "user_id")
    if asked != actor.user_id and not actor.is_service:
        raise denied("user_id is somebody else")
    return asked


def _conversation(conversation_id: str) -> str:
    return parse_id(conversation_id, "conversation_id")


def _role(role: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise invalid({"role": f"must be one of {', '.join(Role)}"}) from None
