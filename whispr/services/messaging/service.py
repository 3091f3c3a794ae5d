"""The messaging service: its parts, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from whispr.conversations.database import Database
from whispr.conversations.domain import Limits
from whispr.conversations.log import MessageLog
from whispr.conversations.membership import Membership
from whispr.conversations.permissions import Permissions
from whispr.conversations.store import Store
from whispr.events import Consumer
from whispr.realtime.channel import ChannelFactory
from whispr.realtime.hub import Broadcast, Hub
from whispr.services.messaging.announcer import Announcer
from whispr.services.messaging.channels import ConversationChannel, Statuses, UserChannel
from whispr.services.messaging.operations import Limiter, Operations
from whispr.services.messaging.servicer import MessagingServicer


class MessagingService:
    """MessagingService of one process, with the topics it serves on the process's hub.

    `permissions` asks the user service; tell it of changed blocks with `permissions.forget`. Call `heard` for
    every broadcast of another node, after the hub has delivered it.
    """

    consumers: Sequence[Consumer] = ()
    """Listens to no events."""

    def __init__(
        self, db: Database, *, hub: Hub, permissions: Permissions, limiter: Limiter, limits: Limits
    ) -> None:
        store = Store(db, limits)
        self._announcer = Announcer(hub, store, permissions)
        self.permissions = permissions
        self.log = MessageLog(db, on_committed=self._announcer.committed, settling=hub.corked)
        self.operations = Operations(
            log=self.log,
            store=store,
            membership=Membership(db, limits),
            permissions=permissions,
            limiter=limiter,
            announcer=self._announcer,
            limits=limits,
        )
        statuses = Statuses()
        self.servicer = MessagingServicer(self.operations)
        self.channels: Mapping[str, ChannelFactory] = {
            "conversation": lambda link: ConversationChannel(link, self.operations, statuses),
            "user": lambda link: UserChannel(link, self.operations, statuses),
        }

    def heard(self, broadcast: Broadcast) -> None:
        """Take note of what another node broadcast."""
        self._announcer.heard(broadcast)

    async def drain(self) -> None:
        """Wait until every message taken is written."""
        await self.log.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write messages and send previews until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.log.run)
            nursery.start_soon(self._announcer.run)
            task_status.started()
