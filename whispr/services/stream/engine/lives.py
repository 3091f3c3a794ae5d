"""The streams that are live in this process, and how a source becomes one.

    async with lives.source(stream_id, SourceOptions(kind="whip")) as feed:
        feed.opus(payload, timestamp, lost=0)             # packets, as RTP brings them
        await feed.container(chunks, "webm")              # bytes of a container, as HTTP or a WebSocket brings them

The block is cancelled when the stream ends, or when another source takes over; `feed.reason` then says why, and the
block simply ends. A stream whose source has gone goes on in silence for the grace period, then ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from whispr.audio.packets import Quality
from whispr.services.stream.engine.live import Live, Sound


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """One source, and what its stream allows."""

    kind: str
    """`whip`, `icecast`, `websocket`, …"""
    takeover: bool | None = None
    """Whether it takes the place of a source that is connected (else it is refused); None: as the node is set."""
    grace_s: float | None = None
    """How long the stream goes on without it; None: as the node is set."""
    top: Quality | None = None
    """The stream's highest rendition."""
    sound: Sound | None = None
    """What the stream begins with."""


class Feed(Protocol):
    """One source's way in."""

    @property
    def live(self) -> Live:
        """The stream it feeds."""

    @property
    def reason(self) -> str:
        """Why its block was cancelled; empty while it was not."""

    def opus(self, data: bytes, timestamp: int, *, lost: int = 0) -> None:
        """Take an Opus packet, in order. `timestamp` in 1/48000 s, without wraps; `lost`: packets before it.

        What is no Opus packet counts as lost.
        """

    async def container(self, chunks: AsyncIterator[bytes], form: str) -> None:
        """Take a container's bytes to their end; waits where they come faster than they are heard.

        Raises INVALID_ARGUMENT (unsupported_media, malformed_media).
        """


class Hooks(Protocol):
    """What others do when something happens to a stream. Called in order, one at a time for each stream."""

    async def started(self, live: Live) -> None:
        """The first source has connected."""

    async def source_changed(self, live: Live) -> None:
        """A source has connected or gone: `live.source` says which."""

    async def ended(self, live: Live) -> None:
        """It is live no more: `live.reason` says why (stopped, source_gone, failed, shutdown)."""


class Lives(Protocol):
    """The live streams of a process."""

    def get(self, stream_id: str) -> Live | None:
        """Find a stream that is live here."""

    def __iter__(self) -> Iterator[Live]: ...

    def source(self, stream_id: str, options: SourceOptions) -> AbstractAsyncContextManager[Feed]:
        """Connect a source.

        Raises FAILED_PRECONDITION (source_connected), RESOURCE_EXHAUSTED (too_many_streams).
        """

    def end(self, stream_id: str, reason: str) -> None:
        """End a stream, if it is live here."""
