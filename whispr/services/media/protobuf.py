"""Media as the API shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from whispr.services.media.domain import MediaLimits, Medium, Status
from whispr.services.media.urls import ORIGINAL, SignedUrls
from whispr.v1 import media_pb2 as pb

STEADY_S: Final = 300.0
"""URLs of one stretch of this length are the same, so that what was loaded once is found in a cache."""


class Shown:
    """Makes the messages that speak of media."""

    def __init__(self, urls: SignedUrls, limits: MediaLimits, clock: Callable[[], float]) -> None:
        self._urls = urls
        self._limits = limits
        self._clock = clock

    def until(self, lasts_s: float | None = None) -> float:
        """Return when a URL that is made now ends, in Unix seconds."""
        lasts_s = self._limits.download_url_s if lasts_s is None else lasts_s
        return math.ceil((self._clock() + lasts_s) / STEADY_S) * STEADY_S

    def url(self, medium: Medium, variant: str, until: float, *, as_attachment: bool = False) -> str:
        """Return a signed URL of a variant."""
        return self._urls.content(medium.id, variant, until, as_attachment=as_attachment)

    def metadata(self, medium: Medium, *, thumbnails: bool = True) -> pb.MediaMetadata:
        """Return what is known of a medium."""
        original = medium.variant(ORIGINAL)
        shown = pb.MediaMetadata(
            media_id=medium.id,
            filename=medium.filename,
            content_type=medium.content_type,
            file_size=original.bytes if original is not None else medium.declared_bytes,
            width=medium.width,
            height=medium.height,
            duration_seconds=medium.duration_s,
            upload_status=medium.status.value,
            custom_metadata=dict(medium.custom_metadata),
            created_at=medium.created_at,
            owner_id=medium.owner_id,
            kind=medium.kind,
            waveform=list(medium.waveform),
            sha256=original.sha256 if original is not None else "",
            error_reason=medium.error_reason,
            error_message=medium.error_message,
            received_bytes=medium.received_bytes,
        )
        expires_at = self._expires_at(medium)
        if expires_at is not None:
            shown.expires_at.FromDatetime(expires_at.astimezone(UTC).replace(tzinfo=None))
        if thumbnails:
            until = self.until()
            shown.thumbnail_urls.extend(
                self.url(medium, each.name, until) for each in medium.variants if each.name != ORIGINAL
            )
        return shown

    def _expires_at(self, medium: Medium) -> datetime | None:
        if medium.status is Status.PENDING:
            return medium.upload_expires_at
        if medium.unlinked_at is None:
            return None
        return medium.unlinked_at + timedelta(seconds=self._limits.unlinked_s)
