"""What a service writes: a `Channel` per joined topic, mounted on the hub by topic prefix.

    class Conversation(Channel):
        async def join(self, payload: object) -> object:
            member = await self.service.authorise(self.link.session.user_id, self.link.subtopic)
            seq, missed = await self.service.history(...)      # broadcasts meanwhile are held back for us
            return Joined({"seq": seq, "messages": missed}, seq=seq)

        def handle_now(self, event: str, payload: object) -> object:
            if event == "send_message":
                return self.service.append(...)                # a Deferred: replied to after its commit
            return NotImplemented                              # on to `handle`

        async def handle(self, event: str, payload: object) -> object:
            if event == "mark_read":
                await ...
                return {"seq": 7}                              # {"status": "ok", "response": {"seq": 7}}
            return await super().handle(event, payload)        # unknown event

        async def leave(self, reason: LeaveReason) -> None: ...

    hub.mount("conversation", lambda link: Conversation(link, service))    # topics "conversation:<anything>"

**Joining.** The link is subscribed to its topic before `join` runs. What is broadcast meanwhile is held (at most
`Limits.held_len`), and after the join reply the held broadcasts follow, then live ones: those numbered with a
`seq` at or below `Joined.seq`, or a `change` at or below `Joined.change`, are dropped for this link for good, so
that history read in `join` and live broadcasts meet with no gap and no duplicate. Broadcasts without a number are
never dropped.
Raise a WhisprError from `join` to refuse.

**Pushes** of one link are handled one at a time, in order, each within `Limits.push_s`. Another link's pushes run
beside them. The result is the reply:

    a JSON-able object, a msgspec Struct    {"status": "ok", "response": <it>}
    bytes                                   the same, as a binary reply
    None                                    {"status": "ok", "response": {}}
    NO_REPLY                                nothing
    Deferred                                sent when it is resolved or failed; the next push is handled at once
    raise WhisprError                       {"status": "error", "response": error_response(error)}
    any other exception                     logged, `phx_error`, and the channel is closed; the client may rejoin

A push that carries no ref gets no reply. What `handle` broadcasts goes out before its reply, also to the sender.
`handle_now` is an optional fast path for pushes that need no waiting: it runs in the socket's reader, without a
task, and only when no earlier push of the link is still waiting.

**Deferred replies** are how a pipelined `send_message` works: append in order, reply after the group commit. At most
`Limits.deferred_len` are outstanding on a link; then its pushes wait. One that nobody settles within `push_s` is
failed as `unavailable`: the outcome is unknown to the client, so such operations must be safe to repeat.

**Through `self.link`** (see `whispr.realtime.link.Link`): `.topic`, `.subtopic`, `.session`, `.socket`, `.hub`,
`.push(event, payload)`, `.broadcast(event, payload, seq=…)`, `.broadcast_from(…)` (all but this link),
`.track(meta)`, `.update(meta)`, `.untrack()`, `.push_presence_state()`, `.start_soon(fn, *args)`, `.close(reason)`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from whispr.errors import Code, WhisprError, invalid
from whispr.realtime.renewal import RENEWALS, token_in

if TYPE_CHECKING:
    from whispr.realtime.link import Link

LeaveReason = Literal["left", "closed", "replaced", "crashed", "kicked"]
"""Why a channel ended: the client left, its socket closed, a newer join of the same topic on the same socket took
over, the channel raised, or the server closed it."""

DEFAULT_RETRY_MS = 1000


class Session(Protocol):
    """Whose socket it is: what the injected `authenticate` returns."""

    @property
    def user_id(self) -> str:
        """Id of the user, by which sockets are counted and found."""

    @property
    def session_id(self) -> str:
        """Id of the sign-in, whose revocation closes its sockets."""

    @property
    def expires_at(self) -> float | None:
        """Unix time in seconds at which the socket is closed, None for never."""


class Silence(enum.Enum):
    """Type of NO_REPLY."""

    NO_REPLY = "no reply"


NO_REPLY = Silence.NO_REPLY
"""Returned by a handler that wants its push to stay unanswered."""


class Joined:
    """A join's outcome with the seq, and the change, up to which `response` is complete."""

    __slots__ = ("change", "response", "seq")

    def __init__(self, response: object = None, *, seq: int | None = None, change: int | None = None) -> None:
        self.response = response
        self.seq = seq
        self.change = change


class Deferred:
    """A reply that comes later. Settle it once, from any task of the Trio thread; later settling is ignored.

    Ignored rather than refused, because whoever settles races with the overdue check and with a closing socket.
    """

    __slots__ = ("_listener", "_result", "_settled")

    def __init__(self) -> None:
        self._listener: Callable[[Deferred, object], None] | None = None
        self._result: object = None
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether the outcome is known."""
        return self._settled

    def resolve(self, response: object = None) -> None:
        """Reply ok with this response."""
        self._settle(response)

    def fail(self, error: WhisprError) -> None:
        """Reply with an error."""
        self._settle(error)

    def _settle(self, result: object) -> None:
        if self._settled:
            return
        self._settled = True
        self._result = result
        if self._listener is not None:
            self._listener(self, result)

    def listen(self, listener: Callable[[Deferred, object], None]) -> None:
        """Call `listener(self, response or WhisprError)` once settled, at once when it is already. One listener."""
        assert self._listener is None, "a Deferred answers one push"
        self._listener = listener
        if self._settled:
            listener(self, self._result)


class Channel:
    """One topic joined on one socket, as its service sees it. Subclass it; see the module's text."""

    def __init__(self, link: Link) -> None:
        self.link = link

    @property
    def media(self) -> frozenset[str]:
        """Pushes that are no operations of a client, but pieces of what it sends and may send just now.

        Any number of them may come, as fast as the channel takes them.
        """
        return frozenset()

    async def join(self, payload: object) -> object:
        """Admit or refuse (raise WhisprError). Returns the join's response, or `Joined` to resume from a seq."""
        del payload
        return None

    def handle_now(self, event: str, payload: object) -> object:
        """Handle a push that needs no waiting, or return NotImplemented to have `handle` called."""
        del event, payload
        return NotImplemented

    async def handle(self, event: str, payload: object) -> object:
        """Handle a push. Raises WhisprError to reply with an error.

        Call it for events that are not the channel's own: it takes new access tokens (`whispr.realtime.renewal`).
        """
        if event in RENEWALS:
            return await self.link.socket.renew(token_in(event, payload))
        raise invalid({"event": f"{self.link.topic.partition(':')[0]} channels have no event {event!r}"})

    def missed_presence(self) -> None:
        """Make good the `presence_diff`s that a slow client was not sent, now that it has caught up."""
        self.link.push_presence_state()

    async def leave(self, reason: LeaveReason) -> None:
        """Clean up. Runs shielded and bounded by `Limits.leave_s`; called only after `join` succeeded."""
        del reason


ChannelFactory = Callable[["Link"], Channel]
"""Makes the channel of a new link. Must not wait; authorise in `join`."""


def error_response(error: WhisprError) -> dict[str, object]:
    """Render an error as the `response` of an error reply: `reason`, `message`, and what the reason needs.

    `retry_after_ms`, the error's facts (such as `until` of a mute), and for a bad payload `field` (the first) and
    `fields` (all, with what is wrong). A dependency that timed out is `unavailable`: to a client both mean "again".
    """
    response: dict[str, object] = dict(error.facts)
    response |= {"reason": error.reason, "message": error.message}
    if error.code in (Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE):
        response |= {"reason": "unavailable", "retry_after_ms": DEFAULT_RETRY_MS}
    if error.retry_after_s is not None:
        response["retry_after_ms"] = round(error.retry_after_s * 1000)
    if error.fields:
        response |= {"field": next(iter(error.fields)), "fields": dict(error.fields)}
    return response
