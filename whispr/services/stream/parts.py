"""What StreamService's RPCs act on, and who calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from whispr.errors import WhisprError, conflict, denied, invalid
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.services.stream.analytics import Analytics
from whispr.services.stream.control import Control
from whispr.services.stream.domain import (
    MODERATE,
    Stream,
    StreamLimits,
    Viewer,
    may_not_know,
    may_not_listen,
    viewer_of,
)
from whispr.services.stream.livestate import LiveState
from whispr.services.stream.notices import Notices
from whispr.services.stream.recordings import Recording, Recordings
from whispr.services.stream.rooms import StreamRooms
from whispr.services.stream.store import Standing, StreamStore
from whispr.services.stream.subscriptions import Subscriptions
from whispr.services.stream.urls import ListenUrls


class Limiter(Protocol):
    """Counts calls: `whispr.adapters.rate_limit.RateLimiter`."""

    async def take(self, key: str, limit: float, period_s: float) -> None:
        """Raises RESOURCE_EXHAUSTED over the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of it."""

    store: StreamStore
    control: Control
    recordings: Recordings
    live_state: LiveState
    notices: Notices
    analytics: Analytics
    subscriptions: Subscriptions
    rooms: StreamRooms
    urls: ListenUrls
    discard: Callable[[Recording], Awaitable[None]]
    """Deletes the sound of a recording whose row is no more."""
    limiter: Limiter
    limits: StreamLimits
    base_url: Callable[[], str]


def viewer() -> Viewer:
    """Return who calls: a person, a service for a person, or a service."""
    actor = current_actor()
    if actor.is_service and actor.user_id:
        return Viewer(actor.user_id)
    return viewer_of(actor.claims)


def person(permission: str = "stream:read") -> str:
    """Return the person who calls, or is acted for. Raises PERMISSION_DENIED."""
    actor = current_actor()
    user_id = actor.person
    if not actor.is_service and not actor.claims.allows(permission):
        raise denied(f"your role may not do this: it needs {permission}")
    return user_id


async def known(parts: Parts, stream_id: str) -> Standing:
    """Return a stream that the caller may know of, and what they are in it. Raises NOT_FOUND."""
    standing = await parts.store.standing(parse_id(stream_id, "stream_id"), viewer().user_id)
    refused = may_not_know(standing.stream, viewer(), invited=standing.invited)
    if refused is not None:
        raise refused
    return standing


async def own(parts: Parts, stream_id: str, *, moderated: bool = False) -> Stream:
    """Return a stream of the caller's, or any to who has stream:moderate when it is `moderated`.

    Raises NOT_FOUND, PERMISSION_DENIED (not_the_streamer).
    """
    stream = (await known(parts, stream_id)).stream
    check_own(stream.streamer_id, moderated=moderated)
    return stream


def check_own(streamer_id: str, *, moderated: bool = False) -> None:
    """Raise PERMISSION_DENIED (not_the_streamer) to who is not that person, nor may moderate."""
    actor = current_actor()
    moderates = moderated and not actor.is_service and actor.claims.allows(MODERATE)
    if actor.user_id != streamer_id and not moderates:
        raise denied("only its streamer may do this", reason="not_the_streamer")


async def audible(parts: Parts, stream_id: str) -> Stream:
    """Return a stream that runs and that the caller may hear. Raises as `may_not_listen`."""
    standing = await parts.store.standing(parse_id(stream_id, "stream_id"), viewer().user_id)
    refused: WhisprError | None = may_not_listen(
        standing.stream, viewer(), invited=standing.invited, removed=standing.removed, anonymous=True
    )
    if refused is not None:
        raise refused
    return standing.stream


def page_of(limits: StreamLimits, page: int, limit: int) -> tuple[int, int]:
    """Return offset and length of a page, counted from 1. Raises INVALID_ARGUMENT."""
    if page < 0 or page > 10_000:
        raise invalid({"page": "must be from 1 to 10000"})
    if limit < 0:
        raise invalid({"limit": "must not be negative"})
    size = min(limit or limits.page_size, limits.page_size_max)
    return (max(page, 1) - 1) * size, size


def ended() -> WhisprError:
    """FAILED_PRECONDITION (stream_ended)."""
    return conflict("the stream has ended", "stream_ended")
