"""What listening asks of a stream that is live in this process, wherever its sound comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import trio

from whispr.audio.packets import Packet, Rendition

OnPackets = Callable[[Sequence[Packet]], None]
"""Is given each batch, about 100 ms, in the event loop; it must neither wait nor raise."""


class Subscription(Protocol):
    """One rendition that somebody takes."""

    def close(self) -> None:
        """Take no more. The encoder stops some seconds after its last subscription."""


class Live(Protocol):
    """A stream that is live here."""

    @property
    def stream_id(self) -> str:
        """Which stream."""

    @property
    def started_at(self) -> datetime:
        """When its clock was 0."""

    @property
    def ended(self) -> trio.Event:
        """Set once no packet comes any more."""

    def subscribe(self, rendition: Rendition, on_packets: OnPackets) -> Subscription:
        """Hear a rendition from now on; its encoder starts for the first who does."""

    def recent(self, rendition: Rendition) -> Sequence[Packet]:
        """Return the last seconds of a rendition, what of them there is."""


Find = Callable[[str], Live | None]
"""Find a stream that is live in this process."""
