"""What somebody who wants to listen shows of themselves, read and verified."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from whispr.audio.packets import Quality
from whispr.identity import Identity
from whispr.services.stream.access import Shown
from whispr.services.stream.domain import Viewer, viewer_of
from whispr.services.stream.urls import ListenUrls


@dataclass(frozen=True, slots=True)
class Presented:
    """Who it is."""

    viewer: Viewer
    session_id: str = ""
    """The sign-in that they come with."""
    quality: Quality | None = None
    ends_at: float = 0.0
    """Unix time at which what they show ends; 0 when the sign-in decides, or nothing was shown."""


async def presented(identity: Identity, urls: ListenUrls, stream_id: str, shown: Shown) -> Presented:
    """Read a credential. Raises UNAUTHENTICATED, PERMISSION_DENIED (bad_signature, url_expired).

    A token that runs out ends no listening, for who listens has no way to show another: its sign-in counts. A
    service has none, so that its token's time is its listening's.
    """
    if shown.token:
        claims = await identity.authenticate(shown.token, "stream")
        ends_at = 0.0 if claims.session_id else claims.expires_at
        return Presented(viewer_of(claims), claims.session_id, None, ends_at)
    await trio.lowlevel.checkpoint()
    if not shown.query:
        return Presented(Viewer())
    granted = urls.check(shown.query, stream_id)
    named = Viewer(granted.user_id, granted.premium, granted.trusted)
    viewer = named if granted.user_id else Viewer(let_in=True)
    return Presented(viewer, granted.session_id, granted.quality, float(granted.expires_at))
