"""UserService's RPCs. A person asks about themselves and the conversations they are in; services about anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from whispr.conversations import domain
from whispr.conversations.domain import Action, Limits, MessageType
from whispr.errors import conflict, denied, invalid
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.services.user.domain import changes
from whispr.services.user.neighbours import Neighbours
from whispr.services.user.relations import Known, Relations
from whispr.services.user.store import Person, Standing, Users
from whispr.v1 import common_pb2, user_pb2
from whispr.v1.user_grpc import UserServiceServicer

TARGETS_MAX = 1000
"""People asked about in one call."""
PARTICIPANTS_MAX = 1000
"""People of a conversation on one page."""
QUERY_CHARS_MAX = 64

BlocksChanged = Callable[[str, str], None]
"""Told who changed a block or a contact and of whom, so that what is remembered about them is forgotten.

Twice the same person is somebody who changed to whom they show themselves.
"""


class UserServicer(UserServiceServicer):
    """Answers from the memberships that conversations publish, and from the blocks."""

    def __init__(
        self,
        users: Users,
        relations: Relations,
        limits: Limits,
        neighbours: Neighbours,
        on_blocks_changed: BlocksChanged,
    ) -> None:
        super().__init__()
        self._users = users
        self._relations = relations
        self._limits = limits
        self._neighbours = neighbours
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
        allowed[Action.WRITE] &= not (standing.blocked or standing.unwanted or standing.muted)
        return user_pb2.ValidateConversationAccessResponse(
            access_granted=allowed[action],
            reason="" if allowed[action] else _why_not(standing, action),
            permissions={each.value: granted for each, granted in allowed.items()},
            role=standing.role or "",
            shows_presence=standing.shows,
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
        wanted = input_message.page_size
        if wanted < 0:
            raise invalid({"page_size": "must not be negative"})
        people, total, next_token = await self._users.participants(
            conversation_id,
            min(wanted or PARTICIPANTS_MAX, PARTICIPANTS_MAX),
            input_message.page_token,
            include_inactive=input_message.include_inactive,
        )
        shown = {each.user_id for each in people}
        if not actor.is_service:
            shown = await self._users.visible(actor.user_id, shown)
        seen = await self._neighbours.last_seen(shown)
        return user_pb2.GetConversationParticipantsResponse(
            participants=[
                user_pb2.Participant(
                    user_id=each.user_id,
                    role=each.role,
                    is_active=each.is_active,
                    joined_at=each.joined_at,
                    last_seen=seen.get(each.user_id),
                )
                for each in people
            ],
            total_count=total,
            next_page_token=next_token,
        )

    async def CheckUserBlocks(
        self, input_message: user_pb2.CheckUserBlocksRequest
    ) -> user_pb2.CheckUserBlocksResponse:
        """Say who of the targets the user blocked and, to services, who of them blocked the user."""
        user_id = _subject(input_message.user_id, "user_id")
        targets = _ids(input_message.target_user_ids, "target_user_ids")
        reply = user_pb2.CheckUserBlocksResponse()
        for target, between in (await self._users.between(user_id, targets)).items():
            reply.is_blocked[target] = between.is_blocked
            if current_actor().is_service:
                reply.has_blocked[target] = between.has_blocked
                reply.may_message[target] = between.may_message
        return reply

    async def BlockUser(self, input_message: user_pb2.BlockUserRequest) -> user_pb2.BlockUserResponse:
        """Block a person for the caller."""
        user_id = _person()
        target_id = parse_id(input_message.user_id, "user_id")
        if target_id == user_id:
            raise invalid({"user_id": "nobody blocks themselves"})
        await self._relations.block(user_id, target_id)
        self._on_blocks_changed(user_id, target_id)
        return user_pb2.BlockUserResponse()

    async def UnblockUser(self, input_message: user_pb2.UnblockUserRequest) -> user_pb2.UnblockUserResponse:
        """Take back the caller's block."""
        user_id = _person()
        target_id = parse_id(input_message.user_id, "user_id")
        await self._relations.unblock(user_id, target_id)
        self._on_blocks_changed(user_id, target_id)
        return user_pb2.UnblockUserResponse()

    async def ListBlocks(self, input_message: user_pb2.ListBlocksRequest) -> user_pb2.ListBlocksResponse:
        """Return those the caller blocked, latest first."""
        size = domain.clamp_page(input_message.page_size, self._limits)
        blocks, next_token = await self._relations.blocks(_person(), size, input_message.page_token)
        return user_pb2.ListBlocksResponse(
            blocks=[user_pb2.Block(user_id=each.id, blocked_at=each.at) for each in blocks],
            next_page_token=next_token,
        )

    async def GetProfile(self, input_message: user_pb2.GetProfileRequest) -> user_pb2.GetProfileResponse:
        """Return a person as others see them, or as they are to themselves."""
        wanted = input_message.user_id
        user_id = _person() if wanted in ("", "me") else parse_id(wanted, "user_id")
        return user_pb2.GetProfileResponse(profile=_profile(await self._users.person(user_id)))

    async def UpdateProfile(
        self, input_message: user_pb2.UpdateProfileRequest
    ) -> user_pb2.UpdateProfileResponse:
        """Change what is given of the caller's profile."""
        user_id = _person()
        given = changes({field.name: value for field, value in input_message.ListFields()})
        if given.avatar_media_id and not await self._neighbours.owns_picture(user_id, given.avatar_media_id):
            raise conflict("the avatar must be a finished image of your own", "avatar_unusable")
        if given.display_name is not None:
            # First, for the event that follows speaks of it. To repeat it is harmless.
            await self._neighbours.set_display_name(user_id, given.display_name)
        if given.given():
            await self._relations.update_profile(user_id, given)
        if given.message_privacy is not None or given.presence_privacy is not None:
            self._on_blocks_changed(user_id, user_id)
        return user_pb2.UpdateProfileResponse(profile=_profile(await self._users.person(user_id)))

    async def SearchUsers(self, input_message: user_pb2.SearchUsersRequest) -> user_pb2.SearchUsersResponse:
        """Return people whose username or display name begins with the query."""
        searcher_id = _person()
        query = input_message.query.strip()
        if not 0 < len(query) <= QUERY_CHARS_MAX or "\0" in query:
            raise invalid({"query": f"1 to {QUERY_CHARS_MAX} characters"})
        size = domain.clamp_page(input_message.page_size, self._limits)
        people, next_token = await self._users.search(searcher_id, query, size, input_message.page_token)
        return user_pb2.SearchUsersResponse(
            users=[_profile(person) for person in people], next_page_token=next_token
        )

    async def AddContact(self, input_message: user_pb2.AddContactRequest) -> user_pb2.AddContactResponse:
        """Add a person to the caller's contacts."""
        user_id = _person()
        contact_id = parse_id(input_message.user_id, "user_id")
        if contact_id == user_id:
            raise invalid({"user_id": "nobody is their own contact"})
        known = await self._relations.add_contact(user_id, contact_id)
        self._on_blocks_changed(user_id, contact_id)
        return user_pb2.AddContactResponse(contact=_contact(known, await self._users.person(contact_id)))

    async def RemoveContact(
        self, input_message: user_pb2.RemoveContactRequest
    ) -> user_pb2.RemoveContactResponse:
        """Take a person out of the caller's contacts."""
        user_id = _person()
        contact_id = parse_id(input_message.user_id, "user_id")
        await self._relations.remove_contact(user_id, contact_id)
        self._on_blocks_changed(user_id, contact_id)
        return user_pb2.RemoveContactResponse()

    async def ListContacts(
        self, input_message: user_pb2.ListContactsRequest
    ) -> user_pb2.ListContactsResponse:
        """Return the caller's contacts, latest first."""
        size = domain.clamp_page(input_message.page_size, self._limits)
        contacts, next_token = await self._relations.contacts(_person(), size, input_message.page_token)
        people = await self._users.people([each.user_id for each in contacts])
        return user_pb2.ListContactsResponse(
            contacts=[_contact(each, people[each.user_id]) for each in contacts if each.user_id in people],
            next_page_token=next_token,
        )

    async def CheckPresenceVisibility(
        self, input_message: user_pb2.CheckPresenceVisibilityRequest
    ) -> user_pb2.CheckPresenceVisibilityResponse:
        """Say whose presence a person may see."""
        viewer_id = _subject(input_message.viewer_id, "viewer_id")
        asked = _ids(input_message.user_ids, "user_ids")
        visible = await self._users.visible(viewer_id, asked)
        return user_pb2.CheckPresenceVisibilityResponse(
            visible_user_ids=[each for each in asked if each in visible]
        )

    async def ListVisibleContacts(
        self, input_message: user_pb2.ListVisibleContactsRequest
    ) -> user_pb2.ListVisibleContactsResponse:
        """Return a person's contacts, by whether their presence may be seen."""
        user_id = parse_id(input_message.user_id, "user_id")
        among = _ids(input_message.among, "among")
        wanted = input_message.page_size
        if wanted < 0:
            raise invalid({"page_size": "must not be negative"})
        contacts, next_token = await self._relations.visible_contacts(
            user_id, among, min(wanted or TARGETS_MAX, TARGETS_MAX), input_message.page_token
        )
        return user_pb2.ListVisibleContactsResponse(
            visible_user_ids=[each for each, visible in contacts.items() if visible],
            hidden_user_ids=[each for each, visible in contacts.items() if not visible],
            next_page_token=next_token,
        )

    async def ExportUserData(
        self, input_message: common_pb2.ExportUserDataRequest
    ) -> AsyncIterator[common_pb2.DataRecord]:
        """Give all that is held about a person."""
        user_id = parse_id(input_message.user_id, "user_id")
        for kind, row in await self._relations.held(user_id):
            yield common_pb2.DataRecord(source="user", kind=kind, json=row)


def _person() -> str:
    """Return the id of the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    return parse_id(current_actor().person, "x-whispr-actor")


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
    if standing.unwanted:
        return "privacy"
    if message_type == MessageType.SYSTEM and not current_actor().is_service:
        return "forbidden"
    return ""


def _why_not(standing: Standing, action: Action) -> str:
    if standing.role is None:
        return "not_a_member"
    if action is not Action.WRITE:
        return "forbidden"
    if standing.blocked:
        return "blocked"
    if standing.unwanted:
        return "privacy"
    return "muted" if standing.muted else "forbidden"


def _profile(person: Person) -> user_pb2.Profile:
    """A profile as the caller may see it: settings are their owner's and services' to know."""
    profile = user_pb2.Profile(
        id=person.id,
        username=person.username,
        display_name=person.display_name,
        created_at=person.created_at,
        bio=person.bio,
        avatar_media_id=person.avatar_media_id or "",
        status_text=person.status_text,
    )
    actor = current_actor()
    if actor.is_service or actor.user_id == person.id:
        profile.locale = person.locale
        profile.time_zone = person.time_zone
        profile.message_privacy = person.message_privacy
        profile.presence_privacy = person.presence_privacy
    return profile


def _contact(known: Known, person: Person) -> user_pb2.Contact:
    return user_pb2.Contact(profile=_profile(person), added_at=known.added_at, mutual=known.mutual)
