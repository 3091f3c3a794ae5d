"""The messaging service: the face of conversations to people and services that send messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from whispr.conversations.core import Conversations
from whispr.events import Consumer
from whispr.realtime.channel import ChannelFactory
from whispr.services.messaging.servicer import MessagingServicer


class MessagingService:
    """MessagingService of one process, on the conversations of that process, which somebody else runs."""

    def __init__(self, conversations: Conversations) -> None:
        self.servicer = MessagingServicer(conversations)
        self.channels: Mapping[str, ChannelFactory] = {}
        self.consumers: Sequence[Consumer] = ()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there until cancelled."""
        task_status.started()
        await trio.sleep_forever()
