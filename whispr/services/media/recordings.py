"""Looks into sound and film, in the child process of `examine`: length, loudness, size, a poster."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whispr.services.media import types
from whispr.services.media.findings import Bounds, Refused, Result, check_size
from whispr.services.media.pictures import thumbnails
from whispr.services.media.strip import blank_film

if TYPE_CHECKING:
    import av

PEAKS = 64
"""How many values the shape of loudness has."""
PEAKS_RATE_HZ = 8000
LISTEN_S_MAX = 900.0
"""Longer sound is listened to at `PEAKS` places instead of all through."""
POSTER_AT_S = 1.0
PACKETS_MAX = 2_000_000
POSTER_PACKETS_MAX = 500

_DEMUXERS = {
    "mov": "mov", "matroska": "matroska", "ogg": "ogg", "mp3": "mp3", "wav": "wav", "flac": "flac",
    "aac": "aac", "aiff": "aiff", "amr": "amr", "avi": "avi", "mpeg": "mpeg",
}  # fmt: skip


def look_at_recording(path: Path, result: Result, bounds: Bounds) -> None:
    """Fill in what can be known of sound or film. Raises Refused, TypeFault."""
    import av

    demuxer = _DEMUXERS[types.family_of(result.content_type)]
    try:
        # Given an open file and the name of its format, the library opens nothing else: formats that are lists
        # of other files or addresses are out of its reach.
        if demuxer == "mov":
            _say_nothing_beside(path)
        with path.open("rb") as file, av.open(file, "r", format=demuxer) as container:
            films = [
                s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
            ]
            sounds = list(container.streams.audio)
            if not films and not sounds:
                raise Refused("unreadable", "there is neither sound nor film in it")
            result.content_type = types.settled(result.content_type, has_picture=bool(films))
            result.kind = types.kind_of(result.content_type).value
            for stream in container.streams:
                if stream.type in ("audio", "video"):
                    stream.codec_context.thread_count = 1
            result.give("original", path, result.content_type)
            result.duration_s = _duration_s(container, films[0] if films else sounds[0])
            if films:
                _film(container, films[0], result, path.parent, bounds)
            else:
                result.waveform = _waveform(container, sounds[0], result.duration_s)
    except (av.error.FFmpegError, EOFError) as error:
        why = getattr(error, "strerror", "") or "it is cut off"
        raise Refused("unreadable", f"it cannot be decoded: {why}") from None


def _say_nothing_beside(path: Path) -> None:
    """Take out where a film was made, and with what. Raises Malformed."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        blank_film(content)


def _duration_s(container: av.container.InputContainer, stream: Any) -> float:
    """Return the length: as the file says, or as its packets add up to where it says nothing."""
    if container.duration:
        return max(0.0, container.duration / 1_000_000)
    if stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base))
    end = 0.0
    for count, packet in enumerate(container.demux(stream)):
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if count > PACKETS_MAX:
            break
    container.seek(0)
    return end


def _film(
    container: av.container.InputContainer, stream: Any, result: Result, folder: Path, bounds: Bounds
) -> None:
    """Find out the size as shown, and make thumbnails of an early picture."""
    width, height = stream.codec_context.width, stream.codec_context.height
    check_size("film", width, height, bounds)
    frame = _poster(container, stream, result.duration_s)
    if frame is None:
        raise Refused("unreadable", "there is no picture in the film")
    check_size("film", frame.width, frame.height, bounds)
    picture = frame.to_image()
    if frame.rotation % 360:
        picture = picture.rotate(frame.rotation, expand=True)
    result.width, result.height = picture.size
    result.variants[0].width, result.variants[0].height = picture.size
    thumbnails(picture, result, folder)


def _poster(container: av.container.InputContainer, stream: Any, duration_s: float) -> Any:
    """Return the picture at `POSTER_AT_S`, or the first where there is none so far in."""
    import av

    at_s = min(POSTER_AT_S, duration_s / 2)
    for start_s in (at_s, 0.0):
        try:
            container.seek(int(start_s * 1_000_000))
        except av.error.FFmpegError:
            continue  # One that cannot be sought in is read from where it is.
        found = None
        for count, packet in enumerate(container.demux(stream)):
            for frame in packet.decode():
                found = frame
                if frame.time is None or frame.time >= start_s:
                    return frame
            if count > POSTER_PACKETS_MAX:
                break
        if found is not None:
            return found
    return None


def _waveform(container: av.container.InputContainer, stream: Any, duration_s: float) -> list[int]:
    """Return `PEAKS` values of loudness over time, the loudest of which is 100."""
    if duration_s > LISTEN_S_MAX:
        peaks = [_peak_at(container, stream, duration_s * (n + 0.5) / PEAKS) for n in range(PEAKS)]
    else:
        heard = _peaks(container, stream)
        count = min(PEAKS, len(heard))
        edges = [len(heard) * n // count for n in range(count + 1)] if count else []
        peaks = [max(heard[a:b]) for a, b in itertools.pairwise(edges)]
    loudest = max(peaks, default=0)
    return [round(100 * peak / loudest) if loudest else 0 for peak in peaks]


def _peaks(container: av.container.InputContainer, stream: Any) -> list[int]:
    """Listen to all of it; return the peak of each stretch of equal length."""
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=PEAKS_RATE_HZ)
    stretch = 2 * (PEAKS_RATE_HZ // 50)
    peaks: list[int] = []
    rest = b""
    for frame in container.decode(stream):
        for resampled in resampler.resample(frame):
            rest += bytes(resampled.planes[0])[: 2 * resampled.samples]
        whole = len(rest) - len(rest) % stretch
        peaks += [_peak(rest[at : at + stretch]) for at in range(0, whole, stretch)]
        rest = rest[whole:]
    return peaks + ([_peak(rest)] if rest else [])


def _peak_at(container: av.container.InputContainer, stream: Any, at_s: float) -> int:
    """Return the peak of a few frames at a time."""
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=PEAKS_RATE_HZ)
    container.seek(int(at_s * 1_000_000))
    peak = 0
    for count, frame in enumerate(container.decode(stream)):
        peaks = [_peak(bytes(r.planes[0])[: 2 * r.samples]) for r in resampler.resample(frame)]
        peak = max(peak, *peaks, 0)
        if count >= 4:
            break
    return peak


def _peak(samples: bytes) -> int:
    heard = memoryview(samples).cast("h")
    return max(max(heard), -min(heard)) if len(heard) else 0
