"""MessagingService's RPCs about conversations and their members: the protos ⇄ operations."""

from __future__ import annotations

from whispr.conversations.domain import Kind, Role, role_named
from whispr.conversations.protobuf import conversation_pb, member_pb
from whispr.errors import invalid
from whispr.ids import parse_id
from whispr.services.messaging.callers import Servicer, acting, conversation_of
from whispr.v1 import messaging_pb2 as pb


class OnConversations(Servicer):
    """Conversations and members."""

    async def CreateConversation(
        self, input_message: pb.CreateConversationRequest
    ) -> pb.CreateConversationResponse:
        """Open a group, or the direct conversation of a pair."""
        actor_id = acting()
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
        conversation = await self._store.conversation(
            conversation_of(input_message.conversation_id), acting()
        )
        return pb.GetConversationResponse(conversation=conversation_pb(conversation))

    async def ListConversations(
        self, input_message: pb.ListConversationsRequest
    ) -> pb.ListConversationsResponse:
        """Return a page of the caller's conversations."""
        conversations, next_token = await self._store.conversations(
            acting(), input_message.page_size, input_message.page_token, archived=input_message.archived
        )
        return pb.ListConversationsResponse(
            conversations=[conversation_pb(each) for each in conversations], next_page_token=next_token
        )

    async def UpdateConversation(
        self, input_message: pb.UpdateConversationRequest
    ) -> pb.UpdateConversationResponse:
        """Rename a group or merge settings."""
        conversation = await self._operations.update(
            conversation_of(input_message.conversation_id),
            acting(),
            input_message.name,
            dict(input_message.settings),
        )
        return pb.UpdateConversationResponse(conversation=conversation_pb(conversation))

    # Members

    async def ListMembers(self, input_message: pb.ListMembersRequest) -> pb.ListMembersResponse:
        """Return those present, to one of them."""
        conversation_id = conversation_of(input_message.conversation_id)
        members = await self._store.members_seen_by(conversation_id, acting())
        return pb.ListMembersResponse(members=[member_pb(member) for member in members])

    async def AddMember(self, input_message: pb.AddMemberRequest) -> pb.AddMemberResponse:
        """Add people to a group."""
        user_ids = [parse_id(user_id, "user_ids") for user_id in input_message.user_ids]
        if not user_ids:
            raise invalid({"user_ids": "at least one"})
        members = await self._operations.add(
            conversation_of(input_message.conversation_id),
            acting(),
            user_ids,
            role_named(input_message.role or Role.MEMBER.value, "role"),
        )
        return pb.AddMemberResponse(members=[member_pb(member) for member in members])

    async def RemoveMember(self, input_message: pb.RemoveMemberRequest) -> pb.RemoveMemberResponse:
        """Remove somebody, or leave."""
        actor_id = acting()
        wanted = input_message.user_id
        user_id = actor_id if wanted == "me" else parse_id(wanted, "user_id")
        await self._operations.remove(conversation_of(input_message.conversation_id), actor_id, user_id)
        return pb.RemoveMemberResponse()

    async def SetMemberRole(self, input_message: pb.SetMemberRoleRequest) -> pb.SetMemberRoleResponse:
        """Give somebody a role."""
        member = await self._operations.set_role(
            conversation_of(input_message.conversation_id),
            acting(),
            parse_id(input_message.user_id, "user_id"),
            role_named(input_message.role, "role"),
        )
        return pb.SetMemberRoleResponse(member=member_pb(member))
