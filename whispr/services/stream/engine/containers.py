"""A source's container taken apart while it grows: FFmpeg's demuxers and decoders, in a thread of the source's own.

The thread asks the event loop for bytes and gives it packets or samples; both wait in the event loop, so that a
source which sends faster than is heard is held up by TCP. What has been decoded is handed over before the thread
waits for more. Opus is not decoded here: its packets may pass through as they are. FFmpeg must see the end of the
bytes when the task is cancelled, so that the thread ends: `_Pipe.read` turns whatever is raised into the end, and
remembers it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from whispr.audio.ogg_tags import TagWatch
from whispr.audio.packets import CLOCK_HZ
from whispr.errors import invalid
from whispr.services.stream.engine.line import PCM_BYTES
from whispr.services.stream.engine.production import Production

if TYPE_CHECKING:
    import av

FORMS: Final = {
    "ogg": "ogg", "webm": "matroska", "mp3": "mp3", "aac": "aac", "flac": "flac", "wav": "wav", "ts": "mpegts",
    "mp4": "mov",
}  # fmt: skip
"""Containers by our name and FFmpeg's."""
TYPES: Final = {
    "application/ogg": "ogg", "audio/ogg": "ogg", "video/ogg": "ogg", "audio/opus": "ogg",
    "audio/webm": "webm", "video/webm": "webm", "audio/x-matroska": "webm", "video/x-matroska": "webm",
    "audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/aac": "aac", "audio/aacp": "aac", "audio/x-aac": "aac",
    "audio/flac": "flac", "audio/x-flac": "flac", "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav",
    "video/mp2t": "ts", "audio/mp4": "mp4", "video/mp4": "mp4",
}  # fmt: skip
"""Media types that sources send, and the container each means."""
CODECS: Final = frozenset(
    {"opus", "libopus", "vorbis", "flac", "mp3", "mp3float", "mp2", "aac", "ac3", "alac"}
)
"""What is decoded, beside PCM."""
BATCH_BYTES: Final = 5 * PCM_BYTES
"""Samples that are handed over at a time: 100 ms."""
PACKETS_MAX: Final = 5
BAD_MAX: Final = 100
"""Packets in a row that cannot be decoded; then the source sends something else than it says."""
RATES_HZ: Final = range(4_000, 768_001)
"""Sample rates that are brought to the stream's clock: a packet of 1 Hz would become an hour of sound."""
TAGS: Final = ("title", "artist", "album", "genre")
TAG_CHARS_MAX: Final = 500

_OPTIONS: Final = {"probesize": "4096", "analyzeduration": "0", "fflags": "nobuffer"}
_READ_BYTES: Final = 1024

log = structlog.get_logger("whispr.stream")

_MAGIC: Final = (
    (0, b"OggS", "ogg"), (0, b"\x1a\x45\xdf\xa3", "webm"), (0, b"fLaC", "flac"), (0, b"RIFF", "wav"),
    (4, b"ftyp", "mp4"), (0, b"ID3", "mp3"),
)  # fmt: skip
SNIFF_BYTES: Final = 12

Describe = Callable[[dict[str, str]], None]


def form_of(media_type: str, beginning: bytes) -> str:
    """Name the container that begins so: sources are known to send another type than what they say.

    Returns nothing for what is none of `FORMS`.
    """
    for at, magic, form in _MAGIC:
        if beginning[at : at + len(magic)] == magic:
            return form
    if len(beginning) > 1 and beginning[0] == 0xFF and beginning[1] & 0xF6 == 0xF0:
        return "aac"  # a header of ADTS, whose layer is 0 (ISO/IEC 13818-7, 6.2)
    if len(beginning) > 1 and beginning[0] == 0xFF and beginning[1] & 0xE0 == 0xE0:
        return "mp3"
    return TYPES.get(media_type.partition(";")[0].strip().lower(), "")


class Reader:
    """Reads the containers of a process's sources."""

    def __init__(self, sources: int) -> None:
        """`sources`: at most so many at once."""
        self._limiter = trio.CapacityLimiter(2 * sources)

    async def read(
        self,
        chunks: AsyncIterator[bytes],
        form: str,
        production: Production,
        describe: Describe,
        ahead_s: float,
    ) -> None:
        """Take a container to its end, as `Feed.container` says."""
        if form not in FORMS:
            raise invalid({"content-type": f"send one of {', '.join(sorted(TYPES))}"}, "unsupported_media")
        songs = _Songs(describe) if form == "ogg" else None

        def come(chunk: bytes) -> None:
            production.count(len(chunk))
            if songs is not None:
                songs.feed(chunk)

        sink = _Sink(production, describe if songs is None else songs.describe, ahead_s)
        pipe = _Pipe(chunks, come)
        try:
            await trio.to_thread.run_sync(_take_apart, pipe, FORMS[form], sink, limiter=self._limiter)
        except _Unreadable as error:
            if pipe.error is None:
                raise invalid({"body": str(error)}, "malformed_media") from None
        if pipe.error is not None:
            raise pipe.error
        # What has come is heard to its end.
        await trio.sleep(production.line.ahead_s(trio.current_time(), 0.0))


class _Songs:
    """What the songs in an Ogg stream are called: FFmpeg tells of the first alone."""

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._watch = TagWatch()
        self._told = False

    def feed(self, chunk: bytes) -> None:
        """Look at bytes as they come."""
        for tags in self._watch.feed(chunk):
            self._told = True
            self._describe(_told(tags))

    def describe(self, facts: dict[str, str]) -> None:
        """Take what FFmpeg found: it knows the comments of codecs that are not watched for, such as FLAC's."""
        if not self._told:
            self._describe(facts)


class _Unreadable(Exception):  # noqa: N818 - an answer, not a defect
    """What came is not what was announced."""


class _Pipe:
    """A container's bytes, for FFmpeg to read in its thread."""

    def __init__(self, chunks: AsyncIterator[bytes], on_chunk: Callable[[bytes], None]) -> None:
        self.error: BaseException | None = None
        self.before_wait: Callable[[], None] | None = None
        self._chunks = chunks
        self._on_chunk = on_chunk
        self._rest = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end."""
        if not self._rest and not self._ended:
            try:
                if self.before_wait is not None:
                    self.before_wait()
                self._rest = trio.from_thread.run(self._next)
            except BaseException as error:  # noqa: BLE001 - FFmpeg cannot pass it on; `Reader.read` raises it
                self.error = error
            self._ended = not self._rest
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    async def _next(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:
                self._on_chunk(chunk)
                return chunk
        return b""


@dataclass(slots=True)
class _Sink:
    """Where packets and samples go; its coroutines run in the event loop."""

    production: Production
    describe: Describe
    ahead_s: float
    begun: bool = False

    async def begin(self, codec: str, facts: dict[str, str], lossless: bool) -> None:
        self.begun = True
        self.production.read_container(codec, lossless=lossless)
        self.describe(facts)
        await trio.lowlevel.checkpoint()

    async def packets(self, packets: list[bytes]) -> None:
        for packet in packets:
            self.production.opus(packet)
        await self._wait()

    async def samples(self, data: bytes) -> None:
        self.production.pcm(data)
        await self._wait()

    async def _wait(self) -> None:
        await trio.sleep(self.production.line.ahead_s(trio.current_time(), self.ahead_s))


def _take_apart(pipe: _Pipe, demuxer: str, sink: _Sink) -> None:
    """Be the thread: read, decode, hand over, until the end. Raises _Unreadable."""
    import av

    try:
        # Given bytes and the name of their format, FFmpeg opens nothing else: lists of addresses are out of reach.
        with av.open(
            pipe,
            "r",
            format=demuxer,
            options=dict(_OPTIONS),
            buffer_size=_READ_BYTES,
            metadata_errors="replace",
        ) as container:
            if not container.streams.audio:
                raise _Unreadable("there is no sound in it")
            stream = container.streams.audio[0]
            # FFmpeg has no decoder for a codec that it does not know.
            codec = getattr(stream.codec_context, "name", "this")
            if codec not in CODECS and not codec.startswith("pcm_"):
                raise _Unreadable(f"{codec} is not decoded here")
            rate_hz = getattr(stream.codec_context, "sample_rate", 0)
            if rate_hz and rate_hz not in RATES_HZ:
                raise _Unreadable(f"{rate_hz} Hz is not decoded here")
            lossless = codec in ("flac", "alac") or codec.startswith("pcm_")
            shown = "opus" if codec == "libopus" else codec.removesuffix("float")
            trio.from_thread.run(sink.begin, shown, _facts(container, stream), lossless)
            if shown == "opus":
                _hand_packets(container, stream, pipe, sink)
            else:
                _hand_samples(container, stream, pipe, sink)
    except (av.error.FFmpegError, EOFError) as error:
        if isinstance(error, EOFError) and sink.begun:
            return
        raise _Unreadable(f"it cannot be read: {getattr(error, 'strerror', '') or error}") from None


def _facts(container: Any, stream: Any) -> dict[str, str]:
    """Return what the container says is played."""
    said = {
        str(name).lower(): value
        for tags in (container.metadata, stream.metadata)
        for name, value in tags.items()
    }
    return _told(said)


def _told(said: Mapping[str, str]) -> dict[str, str]:
    return {name: said[name][:TAG_CHARS_MAX] for name in TAGS if said.get(name)}


def _hand_packets(container: Any, stream: Any, pipe: _Pipe, sink: _Sink) -> None:
    gathered: list[bytes] = []

    def hand_over() -> None:
        if gathered:
            trio.from_thread.run(sink.packets, gathered.copy())
            gathered.clear()

    pipe.before_wait = hand_over
    for packet in _demuxed(container, stream):
        if packet.size:
            gathered.append(bytes(packet))
        if len(gathered) >= PACKETS_MAX:
            hand_over()
    hand_over()


def _hand_samples(container: Any, stream: Any, pipe: _Pipe, sink: _Sink) -> None:
    gathered, bad = bytearray(), 0

    def hand_over() -> None:
        if gathered:
            trio.from_thread.run(sink.samples, bytes(gathered))
            gathered.clear()

    pipe.before_wait = hand_over
    to_clock = _Resampler()
    for packet in _demuxed(container, stream):
        samples = to_clock.decode(packet)
        bad = 0 if samples is not None else bad + 1
        if bad > BAD_MAX:
            raise _Unreadable("it cannot be decoded")
        gathered += samples or b""
        if len(gathered) >= BATCH_BYTES:
            hand_over()
    hand_over()


class _Resampler:
    """Decodes packets to samples on the stream's clock, also when the source changes its rate or channels."""

    def __init__(self) -> None:
        self._form: tuple[object, ...] = ()
        self._convert: Any = None

    def decode(self, packet: Any) -> bytes | None:
        """Return 16 bits, stereo, 48 kHz; None for what cannot be decoded."""
        import av

        samples = bytearray()
        try:
            for frame in packet.decode():
                if frame.sample_rate not in RATES_HZ:
                    return None
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                if form != self._form:
                    self._form = form
                    self._convert = av.AudioResampler(format="s16", layout="stereo", rate=CLOCK_HZ)
                for resampled in self._convert.resample(frame):
                    samples += bytes(resampled.planes[0])[: resampled.samples * 4]
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            return None
        return bytes(samples)


def _demuxed(container: Any, stream: Any) -> Iterator[av.Packet[Any]]:
    """Yield packets, past what is damaged between them."""
    import av

    packets, bad = container.demux(stream), 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.InvalidDataError:
            bad += 1
            if bad > BAD_MAX:
                raise
            packets = container.demux(stream)
            continue
        bad = 0
        yield packet
