"""Who is listening: admission, and being put out.

    async with audience.listening(stream_id, shown_by(scope), Transport.WHEP, address, user_agent) as listener:
        ...     # cancelled, with the reason, within a second of their access ending; the block then just ends
    if listener.reason: ...

HLS listeners have no connection, but a session that lives while they poll:

    session = await audience.open_session(stream_id, shown_by(scope), address, user_agent)
    ... `?s={session.token}` in every URL ...
    listener = audience.seen(stream_id, token) or await audience.resume(stream_id, token, address, user_agent)
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from whispr.services.stream.access import Shown
from whispr.services.stream.listener import Listener, Transport

SESSION_S: Final = 6.0
"""Three target durations: an HLS listener who does not ask for longer has left."""


@dataclass(frozen=True, slots=True)
class HlsSession:
    """A listener and the signed token that their URLs carry."""

    listener: Listener
    token: str


class Audience(Protocol):
    """The listeners that this process serves."""

    def listening(
        self, stream_id: str, shown: Shown, transport: Transport, address: str, user_agent: str
    ) -> AbstractAsyncContextManager[Listener]:
        """Admit a listener for the length of the block, which is cancelled when their access ends.

        Raises UNAUTHENTICATED, PERMISSION_DENIED (invitation_required, premium_required, bad_signature,
        url_expired), NOT_FOUND, FAILED_PRECONDITION (not_started, stream_ended), RESOURCE_EXHAUSTED
        (stream_full, too_many_listeners).
        """

    async def open_session(self, stream_id: str, shown: Shown, address: str, user_agent: str) -> HlsSession:
        """Admit an HLS listener. Raises as `listening`."""

    def seen(self, stream_id: str, token: str) -> Listener | None:
        """Keep an HLS listener alive; None when this process does not know the session: then `resume`."""

    async def resume(self, stream_id: str, token: str, address: str, user_agent: str) -> Listener:
        """Go on with a session that another process opened, or that fell silent.

        Raises as `listening`, and PERMISSION_DENIED (bad_signature) for a token that is not ours.
        """
