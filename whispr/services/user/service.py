"""The user service: its parts, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Limits
from whispr.events import Consumer
from whispr.realtime.channel import ChannelFactory
from whispr.services.user.neighbours import ALONE, Neighbours
from whispr.services.user.relations import ERASURE, Relations
from whispr.services.user.servicer import BlocksChanged, UserServicer
from whispr.services.user.store import Users


@dataclass(frozen=True, slots=True)
class UserLimits:
    """How many people one person may block or know; 0 lifts a limit."""

    blocks: int = 5000
    contacts: int = 5000


class UserService:
    """UserService of one process."""

    def __init__(
        self,
        db: Postgres,
        *,
        limits: Limits,
        own_limits: UserLimits = UserLimits(),  # frozen
        neighbours: Neighbours = ALONE,
        on_blocks_changed: BlocksChanged = lambda _user, _target: None,
    ) -> None:
        relations = Relations(db, blocks_max=own_limits.blocks, contacts_max=own_limits.contacts)
        self.servicer = UserServicer(Users(db), relations, limits, neighbours, on_blocks_changed)
        self.channels: Mapping[str, ChannelFactory] = {}
        self.consumers: Sequence[Consumer] = (
            Consumer(ERASURE, ("user.events.account_deleted",), relations.erase),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing more: this service has no background jobs."""
        task_status.started()
