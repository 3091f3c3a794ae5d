"""What the RPCs of ChatService are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whispr.conversations.core import Conversations
from whispr.conversations.domain import Kind
from whispr.conversations.editing import Editing
from whispr.conversations.invitations import Invitations
from whispr.conversations.moderation import Moderation
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.room_lists import RoomLists
from whispr.conversations.room_rows import RoomMember
from whispr.conversations.room_rules import Person, Room, RoomLimits, RoomType, check_moderates
from whispr.conversations.rooms import Rooms
from whispr.conversations.sanctions import Sanctions
from whispr.conversations.topics import topic_of
from whispr.errors import denied
from whispr.identity import current_actor
from whispr.online import Online
from whispr.services.chat import wire
from whispr.services.chat.activity import Activity
from whispr.services.chat.subscriptions import Subscriptions
from whispr.v1 import chat_pb2 as pb


def topic(room: Room) -> str:
    """Name the topic of a room's events."""
    return topic_of(Kind.DIRECT if room.type is RoomType.DIRECT else Kind.ROOM, room.id)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that acts on rooms in one process."""

    core: Conversations
    limits: RoomLimits
    online: Online
    rooms: Rooms
    lists: RoomLists
    invitations: Invitations
    sanctions: Sanctions
    moderation: Moderation
    editing: Editing
    announcer: RoomAnnouncer
    subscriptions: Subscriptions
    activity: Activity

    async def shown(self, rooms: Sequence[Room]) -> list[pb.Room]:
        """Build rooms with how many have them open now."""
        counts = await self.online.counts([topic(room) for room in rooms])
        return [wire.room_pb(room, counts[topic(room)]) for room in rooms]

    async def members(self, members: Sequence[RoomMember]) -> list[pb.RoomMember]:
        """Build members with who of them is connected now, as far as they show that to the caller."""
        visible = {member.user_id for member in members}
        viewer_id = current_actor().user_id
        if viewer_id:
            visible = await self.core.permissions.visible(viewer_id, visible)
        connected = await self.online.shown(visible)
        built = []
        for member in members:
            shown = wire.member_pb(member, member.user_id in connected)
            if member.user_id not in visible:
                shown.ClearField("last_seen")
            built.append(shown)
        return built

    async def moderated(self, person: Person, room_id: str) -> Room:
        """Return a room that the person moderates. Raises NOT_FOUND, PERMISSION_DENIED."""
        room = (await self.rooms.see(person, room_id)).room
        if room.type is RoomType.DIRECT:
            raise denied("a direct conversation is between its two people")
        check_moderates(room.role, platform=person.moderates_people)
        return room

    async def readable(self, person: Person, room_id: str) -> Room:
        """Return a room that the person may look into: a member, or a platform moderator if it is not direct.

        Raises NOT_FOUND, PERMISSION_DENIED (not_a_member).
        """
        room = (await self.rooms.see(person, room_id)).room
        if room.role is None and not person.moderates_people:
            raise denied("only members of the room may do this", reason="not_a_member")
        return room
