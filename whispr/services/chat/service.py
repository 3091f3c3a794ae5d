"""The chat service: the face of conversations to people in rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from whispr.conversations.core import Conversations
from whispr.conversations.editing import Editing
from whispr.conversations.invitations import Invitations
from whispr.conversations.moderation import Moderation
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.room_lists import RoomLists
from whispr.conversations.room_rules import RoomLimits
from whispr.conversations.rooms import Rooms
from whispr.conversations.sanctions import Sanctions
from whispr.events import Consumer
from whispr.online import Online
from whispr.realtime.channel import ChannelFactory
from whispr.services.chat.activity import Activity
from whispr.services.chat.messages import MessageHandlers
from whispr.services.chat.moderating import ModerationHandlers
from whispr.services.chat.parts import Parts
from whispr.services.chat.personal import PersonalData
from whispr.services.chat.rooms import RoomHandlers
from whispr.services.chat.subscriptions import Subscriptions
from whispr.v1.chat_grpc import ChatServiceServicer


class ChatServicer(RoomHandlers, MessageHandlers, ModerationHandlers, ChatServiceServicer):
    """ChatService's RPCs: the protos ⇄ what acts on rooms. The actor is the verified caller, never a field."""

    def __init__(self, parts: Parts, personal: PersonalData) -> None:
        super().__init__()
        self._parts = parts
        self._personal = personal


class ChatService:
    """ChatService of one process, on the conversations of that process, which somebody else runs.

    Tell it of ended sessions with `session_ended`, and `drain` it before the servers: its streams never end by
    themselves.
    """

    channels: Mapping[str, ChannelFactory] = {}
    """The topics `room:` are the conversations' own."""

    def __init__(self, core: Conversations, *, online: Online, limits: RoomLimits) -> None:
        pages = core.limits
        announcer = RoomAnnouncer(core.announcer, core.hub)
        self._activity = Activity(core.db)
        self.subscriptions = Subscriptions(
            core.hub, queue_len_max=limits.event_queue_len, per_user=limits.subscriptions
        )
        personal = PersonalData(core.db, limits, announcer)
        parts = Parts(
            core=core,
            limits=limits,
            online=online,
            rooms=Rooms(core.db, limits),
            lists=RoomLists(core.db, limits, pages),
            invitations=Invitations(core.db, limits, pages),
            sanctions=Sanctions(core.db, limits, pages),
            moderation=Moderation(core.db, limits, pages),
            editing=Editing(core.db, core.announcer, pages),
            announcer=announcer,
            subscriptions=self.subscriptions,
            activity=self._activity,
        )
        self.servicer = ChatServicer(parts, personal)
        self.consumers: Sequence[Consumer] = (self._activity.consumer, personal.consumer)

    def session_ended(self, session_id: str, reason: str) -> None:
        """End what a session follows."""
        self.subscriptions.session_ended(session_id, reason)

    def drain(self) -> None:
        """End every stream."""
        self.subscriptions.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Count what is to be counted, until cancelled."""
        task_status.started()
        await self._activity.run()
