"""The user service: its parts, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from whispr.conversations.database import Database
from whispr.conversations.domain import Limits
from whispr.events import Consumer
from whispr.realtime.channel import ChannelFactory
from whispr.services.user.servicer import BlocksChanged, UserServicer
from whispr.services.user.store import Users


class UserService:
    """UserService of one process."""

    consumers: Sequence[Consumer] = ()
    """Listens to no events."""

    def __init__(
        self, db: Database, *, limits: Limits, on_blocks_changed: BlocksChanged = lambda _user, _target: None
    ) -> None:
        self.servicer = UserServicer(Users(db), limits, on_blocks_changed)
        self.channels: Mapping[str, ChannelFactory] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing more: this service has no background jobs."""
        task_status.started()
