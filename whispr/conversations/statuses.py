"""What people show of themselves while they are connected, and on which channels."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from whispr.realtime.link import Link

STATUSES = ("online", "away", "busy", "offline")
"""What a person may show; whoever shows offline is not in any presence."""


class Showing(Protocol):
    """A channel that shows its user, or would if it might."""

    online_at: datetime
    shown: bool
    """Whether the others there may see the user."""

    @property
    def link(self) -> Link:
        """Its way to the client."""


class Shown(Showing, Protocol):
    """A conversation's channel, where what may be shown can change."""

    def show(self, shown: bool) -> None:
        """Show the user to the others here, or no longer."""


class Statuses:
    """The status that each connected user of this node has chosen, and the channels that show it."""

    def __init__(self, on_status: Callable[[str, str], None]) -> None:
        self._on_status = on_status
        self._chosen: dict[str, str] = {}
        self._showing: dict[str, set[Showing]] = {}
        self._conversations: dict[str, set[Shown]] = {}

    def show(self, channel: Showing) -> None:
        """Make the channel's user present on its topic, unless they chose to be offline."""
        user_id = channel.link.session.user_id
        self._showing.setdefault(user_id, set()).add(channel)
        self._apply(channel, self._chosen.get(user_id, "online"))

    def show_conversation(self, channel: Shown) -> None:
        """Do the same for a conversation's channel, which `conversations_of` finds from then on."""
        self._conversations.setdefault(channel.link.session.user_id, set()).add(channel)
        self.show(channel)

    def conversations_of(self, user_id: str) -> list[Shown]:
        """Return the conversation channels of a user that show them, or would if they might."""
        return list(self._conversations.get(user_id, ()))

    def again(self, channel: Showing) -> None:
        """Show a channel's user as they are to be shown now."""
        user_id = channel.link.session.user_id
        if channel in self._showing.get(user_id, ()):
            self._apply(channel, self._chosen.get(user_id, "online"))

    def hide(self, channel: Showing) -> None:
        """Forget a channel that ends; with a user's last one, their status."""
        user_id = channel.link.session.user_id
        conversations = self._conversations.get(user_id)
        if conversations is not None:
            conversations.discard(channel)
            if not conversations:
                del self._conversations[user_id]
        showing = self._showing.get(user_id, set())
        showing.discard(channel)
        if not showing:
            self._showing.pop(user_id, None)
            self._chosen.pop(user_id, None)

    def choose(self, user_id: str, status: str) -> None:
        """Show another status on every channel of the user."""
        self._chosen[user_id] = status
        self._on_status(user_id, status)
        for channel in self._showing.get(user_id, ()):
            self._apply(channel, status)

    def _apply(self, channel: Showing, status: str) -> None:
        if status == "offline" or not channel.shown:
            channel.link.untrack()
        else:
            channel.link.track({"status": status, "online_at": channel.online_at})
