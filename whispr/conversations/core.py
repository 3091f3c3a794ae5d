"""The conversations of one process, put together: what messaging and chat are two faces of.

Built once per process, whichever of the two services run there. It owns the log, serves the topics
`conversation:`, `room:` and `user:`, and says what it listens to on the event bus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import trio

from whispr.conversations import expander
from whispr.conversations.announcer import Announcer
from whispr.conversations.attachments import Attachments, MediaStub
from whispr.conversations.channels import ConversationChannel
from whispr.conversations.database import Database
from whispr.conversations.domain import Limits, Message
from whispr.conversations.expiry import Expiry
from whispr.conversations.log import MessageLog
from whispr.conversations.membership import Membership
from whispr.conversations.operations import Limiter, Operations
from whispr.conversations.permissions import Metadata, Permissions
from whispr.conversations.privacy import Privacy
from whispr.conversations.regaining import Regaining, now
from whispr.conversations.reordering import Missing
from whispr.conversations.resuming import Resuming
from whispr.conversations.search_index import SearchIndex
from whispr.conversations.statuses import Statuses
from whispr.conversations.store import Store
from whispr.conversations.user_channel import UserChannel
from whispr.conversations.visibility import Visibility
from whispr.events import Consumer, Expander
from whispr.realtime.channel import ChannelFactory
from whispr.realtime.hub import Broadcast, Hub
from whispr.realtime.link import Link


class Conversations:
    """Log, reads, membership, permissions and broadcasts of one process.

    `permissions` asks the user service; tell of what changed between people with `people_changed`. Call `heard` for
    what another node broadcast, after the hub has delivered it; `whispr.peers` takes previews there and back. `media`
    is the media service's stub, called with the metadata that `metadata` makes on behalf of a person.
    `search_language` is a text search configuration of PostgreSQL. `keep_messages` keeps what deleted accounts have
    sent. `on_status` is told of statuses chosen.
    """

    def __init__(
        self,
        db: Database,
        *,
        hub: Hub,
        permissions: Permissions,
        limiter: Limiter,
        limits: Limits,
        media: MediaStub | None = None,
        metadata: Metadata = lambda _: (),
        search_language: str = "simple",
        keep_messages: bool = False,
        on_status: Callable[[str, str], None] = lambda _user_id, _status: None,
    ) -> None:
        self.db = db
        self.hub = hub
        self.limits = limits
        self.limiter = limiter
        self.permissions = permissions
        self.store = Store(db, limits)
        self.membership = Membership(db, limits)
        self.resuming = Resuming(db, hub, limits)
        self.announcer = Announcer(hub, self.store, permissions, self.resuming.forget)
        self._regaining = Regaining(db, hub)
        hub.keep_order(Missing(db))
        hub.on_filled = self.announcer.heard
        self._watchers: list[Callable[[Sequence[Message]], None]] = []
        self.log = MessageLog(db, on_committed=self._committed, settling=hub.corked, on_stored=db.ring)
        self.operations = Operations(
            log=self.log,
            store=self.store,
            membership=self.membership,
            permissions=permissions,
            limiter=limiter,
            announcer=self.announcer,
            resuming=self.resuming,
            limits=limits,
            db=db,
            language=search_language,
        )
        self.attachments = Attachments(db, self.announcer, media, metadata)
        self.privacy = Privacy(db, self.announcer, keep_messages=keep_messages)
        self.search_index = SearchIndex(db, search_language)
        self.expiry = Expiry(db, self.announcer)
        self.expanders: Mapping[str, Expander] = {expander.NAME: expander.expand}
        """What makes events of the batches that appends put into the outbox."""
        statuses = Statuses(on_status)
        self.visibility = Visibility(hub, permissions, statuses.conversations_of)

        def conversation(link: Link) -> ConversationChannel:
            return ConversationChannel(link, self.operations, statuses, self.visibility)

        self.channels: Mapping[str, ChannelFactory] = {
            "conversation": conversation,
            "room": conversation,
            "user": lambda link: UserChannel(link, self.operations, statuses, self.visibility),
        }

    @property
    def consumers(self) -> Sequence[Consumer]:
        """What it listens to on the event bus."""
        return (self.search_index.consumer, self.attachments.consumer, self.privacy.consumer)

    def watch(self, watcher: Callable[[Sequence[Message]], None]) -> None:
        """Call `watcher` with new messages of this process once announced; it must neither wait nor raise."""
        self._watchers.append(watcher)

    def _committed(self, messages: Sequence[Message]) -> None:
        self.announcer.committed(messages)
        for watcher in self._watchers:
            watcher(messages)

    def people_changed(self, one: str, other: str) -> None:
        """Ask again what may pass between two people; twice the same person is one who changed their settings."""
        self.announcer.people_changed(one, other)
        self.visibility.changed(one, other)

    def missed(self, topic: str, since: datetime) -> None:
        """Make good what broadcasts of a topic, lost since then, would have told."""
        self.resuming.missed(topic)
        self._regaining.missed(since, topic)

    def missed_changes(self, since: datetime | None = None) -> None:
        """Ask everything again, as after a time in which nothing was heard of changes: since then, or just now."""
        self.announcer.missed_changes()
        self.visibility.anything_changed()
        self.resuming.forget_all()
        self._regaining.missed(since or now())

    def heard(self, broadcast: Broadcast) -> None:
        """Take note of what another node broadcast."""
        self.announcer.heard(broadcast)

    async def drain(self) -> None:
        """Wait until every message taken is written."""
        await self.log.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write messages, send previews and do what is due until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.log.run)
            await nursery.start(self.resuming.run)
            nursery.start_soon(self.announcer.run)
            nursery.start_soon(self._regaining.run)
            nursery.start_soon(self.operations.deliveries.run)
            nursery.start_soon(self.operations.schedule.run)
            nursery.start_soon(self.expiry.run)
            nursery.start_soon(self.attachments.run)
            nursery.start_soon(self.search_index.run)
            nursery.start_soon(self.visibility.run)
            nursery.start_soon(self.visibility.ask)
            task_status.started()
