"""UserService's RPCs. A person asks about themselves and the conversations they are in; services about anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from whispr.conversations import domain
from whispr.conversations.domain import Action, Limits, MessageType
from whispr.conversations.ids import parse_id
from whispr.errors import denied, invalid
from whispr.identity import current_actor
from whispr.services.user.store import Person, Standing, Users
from whispr.v1 import user_pb2
from whispr.v1.user_grpc import UserServiceServicer

TARGETS_MAX = 1000
"""People asked about in one call."""
QUERY_CHARS_MAX = 64

BlocksChanged = Callable[[str, str], None]
"""Told who changed a block and of whom, so that remembered permissions about them are forgotten."""


class UserServicer(UserServiceServicer):
    """Answers from the memberships that conversations publish, and from the blocks."""

    def __init__(self, users: Users, limits: Limits, on_blocks_changed: BlocksChanged) -> None:
        super().__init__()
        self._users = users
        self._limits = limits
        self._on_blocks_changed = on_blocks_changed

    async def ValidateMessagePermissions(
        self, input_message: user_pb2.ValidateMessagePermissionsRequest
    ) -> user_pb2.ValidateMessagePermissionsResponse:
        """Say whether a person may send to a conversation, and to whom of it."""
        sender_id = _subject(input_message.sender_id, "sender_id")
        conversation_id = parse_id(input_message.conversation_id, "conversation_id")
        if input_message.message_type not in ("", *MessageType):
            raise invalid({"message_type": f"must be one of {', '.join(MessageType)}"})
        among = _ids(input_message.participant_ids, "participant_ids") or None
        standing = await self._users.standing(conversation_id, sender_id)
        reason = _why_not_send(standing, input_message.message_type)
        if standing.role is None:
            # A stranger does not learn who is in there.
            return user_pb2.ValidateMessagePermissionsResponse(reason=reason)
        recipients = []
        if among != [sender_id]:
            recipients = await self._users.recipients(conversation_id, sender_id, among)
        return user_pb2.ValidateMessagePermissionsResponse(
            permission_granted=not reason,
            reason=reason,
            allowed_recipients=[r.user_id for r in recipients if not r.blocked and not reason],
            blocked_recipients=[r.user_id for r in recipients if r.blocked],
        )

    async def ValidateConversationAccess(
        self, input_message: user_pb2.ValidateConversationAccessRequest
    ) -> user_pb2.ValidateConversationAccessResponse:
        """Say whether a person may join, leave, read or write a conversation."""
        user_id = _subject(input_message.user_id, "user_id")
        conversation_id = parse_id(input_message.conversation_id, "conversation_id")
        try:
            action = Action(input_message.action or Action.READ)
        except ValueError:
            raise invalid({"action": f"must be one of {', '.join(Action)}"}) from None
        standing = await self._users.standing(conversation_id, user_id)
        allowed = domain.allowed_actions(standing.kind, standing.role)
        allowed[Action.WRITE] &= not standing.blocked
        return user_pb2.ValidateConversationAccessResponse(
            access_granted=allowed[action],
            reason="" if allowed[action] else _why_not(standing, action),
            permissions={each.value: granted for each, granted in allowed.items()},
        )

    async def GetConversationParticipants(
        self, input_message: user_pb2.GetConversationParticipantsRequest
    ) -> user_pb2.GetConversationParticipantsResponse:
        """Return the people of a conversation, to its members and to services."""
        conversation_id = parse_id(input_message.conversation_id, "conversation_id")
        actor = current_actor()
        if not actor.is_service:
            standing = await self._users.standing(conversation_id, actor.user_id)
            if standing.role is None:
                raise domain.not_a_member()
        people = await self._users.participants(
            conversation_id, include_inactive=input_message.include_inactive
        )
        return user_pb2.GetConversationParticipantsResponse(
            participants=[
                user_pb2.Participant(
                    user_id=each.user_id,
                    role=each.role,
                    is_active=each.is_active,
                    joined_at=each.joined_at,
                    last_seen=each.read_at,
                )
                for each in people
            ],
            total_count=len(people),
        )

    async def CheckUserBlocks(
        self, input_message: user_pb2.CheckUserBlocksRequest
    ) -> user_pb2.CheckUserBlocksResponse:
        """Say who of the targets the user blocked and, to services, who of them blocked the user."""
        user_id = _subject(input_message.user_id, "user_id")
        targets = _ids(input_message.target_user_ids, "target_user_ids")
        blocks = await self._users.blocks_between(user_id, targets)
        reply = user_pb2.CheckUserBlocksResponse()
        for target, (is_blocked, has_blocked) in blocks.items():
            reply.is_blocked[target] = is_blocked
            if current_actor().is_service:
                reply.has_blocked[target] = has_blocked
        return reply

    async def BlockUser(self, input_message: user_pb2.BlockUserRequest) -> user_pb2.BlockUserResponse:
        """Block a person for the caller."""
        user_id = _person()
        target_id = parse_id(input_message.user_id, "user_id")
        if target_id == user_id:
            raise invalid({"user_id": "nobody blocks themselves"})
        await self._users.block(user_id, target_id)
        self._on_blocks_changed(user_id, target_id)
        return user_pb2.BlockUserResponse()

    async def UnblockUser(self, input_message: user_pb2.UnblockUserRequest) -> user_pb2.UnblockUserResponse:
        """Take back the caller's block."""
        user_id = _person()
        target_id = parse_id(input_message.user_id, "user_id")
        await self._users.unblock(user_id, target_id)
        self._on_blocks_changed(user_id, target_id)
        return user_pb2.UnblockUserResponse()

    async def ListBlocks(self, input_message: user_pb2.ListBlocksRequest) -> user_pb2.ListBlocksResponse:
        """Return those the caller blocked, latest first."""
        size = domain.clamp_page(input_message.page_size, self._limits)
        blocks, next_token = await self._users.blocks(_person(), size, input_message.page_token)
        return user_pb2.ListBlocksResponse(
            blocks=[user_pb2.Block(user_id=each.id, blocked_at=each.at) for each in blocks],
            next_page_token=next_token,
        )

    async def GetProfile(self, input_message: user_pb2.GetProfileRequest) -> user_pb2.GetProfileResponse:
        """Return a person as others see them."""
        wanted = input_message.user_id
        user_id = _person() if wanted in ("", "me") else parse_id(wanted, "user_id")
        return user_pb2.GetProfileResponse(profile=_profile(await self._users.person(user_id)))

    async def SearchUsers(self, input_message: user_pb2.SearchUsersRequest) -> user_pb2.SearchUsersResponse:
        """Return people whose username or display name begins with the query."""
        query = input_message.query.strip()
        if not 0 < len(query) <= QUERY_CHARS_MAX or "\0" in query:
            raise invalid({"query": f"1 to {QUERY_CHARS_MAX} characters"})
        size = domain.clamp_page(input_message.page_size, self._limits)
        people, next_token = await self._users.search(query, size, input_message.page_token)
        return user_pb2.SearchUsersResponse(
            users=[_profile(person) for person in people], next_page_token=next_token
        )


def _person() -> str:
    """Return the id of the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    user_id = current_actor().user_id
    if not user_id:
        raise denied("a service says for whom it acts, in x-whispr-actor")
    return parse_id(user_id, "x-whispr-actor")


def _subject(user_id: str, field: str) -> str:
    """Return whom a call is about: the caller when empty, another only for services."""
    actor = current_actor()
    if user_id in ("", "me"):
        return _person()
    subject = parse_id(user_id, field)
    if subject != actor.user_id and not actor.is_service:
        raise denied(f"{field} is somebody else")
    return subject


def _ids(values: Iterable[str], field: str) -> list[str]:
    """Parse a bounded list of ids."""
    ids = [parse_id(value, field) for value in values]
    if len(ids) > TARGETS_MAX:
        raise invalid({field: f"at most {TARGETS_MAX}"})
    return ids


def _why_not_send(standing: Standing, message_type: str) -> str:
    """Return the reason why a person may not send, empty when they may."""
    if not domain.may_send(standing.role):
        return "not_a_member"
    if standing.blocked:
        return "blocked"
    if message_type == MessageType.SYSTEM and not current_actor().is_service:
        return "forbidden"
    return ""


def _why_not(standing: Standing, action: Action) -> str:
    if standing.role is None:
        return "not_a_member"
    return "blocked" if action is Action.WRITE and standing.blocked else "forbidden"


def _profile(person: Person) -> user_pb2.Profile:
    return user_pb2.Profile(
        id=person.id,
        username=person.username,
        display_name=person.display_name,
        created_at=person.created_at,
    )
