"""What a stream is, and the rules about it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from whispr.audio.packets import Codec, Quality
from whispr.errors import WhisprError, conflict, denied, not_found, unauthenticated
from whispr.tokens import Claims

TITLE_CHARS_MAX = 200
DESCRIPTION_CHARS_MAX = 4000
METADATA_CHARS_MAX = 500
CUSTOM_FIELDS_MAX = 16
CUSTOM_KEY_CHARS_MAX = 64
LISTEN_URL_S_MAX = 7 * 24 * 3600
"""The longest that a signed listening URL may hold."""


class Category(enum.StrEnum):
    """What a stream is about."""

    MUSIC = "MUSIC"
    TALK = "TALK"
    PODCAST = "PODCAST"
    GAMING = "GAMING"
    NEWS = "NEWS"
    EDUCATION = "EDUCATION"
    ENTERTAINMENT = "ENTERTAINMENT"
    OTHER = "OTHER"


class Visibility(enum.StrEnum):
    """Who may listen: anybody, anybody with the link, the invited, those with a premium role."""

    PUBLIC_STREAM = "PUBLIC_STREAM"
    UNLISTED = "UNLISTED"
    PRIVATE_STREAM = "PRIVATE_STREAM"
    PREMIUM_ONLY = "PREMIUM_ONLY"


class Status(enum.StrEnum):
    """Where a stream is in its life. LIVE from StartStream on, also while its source is yet to come or away."""

    CREATED = "CREATED"
    LIVE = "LIVE"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    ERROR = "ERROR"

    @property
    def runs(self) -> bool:
        """Whether a source may connect and listeners may listen."""
        return self in (Status.LIVE, Status.PAUSED)


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is served."""

    quality: Quality | None = None
    """The highest rendition that is offered; None for AUTO, which is all of them."""
    bitrate_bps: int = 0
    """Another way to say it; 0 when `quality` does."""
    sample_rate_hz: int = 48_000
    codec: Codec = Codec.OPUS
    enable_recording: bool = False
    enable_chat: bool = False
    max_listeners: int = 0
    """0 for no limit but the installation's."""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What is playing."""

    current_track: str = ""
    artist: str = ""
    album: str = ""
    genre: str = ""
    custom_fields: Mapping[str, str] = {}


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream, as the database has it."""

    id: str
    title: str
    description: str = ""
    category: Category = Category.OTHER
    visibility: Visibility = Visibility.PUBLIC_STREAM
    streamer_id: str
    streamer_username: str
    status: Status = Status.CREATED
    default_quality: Quality | None = None
    """What listeners begin with; None for AUTO."""
    config: StreamConfig = StreamConfig()
    metadata: Metadata = Metadata()
    volume: int = 100
    """Percent, of what goes into every rendition."""
    room_id: str | None = None
    """The chat room that goes with it."""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: str = ""
    is_recording: bool = False


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What an operator may set; 0 lifts a limit."""

    user_streams: int = 20
    """Streams of one person that have not ended."""
    user_streams_per_hour: int = 60
    listeners: int = 0
    """Of one stream, over all nodes."""
    address_listeners: int = 100
    """Listeners of one client address, on one process."""
    user_listeners: int = 20
    """Listeners that are one person, on one process."""
    invitations: int = 1000
    """People invited to one stream."""
    recording_days: int = 0
    """How long recordings are kept; 0 for ever."""
    subscriptions: int = 20
    """Readers of SubscribeToStreamEvents that one person has on one process."""
    event_queue: int = 256
    """Events that wait for one of them before it is told to begin again."""
    page_size: int = 50
    page_size_max: int = 100
    listen_url_s: float = 3600.0
    anonymous: bool = True
    """Whether people without an account listen to streams that are open to anybody."""


MODERATE = "stream:moderate"
"""The permission to end streams of others and put people out; administrators have it by `*:*`."""
WRITE = "stream:write"
"""The permission to make streams and send to them."""
PREMIUM = "room:create_premium"
"""A premium person is one whose role may do this, as in rooms."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody who wants to know of a stream or hear it."""

    user_id: str = ""
    """Empty for somebody without an account."""
    premium: bool = False
    trusted: bool = False
    """Whether they moderate streams, or are a service."""
    let_in: bool = False
    """Whether they have a URL that lets whoever has it listen."""


def viewer_of(claims: Claims) -> Viewer:
    """Return who shows a token."""
    if claims.is_service:
        return Viewer(trusted=True)
    return Viewer(claims.user_id, claims.allows(PREMIUM), claims.allows(MODERATE))


def may_not_know(stream: Stream, viewer: Viewer, *, invited: bool) -> WhisprError | None:
    """Return why somebody is not told of a stream: UNAUTHENTICATED to ask for a token, else NOT_FOUND."""
    known = viewer.trusted or viewer.let_in or viewer.user_id == stream.streamer_id
    if known or stream.visibility is not Visibility.PRIVATE_STREAM or invited:
        return None
    if not viewer.user_id:
        return unauthenticated("the stream is for those who are invited: send a token, or use a signed URL")
    return not_found("stream", stream.id)


def may_not_listen(
    stream: Stream, viewer: Viewer, *, invited: bool, removed: bool, anonymous: bool
) -> WhisprError | None:
    """Return why somebody may not hear a stream; `anonymous`: whether people without an account may at all.

    UNAUTHENTICATED, NOT_FOUND, PERMISSION_DENIED (removed, premium_required), and as `not_running`.
    """
    refused = may_not_know(stream, viewer, invited=invited)
    if refused is not None:
        return refused
    if viewer.trusted or viewer.user_id == stream.streamer_id:
        return not_running(stream)
    if removed:
        return denied("you have been put out of this stream", reason="removed")
    if not viewer.let_in:
        if not viewer.user_id and (not anonymous or stream.visibility is Visibility.PREMIUM_ONLY):
            return unauthenticated("this stream is for people with an account: send a token")
        if stream.visibility is Visibility.PREMIUM_ONLY and not viewer.premium:
            return denied("this stream is for premium people", reason="premium_required")
    return not_running(stream)


def not_running(stream: Stream) -> WhisprError | None:
    """FAILED_PRECONDITION (not_started, stream_ended) for a stream that nothing can be sent to or heard from."""
    if stream.status.runs:
        return None
    if stream.status is Status.CREATED:
        return conflict("the stream has not been started", "not_started")
    return conflict("the stream has ended", "stream_ended", {"end_reason": stream.end_reason})
