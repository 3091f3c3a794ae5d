"""A place in the message log: what `MessageLog.append` hands out, to be settled after the commit."""

from __future__ import annotations

from collections.abc import Callable

import trio

from whispr.conversations.domain import Draft, Message
from whispr.errors import WhisprError
from whispr.telemetry.tracing import current_traceparent


class Ticket:
    """The outcome of one append: a stored `Message`, or the WhisprError that says why there is none.

    Settled once, by the log, to which `forget` gives back what the ticket held. `original` tells a new message
    from a repeat of an earlier send.
    """

    __slots__ = (
        "_error",
        "_forget",
        "_listeners",
        "_message",
        "deadline",
        "draft",
        "followers",
        "original",
        "trace",
        "tried",
    )

    def __init__(self, draft: Draft, deadline: float, forget: Callable[[Ticket], None]) -> None:
        self.draft = draft
        self.deadline = deadline
        self.original = True
        self.trace = current_traceparent()
        """Of whoever sends it, for its event; empty for none."""
        self.tried = False
        """Whether a statement with this draft was ever sent, so that it may be stored."""
        self.followers: tuple[Ticket, ...] = ()
        """Sends that repeat this one's client_id while it is under way."""
        self._message: Message | None = None
        self._error: WhisprError | None = None
        self._forget = forget
        self._listeners: tuple[Callable[[Ticket], None], ...] = ()

    @property
    def settled(self) -> bool:
        """Whether the outcome is known."""
        return self._message is not None or self._error is not None

    @property
    def error(self) -> WhisprError | None:
        """Why the message was not stored, or None."""
        return self._error

    def result(self) -> Message:
        """Return the stored message. Raises the WhisprError of a refused one."""
        if self._error is not None:
            raise self._error
        assert self._message is not None, "the outcome is not known yet"
        return self._message

    def on_settled(self, listener: Callable[[Ticket], None]) -> None:
        """Call `listener(self)` once the outcome is known, at once when it is already. It must not raise."""
        if self.settled:
            listener(self)
        else:
            self._listeners += (listener,)

    async def wait(self) -> Message:
        """Wait for the outcome. Cancelling the wait does not unsend the message.

        Raises the WhisprError of a refused or undeliverable message.
        """
        settled = trio.Event()
        self.on_settled(lambda _: settled.set())
        await settled.wait()
        return self.result()

    def succeed(self, message: Message) -> None:
        """Settle with the stored message; ignored when settled before."""
        if not self.settled:
            self._message = message
            self._tell()

    def fail(self, error: WhisprError) -> None:
        """Settle with an error; ignored when settled before."""
        if not self.settled:
            self._error = error
            self._tell()

    def _tell(self) -> None:
        self._forget(self)
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            listener(self)
