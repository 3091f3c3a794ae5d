"""What nodes say to each other about live streams, over core NATS. Pure.

    whispr.streams.wants              a node that has listeners → the node that has the source (all hear it)
    whispr.streams.taken              a node whose source goes on with a stream → the node that had it
    whispr.streams.<id>.state         the node that has the source → nodes with listeners
    whispr.streams.<id>.<rendition>   the same: the sound

All is at most once. A want is repeated while it lasts, a state is whole, and a hole in the sound is filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.audio.wallclock import Note
from whispr.services.stream.engine.live import Levels, Live, Sound, Source

WANTS: Final = "whispr.streams.wants"
TAKEN: Final = "whispr.streams.taken"
"""Its payload is the stream's id."""
SOUND_BYTES_MAX: Final = 512 * 1024
"""Of packets in one message: half of what the bus carries at most."""

Ticks = Annotated[int, msgspec.Meta(ge=0)]
"""A place on a stream's clock."""

RENDITIONS: Final[Mapping[str, Rendition]] = {
    rendition.name: rendition
    for rendition in (Rendition(codec, quality) for codec in Codec for quality in Quality)
}


def state_subject(stream_id: str) -> str:
    """Return the subject of a stream's states."""
    return f"whispr.streams.{stream_id}.state"


def sound_subject(stream_id: str, rendition: Rendition) -> str:
    """Return the subject of a rendition's packets."""
    return f"whispr.streams.{stream_id}.{rendition.name}"


class Want(msgspec.Struct, array_like=True, frozen=True):
    """What a node's listeners hear."""

    stream_id: str
    renditions: list[str]
    anew: list[str] = []
    """Those of them that begin, and want what there was lately."""


class Packets(msgspec.Struct, array_like=True, frozen=True):
    """Packets of one rendition that follow each other, equally long."""

    pts: Ticks
    duration: Annotated[int, msgspec.Meta(ge=1, le=CLOCK_HZ)]
    data: list[bytes]

    def packets(self) -> list[Packet]:
        """Return them one by one."""
        return [
            Packet(self.pts + number * self.duration, self.duration, data)
            for number, data in enumerate(self.data)
        ]


class State(msgspec.Struct, array_like=True, frozen=True):
    """A stream as the node has it whose source it is."""

    started_at: Annotated[datetime, msgspec.Meta(tz=True)]
    top: Quality
    now_pts: Ticks
    levels: Levels
    source: Source
    sound: Sound
    paused: bool
    ended: bool = False
    reason: str = ""
    clock: tuple[Note, ...] = ()

    def into(self, live: Live) -> None:
        """Show it at the listeners' end."""
        live.top = self.top
        live.levels, live.source = self.levels, self.source
        live.sound, live.paused = self.sound, self.paused
        live.now_pts = max(live.now_pts, self.now_pts)
        live.clock.notes = self.clock


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_want = msgspec.msgpack.Decoder(Want).decode
decode_packets = msgspec.msgpack.Decoder(Packets).decode
decode_state = msgspec.msgpack.Decoder(State).decode


def state_of(live: Live) -> State:
    """Describe a stream that is live here."""
    return State(
        live.started_at.astimezone(UTC),
        live.top,
        live.now_pts,
        live.levels,
        live.source,
        live.sound,
        live.paused,
        live.ended.is_set(),
        live.reason,
        live.clock.notes,
    )


def parcels(packets: Sequence[Packet]) -> list[Packets]:
    """Put packets that follow each other into as few messages as may be."""
    made: list[Packets] = []
    size = 0
    for packet in packets:
        last = made[-1] if made else None
        fits = (
            last is not None
            and last.duration == packet.duration
            and size + len(packet.data) <= SOUND_BYTES_MAX
        )
        if last is None or not fits or last.pts + len(last.data) * last.duration != packet.pts:
            last, size = Packets(packet.pts, packet.duration, []), 0
            made.append(last)
        last.data.append(packet.data)
        size += len(packet.data)
    return made
