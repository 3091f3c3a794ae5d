"""HLS playlists: the multivariant one, live media playlists with low latency, and those of recordings. Pure.

Sources: RFC 8216bis (draft 18) for tags, blocking reload (6.2.5.2) and delta updates (6.2.5.1); Apple's HLS
authoring specification for what must be there. A live playlist serves old players, too: they leave out what they do
not know.

Everything a playlist names is relative to it:

    master.m3u8                       <session>/<rendition>/live.m3u8
    <session>/<rendition>/live.m3u8   <prefix>init.mp4, <prefix><msn>.m4s, <prefix><msn>.<part>.m4s
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import Final
from urllib.parse import parse_qsl

from whispr.audio.fmp4 import CODECS
from whispr.audio.packets import CLOCK_HZ, Rendition
from whispr.audio.segments import PART, SEGMENT, Place, Segment, Segmenter
from whispr.audio.wallclock import WallClock
from whispr.errors import invalid

CONTENT_TYPE: Final = "application/vnd.apple.mpegurl"
VERSION: Final = 9
"""EXT-X-SKIP asks for it (RFC 8216bis, section 8)."""

TARGET_S: Final = ceil(SEGMENT / CLOCK_HZ)
"""EXT-X-TARGETDURATION: no segment, rounded to the nearest second, is longer."""
PART_HOLD_BACK_S: Final = 3 * PART / CLOCK_HZ
"""How far from the end a player keeps that plays parts; three of them are what is recommended (4.4.3.8)."""
HOLD_BACK_S: Final = 3 * TARGET_S
"""How far from the end others keep, at least (4.4.3.8)."""
SKIP_UNTIL_S: Final = 6 * TARGET_S
"""A delta update leaves out what is older; never less than six target durations (4.4.3.8)."""
AHEAD_MAX: Final = 2
"""Segments in the future that a player may wait for; more is an error of its own (6.2.5.2)."""

ON_TIME: Final = WallClock()
"""Of a stream whose clock is right."""

_LISTED_PARTS: Final = 2
"""Whole segments, from the end, whose parts are listed, beside the growing one's: less than three target durations
(4.4.4.9)."""
_QUERIES_KEPT: Final = 256
_FRAGMENT_BYTES: Final = 250
"""What a part's boxes take beside the sound: 172 bytes, and 4 for each of 16 packets."""


@dataclass(frozen=True, slots=True)
class Directives:
    """What a player asks of a live playlist by its query (RFC 8216bis, 6.2.5)."""

    msn: int | None = None
    """Wait until the playlist has this segment …"""
    part: int | None = None
    """… or this part of it."""
    skip: bool = False
    """Leave out what the player has."""


@lru_cache(_QUERIES_KEPT)
def read_directives(query: str) -> Directives:
    """Read `_HLS_msn`, `_HLS_part` and `_HLS_skip`; what else is in the query is not looked at.

    Every listener asks for the same parts with the same words, which are read once. Raises INVALID_ARGUMENT.
    """
    if "_HLS_" not in query:
        return Directives()
    given = dict(parse_qsl(query, keep_blank_values=True))
    msn, part, skip = (_count(given, "_HLS_msn"), _count(given, "_HLS_part"), given.get("_HLS_skip", ""))
    if part is not None and msn is None:
        raise invalid({"_HLS_part": "means nothing without _HLS_msn"})
    if skip not in ("", "YES", "v2"):
        raise invalid({"_HLS_skip": "YES or v2"})
    return Directives(msn, part, bool(skip))


def _count(given: dict[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise invalid({name: "a whole number, 0 or more"})
    return int(text)


@dataclass(frozen=True, slots=True)
class Report:
    """How far another rendition is, so that a player can switch to it without asking first (4.4.5.4)."""

    name: str
    last: Place


def master(renditions: Sequence[Rendition], session: str) -> bytes:
    """Return a multivariant playlist of renditions, the one to begin with first."""
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{VERSION}", "#EXT-X-INDEPENDENT-SEGMENTS"]
    for rendition in renditions:
        average = bandwidth_bps(rendition)
        lines += [
            f"#EXT-X-STREAM-INF:BANDWIDTH={average * 5 // 4},AVERAGE-BANDWIDTH={average},"
            f'CODECS="{CODECS[rendition.codec]}",STABLE-VARIANT-ID="{rendition.name}"',
            f"{session}/{rendition.name}/live.m3u8",
        ]
    return _text(lines)


def bandwidth_bps(rendition: Rendition) -> int:
    """Return what a rendition takes on the wire, with the boxes around it."""
    return rendition.bitrate_bps + _FRAGMENT_BYTES * 8 * CLOCK_HZ // PART


def live(
    segmenter: Segmenter,
    began_at: datetime,
    *,
    prefix: str,
    reports: Iterable[Report] = (),
    skip: bool = False,
    clock: WallClock = ON_TIME,
) -> bytes:
    """Return the media playlist of a live rendition, as far as it is; there must be a segment.

    `began_at`: when the stream's clock was 0. `prefix`: before the names of files. `skip`: as a delta update, if that
    leaves out anything. `clock`: how far the stream's clock has been off since then.
    """
    segments = list(segmenter.segments)
    end = segments[-1].start + segments[-1].duration
    lines = [*_live_head(), f"#EXT-X-MEDIA-SEQUENCE:{segments[0].msn}"]
    skipped = (
        sum(end - each.start - each.duration > SKIP_UNTIL_S * CLOCK_HZ for each in segments) if skip else 0
    )
    if skipped:
        lines.append(f"#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped}")
    else:
        lines.append(f'#EXT-X-MAP:URI="{prefix}init.mp4"')
    first_listed = segments[-1].msn - _LISTED_PARTS + segments[-1].whole
    for segment in segments[skipped:]:
        parts = segment.msn >= first_listed and not segmenter.ended
        lines += _segment_lines(segment, _moment(began_at, segment.start, clock), prefix, parts=parts)
    lines += _tail(segmenter, prefix, reports)
    return _text(lines)


def _live_head() -> list[str]:
    control = (
        f"CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL={SKIP_UNTIL_S:.1f},"
        f"HOLD-BACK={HOLD_BACK_S:.1f},PART-HOLD-BACK={PART_HOLD_BACK_S:.2f}"
    )
    return [
        "#EXTM3U",
        f"#EXT-X-VERSION:{VERSION}",
        f"#EXT-X-TARGETDURATION:{TARGET_S}",
        f"#EXT-X-SERVER-CONTROL:{control}",
        f"#EXT-X-PART-INF:PART-TARGET={PART / CLOCK_HZ:.2f}",
        "#EXT-X-INDEPENDENT-SEGMENTS",
    ]


def _segment_lines(segment: Segment, moment: str, prefix: str, *, parts: bool) -> list[str]:
    lines = [f"#EXT-X-PROGRAM-DATE-TIME:{moment}"]
    if parts:
        lines += [
            f"#EXT-X-PART:DURATION={_seconds(part.duration)},INDEPENDENT=YES,"
            f'URI="{prefix}{segment.msn}.{index}.m4s"{"" if part.data else ",GAP=YES"}'
            for index, part in enumerate(segment.parts)
        ]
    if not segment.whole:
        return lines
    if segment.gap:
        lines.append("#EXT-X-GAP")
    return [*lines, f"#EXTINF:{_seconds(segment.duration)},", f"{prefix}{segment.msn}.m4s"]


def _tail(segmenter: Segmenter, prefix: str, reports: Iterable[Report]) -> list[str]:
    """What comes after the segments: what will come next, and where other renditions are; or the end."""
    if segmenter.ended:
        return ["#EXT-X-ENDLIST"]
    assert segmenter.next is not None, "it has begun"
    msn, part = segmenter.next
    lines = [f'#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{prefix}{msn}.{part}.m4s"']
    for report in reports:
        last_msn, last_part = report.last
        lines.append(
            f'#EXT-X-RENDITION-REPORT:URI="../{report.name}/live.m3u8",LAST-MSN={last_msn},LAST-PART={last_part}'
        )
    return lines


def recorded(durations: Sequence[int], began_at: datetime | None = None) -> bytes:
    """Return the playlist of a recording: files 0.m4s, 1.m4s, … of these durations in samples."""
    longest = max(durations, default=SEGMENT)
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{max(1, round(longest / CLOCK_HZ))}",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        '#EXT-X-MAP:URI="init.mp4"',
    ]
    start = 0
    for number, duration in enumerate(durations):
        if began_at is not None:
            lines.append(f"#EXT-X-PROGRAM-DATE-TIME:{_moment(began_at, start)}")
        lines += [f"#EXTINF:{_seconds(duration)},", f"{number}.m4s"]
        start += duration
    return _text([*lines, "#EXT-X-ENDLIST"])


def recorded_master(rendition: Rendition, average_bps: int, peak_bps: int) -> bytes:
    """Return the multivariant playlist of a recording, which has one variant beside it, `recording.m3u8`."""
    return _text(
        [
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            "#EXT-X-INDEPENDENT-SEGMENTS",
            f"#EXT-X-STREAM-INF:BANDWIDTH={peak_bps},AVERAGE-BANDWIDTH={average_bps},"
            f'CODECS="{CODECS[rendition.codec]}"',
            "recording.m3u8",
        ]
    )


def _seconds(samples: int) -> str:
    return f"{samples / CLOCK_HZ:.5f}"


def _moment(began_at: datetime, samples: int, clock: WallClock = ON_TIME) -> str:
    """Return the time of a place on the stream's clock, to the millisecond (RFC 8216bis, 4.4.4.6)."""
    at = began_at.astimezone(UTC) + timedelta(seconds=samples / CLOCK_HZ + clock.behind_s(samples))
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(lines: Sequence[str]) -> bytes:
    return "\n".join([*lines, ""]).encode()
