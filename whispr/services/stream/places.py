"""A listener's place among those that a process serves."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from whispr.services.stream.domain import Viewer
from whispr.services.stream.listener import Listener
from whispr.services.stream.urls import HlsPass


@dataclass(slots=True)
class Place:
    """A listener here."""

    listener: Listener
    viewer: Viewer
    ends_at: float
    """Unix time at which their URL expires; 0 for never."""
    scope: trio.CancelScope | None = None
    """Of what serves them; None for an HLS session."""
    seen_at: float = 0.0
    """Of an HLS session, in Trio's time."""

    def hls_pass(self) -> HlsPass:
        """Return what any process needs to go on with an HLS session."""
        listener, viewer = self.listener, self.viewer
        return HlsPass(
            listener.stream.id, listener.id, listener.user_id, listener.session_id, viewer.premium, viewer.trusted,
            viewer.let_in, listener.quality.value if listener.quality else "", listener.joined_at, self.ends_at,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class HlsSession:
    """A listener and the signed token that their URLs carry."""

    listener: Listener
    token: str
