"""Who sees that somebody is there: presence, as blocks and people's own settings have it.

Two questions, both for the user service to answer, and both asked again when it says that something between two
people has changed (a block, a contact, a setting); that news comes over the bus, at most once, so after a time
without it everything is asked again.

- *Is a person shown on a conversation's topic?* One broadcast goes to everybody there, so it is one answer for all:
  in a direct conversation what the person shows the other, elsewhere what they show everyone. A person who is not
  shown is not tracked. `Statuses` in `channels` holds the answer for each joined channel.
- *Whose presence does a person follow?* On `user:<id>` a client sees, beside its own devices, which of its contacts
  are there. Every node knows all presences (`whispr.realtime.replication`), so this only has to know who follows
  whom: `_Viewer` holds a connected person's contacts and which of them show themselves, and what happens on the
  topic `user:<contact>` is passed on to those who follow it.

When in doubt nobody is shown: while the user service is away, whoever joins neither is seen nor sees contacts until
it is back and something changes, or they join again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

import structlog
import trio

from whispr.conversations.permissions import Permissions
from whispr.errors import WhisprError
from whispr.realtime.hub import Hub
from whispr.realtime.link import Link
from whispr.realtime.presence import Diff, State

NOBODY = "00000000-0000-0000-0000-000000000000"
"""Somebody who is nobody's contact, and blocked by nobody."""
TOGETHER_MAX = 500
"""People in one question."""
ASKING_MAX = 4
"""Questions at a time: when everybody joins at once, being seen comes after being there."""
CHANGES_MAX = 10_000
"""Pairs of people waiting to be asked about; past it everything is asked again instead."""

FOLLOW_ATTEMPTS = 3
"""How often contacts are asked for while something changes all the time."""

log = structlog.get_logger("whispr.conversations")


class Shown(Protocol):
    """A joined conversation channel that shows its user, or does not."""

    @property
    def link(self) -> Link:
        """Its way to the client."""

    def show(self, shown: bool) -> None:
        """Track the user, or no longer."""


class _Asked:
    """A person about whom it is asked whether they are shown to everyone."""

    __slots__ = ("done", "shown")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.shown = False


class _Viewer:
    """A connected person: their contacts, whether each shows themselves, and their sockets' links."""

    __slots__ = ("contacts", "links", "user_id")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.contacts: dict[str, bool] = {}
        self.links: set[Link] = set()


class Visibility:
    """Keeps what is shown in step with what may be. One per process; `run` must be running."""

    def __init__(
        self, hub: Hub, permissions: Permissions, channels_of: Callable[[str], Iterable[Shown]]
    ) -> None:
        self._hub = hub
        self._permissions = permissions
        self._channels_of = channels_of
        """Finds the joined conversation channels of a person here."""
        self._viewers: dict[str, _Viewer] = {}
        self._followers: dict[str, set[_Viewer]] = {}
        self._changed: dict[tuple[str, str], None] = {}
        self._asking = trio.Semaphore(ASKING_MAX)
        self._together: dict[str, _Asked] = {}
        self._some = trio.Event()
        self._everything = False
        self._heard = 0
        """How often something has changed."""
        self._stirred = trio.Event()
        hub.presence.watcher = self._told

    async def follow(self, link: Link) -> None:
        """Have a link of `user:<id>` follow the user's contacts, from a first `presence_state` on."""
        user_id = link.session.user_id
        for _ in range(FOLLOW_ATTEMPTS):
            heard = self._heard
            contacts = await self._contacts(user_id)
            if heard == self._heard:
                break  # what has changed meanwhile would be told to those who follow already
        viewer = self._viewers.setdefault(user_id, _Viewer(user_id))
        viewer.links.add(link)
        self._replace(viewer, contacts)
        self.show(link)

    def show(self, link: Link) -> None:
        """Push `presence_state`: the contacts who are there and show it, and the user's own devices."""
        viewer = self._viewers.get(link.session.user_id)
        if viewer is not None:
            link.push("presence_state", self._state(viewer) | self._hub.presence_state(link.topic))

    def unfollow(self, link: Link) -> None:
        """Forget a link that ends, and with a user's last one their contacts."""
        viewer = self._viewers.get(link.session.user_id)
        if viewer is None:
            return
        viewer.links.discard(link)
        if not viewer.links:
            self._replace(viewer, {})
            del self._viewers[viewer.user_id]

    def changed(self, one: str, other: str) -> None:
        """Note that something between two people changed; twice the same person is their settings."""
        self._heard += 1
        if len(self._changed) >= CHANGES_MAX:
            self.anything_changed()
        else:
            self._changed[one, other] = None
            self._stirred.set()

    def anything_changed(self) -> None:
        """Note that changes may have been missed."""
        self._heard += 1
        self._changed.clear()
        self._everything = True
        self._stirred.set()

    async def run(self) -> None:
        """Ask again about what changed, until cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred = trio.Event()
            if self._everything:
                self._everything = False
                for user_id in {socket.session.user_id for socket in self._hub.sockets}:
                    await self._settle(user_id, user_id)
                    await self._refresh(user_id, ())
            while self._changed:
                pair = next(iter(self._changed))
                del self._changed[pair]
                await self._settle(*pair)

    async def _settle(self, one: str, other: str) -> None:
        for user_id in dict.fromkeys((one, other)):
            for channel in tuple(self._channels_of(user_id)):
                shown = await self.is_shown(user_id, channel.link.subtopic)
                channel.show(shown)
        if one == other:
            for viewer in tuple(self._followers.get(one, ())):
                await self._refresh(viewer.user_id, (one,))
        else:
            await self._refresh(one, (other,))
            await self._refresh(other, (one,))

    async def is_shown(self, user_id: str, conversation_id: str) -> bool:
        """Whether a person is shown on a conversation's topic."""
        try:
            async with self._asking:
                return await self._permissions.shows(user_id, conversation_id)
        except WhisprError as error:
            log.debug("presence_not_shown", error=str(error))
            return False

    async def is_shown_to_all(self, user_id: str) -> bool:
        """Whether a person is shown to everyone, as on the topic of a group or a room.

        Those who are asked about at the same time are asked about together: a whole room may be joining.
        """
        asked = self._together.get(user_id)
        if asked is None:
            asked = self._together[user_id] = _Asked()
            self._some.set()
        await asked.done.wait()
        return asked.shown

    async def ask(self) -> NoReturn:
        """Ask about people together until cancelled."""
        while True:
            await self._some.wait()
            asked = {user_id: self._together.pop(user_id) for user_id in list(self._together)[:TOGETHER_MAX]}
            if not self._together:
                self._some = trio.Event()
            shown: set[str] = set()
            try:
                # Whoever is shown to somebody who is nobody's contact is shown to everyone.
                shown = await self._permissions.visible(NOBODY, list(asked))
            except WhisprError as error:
                log.debug("presence_not_shown", error=str(error))
            for user_id, each in asked.items():
                each.shown = user_id in shown
                each.done.set()

    # Contacts

    async def _contacts(self, user_id: str, among: tuple[str, ...] = ()) -> dict[str, bool]:
        try:
            return await self._permissions.visible_contacts(user_id, among)
        except WhisprError as error:
            log.debug("contacts_not_followed", error=str(error))
            return {}

    async def _refresh(self, user_id: str, among: tuple[str, ...]) -> None:
        """Ask which of a connected person's contacts show themselves; tell their sockets what that changes."""
        if user_id not in self._viewers:
            return
        found = await self._contacts(user_id, among)
        viewer = self._viewers.get(user_id)
        if viewer is None:
            return
        before = self._state(viewer)
        kept = {each: shows for each, shows in viewer.contacts.items() if among and each not in among}
        self._replace(viewer, kept | found)
        after = self._state(viewer)
        joins = {each: state for each, state in after.items() if each not in before}
        leaves = {each: state for each, state in before.items() if each not in after}
        if joins or leaves:
            _push(viewer, {"joins": joins, "leaves": leaves})

    def _replace(self, viewer: _Viewer, contacts: dict[str, bool]) -> None:
        for gone in viewer.contacts.keys() - contacts.keys():
            followers = self._followers[gone]
            followers.discard(viewer)
            if not followers:
                del self._followers[gone]
        for new in contacts.keys() - viewer.contacts.keys():
            self._followers.setdefault(new, set()).add(viewer)
        viewer.contacts = contacts

    def _state(self, viewer: _Viewer) -> State:
        """Who of a person's contacts is there and shows it."""
        state: State = {}
        for each, shows in viewer.contacts.items():
            if shows and self._hub.is_present(f"user:{each}", each):
                state[each] = self._hub.presence_state(f"user:{each}")[each]
        return state

    def _told(self, topic: str, diff: Diff) -> None:
        """Pass on what happened on `user:<contact>` to those who follow the contact."""
        kind, _, user_id = topic.partition(":")
        if kind != "user":
            return
        for viewer in self._followers.get(user_id, ()):
            if viewer.contacts[user_id]:
                _push(viewer, diff)


def _push(viewer: _Viewer, diff: Diff) -> None:
    for link in tuple(viewer.links):
        link.push("presence_diff", diff)
