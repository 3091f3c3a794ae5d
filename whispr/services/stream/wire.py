"""The domain's values as the messages of stream.proto, and back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from whispr.audio.packets import Codec, Quality
from whispr.errors import invalid
from whispr.services.stream.analytics import Report
from whispr.services.stream.domain import (
    CUSTOM_FIELDS_MAX,
    CUSTOM_KEY_CHARS_MAX,
    DESCRIPTION_CHARS_MAX,
    METADATA_CHARS_MAX,
    TITLE_CHARS_MAX,
    Category,
    Metadata,
    Stream,
    StreamConfig,
    Visibility,
)
from whispr.services.stream.listener import COUNT_MAX
from whispr.services.stream.livestate import Facts, Picture
from whispr.services.stream.recordings import Recording, RecordingStatus
from whispr.v1 import stream_pb2 as pb

_CODECS: Mapping[Codec, str] = {Codec.OPUS: "OPUS", Codec.AAC: "AAC"}
BUFFER_OK_MS = 100.0
"""A listener with less buffered is about to run dry."""


def quality_name(quality: Quality | None) -> str:
    """Return what the API calls a quality."""
    return "AUTO" if quality is None else quality.name


def quality_of(value: int, field: str) -> Quality | None:
    """Read a quality; None for AUTO. Raises INVALID_ARGUMENT."""
    if value not in pb.Stream.Quality.values():
        raise invalid({field: f"must be one of {', '.join(pb.Stream.Quality.keys())}"})
    name = pb.Stream.Quality.Name(pb.Stream.Quality.ValueType(value))
    return None if name == "AUTO" else Quality[name]


def category_of(value: int) -> Category | None:
    """Read a category; None when unspecified. Raises INVALID_ARGUMENT."""
    if value == pb.Stream.CATEGORY_UNSPECIFIED:
        return None
    if value not in pb.Stream.Category.values():
        raise invalid({"category": f"must be one of {', '.join(Category)}"})
    return Category(pb.Stream.Category.Name(pb.Stream.Category.ValueType(value)))


def visibility_of(value: int) -> Visibility | None:
    """Read a visibility; None when unspecified. Raises INVALID_ARGUMENT."""
    if value == pb.Stream.VISIBILITY_UNSPECIFIED:
        return None
    if value not in pb.Stream.Visibility.values():
        raise invalid({"visibility": f"must be one of {', '.join(Visibility)}"})
    return Visibility(pb.Stream.Visibility.Name(pb.Stream.Visibility.ValueType(value)))


def title_of(text: str) -> str:
    """Return a title without surrounding space. Raises INVALID_ARGUMENT."""
    title = text.strip()
    if not 0 < len(title) <= TITLE_CHARS_MAX or not title.isprintable():
        raise invalid({"title": f"1 to {TITLE_CHARS_MAX} printable characters"})
    return title


def description_of(text: str) -> str:
    """Return a description. Raises INVALID_ARGUMENT."""
    if len(text) > DESCRIPTION_CHARS_MAX or "\0" in text:
        raise invalid({"description": f"at most {DESCRIPTION_CHARS_MAX} characters, none of them NUL"})
    return text


def metadata_of(given: pb.StreamMetadata) -> Metadata:
    """Read what is playing. Raises INVALID_ARGUMENT naming every bad field."""
    faults: dict[str, str] = {}
    fields = {name: getattr(given, name) for name in ("current_track", "artist", "album", "genre")}
    for name, value in fields.items():
        if len(value) > METADATA_CHARS_MAX or "\0" in value:
            faults[f"metadata.{name}"] = f"at most {METADATA_CHARS_MAX} characters, none of them NUL"
    custom = dict(given.custom_fields)
    if len(custom) > CUSTOM_FIELDS_MAX:
        faults["metadata.custom_fields"] = f"at most {CUSTOM_FIELDS_MAX} entries"
    elif any(
        not 0 < len(key) <= CUSTOM_KEY_CHARS_MAX or len(v) > METADATA_CHARS_MAX for key, v in custom.items()
    ):
        faults["metadata.custom_fields"] = (
            f"keys have 1 to {CUSTOM_KEY_CHARS_MAX} characters, values at most {METADATA_CHARS_MAX}"
        )
    elif any("\0" in text for pair in custom.items() for text in pair):
        faults["metadata.custom_fields"] = "there are NULs in it"
    if faults:
        raise invalid(faults)
    return Metadata(**fields, custom_fields=custom)


def config_of(given: pb.StreamConfig) -> StreamConfig:
    """Read how a stream is to be served. Raises INVALID_ARGUMENT naming every bad field."""
    faults: dict[str, str] = {}
    quality = quality_of(given.quality, "config.quality")
    if given.bitrate < 0:
        faults["config.bitrate"] = "must not be negative"
    elif given.bitrate:
        fitting = [each for each in Quality if each.bitrate_bps <= given.bitrate]
        quality = fitting[-1] if fitting else Quality.LOW
    if given.sample_rate not in (0, 48_000):
        faults["config.sample_rate"] = "everything is sent at 48000 Hz, whatever the source has"
    if given.max_listeners < 0:
        faults["config.max_listeners"] = "must not be negative"
    codec = codec_of(given.codec, "config.codec", faults)
    if faults:
        raise invalid(faults)
    return StreamConfig(
        quality=quality,
        bitrate_bps=given.bitrate,
        codec=codec,
        enable_recording=given.enable_recording,
        enable_chat=given.enable_chat,
        max_listeners=given.max_listeners,
    )


def codec_of(value: int, field: str, faults: dict[str, str]) -> Codec:
    """Read a codec that something may be sent or kept in; another is a fault."""
    if value in (pb.StreamConfig.CODEC_UNSPECIFIED, pb.StreamConfig.OPUS):
        return Codec.OPUS
    if value != pb.StreamConfig.AAC:
        faults[field] = "must be OPUS or AAC; MP3 and FLAC are taken from sources only"
    return Codec.AAC


def stream_pb(stream: Stream, listeners: int = 0, *, has_source: bool = False) -> pb.Stream:
    """Build `whispr.v1.Stream`."""
    until = stream.ended_at or datetime.now(UTC)
    return pb.Stream(
        id=stream.id,
        title=stream.title,
        description=stream.description,
        category=stream.category.value,
        visibility=stream.visibility.value,
        streamer_id=stream.streamer_id,
        streamer_username=stream.streamer_username,
        status=stream.status.value,
        current_quality=quality_name(stream.default_quality),
        listener_count=listeners,
        created_at=stream.created_at,
        started_at=stream.started_at,
        duration=int((until - stream.started_at).total_seconds()) if stream.started_at else 0,
        is_recording=stream.is_recording,
        metadata=pb.StreamMetadata(
            current_track=stream.metadata.current_track,
            artist=stream.metadata.artist,
            album=stream.metadata.album,
            genre=stream.metadata.genre,
            custom_fields=dict(stream.metadata.custom_fields),
        ),
        ended_at=stream.ended_at,
        end_reason=stream.end_reason,
        room_id=stream.room_id or "",
        has_source=has_source,
        volume=stream.volume,
        max_listeners=stream.config.max_listeners,
    )


def listener_pb(facts: Facts, username: str) -> pb.StreamListener:
    """Build `whispr.v1.StreamListener`."""
    return pb.StreamListener(
        listener_id=facts.id,
        user_id=facts.user_id,
        username=username,
        transport=facts.transport,
        quality=quality_name(facts.rendition),
        joined_at=datetime.fromtimestamp(facts.joined_at, UTC),
        buffer_ms=round(facts.buffer_ms),
        latency_ms=facts.latency_ms,
        rebuffers=facts.rebuffers,
        dropped_frames=facts.dropped_frames,
        country=facts.country,
    )


def metrics_pb(
    stream_id: str, picture: Picture | None, listeners: list[Facts], now: float
) -> pb.AudioMetrics:
    """Build `whispr.v1.AudioMetrics`. Averages are over the listeners who report what is averaged."""
    buffers = [each.buffer_ms for each in listeners if each.buffer_ms]
    latencies = [each.latency_ms for each in listeners if each.latency_ms]
    distribution: dict[str, int] = {}
    for each in listeners:
        name = each.rendition.name if each.rendition else "AUTO"
        distribution[name] = distribution.get(name, 0) + 1
    shown = pb.AudioMetrics(
        stream_id=stream_id,
        buffer_health=sum(each >= BUFFER_OK_MS for each in buffers) / len(buffers) if buffers else 1.0,
        latency_ms=sum(latencies) / len(latencies) if latencies else 0.0,
        dropped_frames=min(COUNT_MAX, sum(each.dropped_frames for each in listeners)),
        quality_stats=pb.AudioMetrics.QualityStats(
            quality_distribution=distribution,
            average_buffer_duration=sum(buffers) / len(buffers) if buffers else 0.0,
            rebuffer_events=min(COUNT_MAX, sum(each.rebuffers for each in listeners)),
        ),
        measured_at=datetime.fromtimestamp(now if picture is None else picture.at, UTC),
        listener_count=len(listeners),
    )
    if picture is not None:
        shown.current_bitrate = picture.bitrate_bps
        shown.source_kind, shown.source_codec = picture.kind, picture.codec
        shown.source_loss, shown.silence = picture.loss, picture.silent_s
        shown.has_source = picture.connected
        shown.levels.CopyFrom(_levels(picture))
    return shown


def _levels(picture: Picture) -> pb.AudioMetrics.Levels:
    return pb.AudioMetrics.Levels(
        momentary=picture.momentary_lufs if picture.momentary_lufs is not None else -120.0,
        short_term=picture.short_term_lufs if picture.short_term_lufs is not None else -120.0,
        integrated=picture.integrated_lufs if picture.integrated_lufs is not None else -120.0,
        peak=picture.peak_dbfs if picture.peak_dbfs is not None else -120.0,
    )


def recording_pb(recording: Recording, file_url: str = "", hls_url: str = "") -> pb.Recording:
    """Build `whispr.v1.Recording`."""
    done = recording.status is RecordingStatus.COMPLETED
    return pb.Recording(
        id=recording.id,
        stream_id=recording.stream_id,
        title=recording.title,
        duration=recording.duration_s,
        file_size=recording.bytes,
        quality=quality_name(recording.quality),
        codec=_CODECS[recording.codec],
        file_url=file_url if done else "",
        hls_url=hls_url if done else "",
        created_at=recording.created_at,
        status=recording.status.value,
        expires_at=recording.expires_at,
        error=recording.error,
    )


def analytics_pb(stream_id: str, report: Report) -> pb.StreamAnalytics:
    """Build `whispr.v1.StreamAnalytics`."""
    return pb.StreamAnalytics(
        stream_id=stream_id,
        start_time=report.start,
        end_time=report.end,
        unique_listeners=report.people,
        max_concurrent=report.peak,
        total_listen_time=sum(hour.listen_s for hour in report.hours),
        average_session_duration=report.average_s,
        geographic_distribution=dict(report.countries),
        hourly_activity=[
            pb.HourlyActivity(
                timestamp=hour.hour,
                listener_count=hour.peak,
                new_listeners=hour.joined,
                listeners_left=hour.departed,
                listen_time=hour.listen_s,
                rebuffers=hour.rebuffers,
            )
            for hour in report.hours
        ],
        quality_distribution=dict(report.qualities_s),
        rebuffer_events=min(COUNT_MAX, sum(hour.rebuffers for hour in report.hours)),
        bytes_sent=sum(hour.bytes_sent for hour in report.hours),
    )


def summary_pb(report: Report, stream: Stream) -> pb.StreamSummary:
    """Build `whispr.v1.StreamSummary` of a stream that has ended."""
    lasted = (stream.ended_at - stream.started_at) if stream.ended_at and stream.started_at else None
    return pb.StreamSummary(
        total_duration=int(lasted.total_seconds()) if lasted else 0,
        max_listeners=report.peak,
        unique_listeners=report.people,
        total_listen_time=round(report.total_s),
        average_listen_duration=report.average_s,
    )


def time_of(given: Timestamp, field: str) -> datetime:
    """Read a time. Raises INVALID_ARGUMENT."""
    try:
        return given.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid({field: "is no time between the years 1 and 9999"}) from None


def json_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an event says, without what is empty."""
    return {key: value for key, value in data.items() if value not in ("", None)}
