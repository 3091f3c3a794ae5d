"""Every bound of a socket, and the operation budget. Pure; units come last in each name, 0 lifts where it says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one hub's sockets. What happens past each is said beside it."""

    frame_bytes: int = 1024 * 1024
    """A message from a client; a longer one closes the socket with 1009."""
    buffer_bytes: int = 1024 * 1024
    """Unsent bytes behind the frame being sent; more closes the slow reader with 1013."""
    user_sockets: int = 20
    """Sockets of one user, on all nodes together; the next upgrade is refused with HTTP 429. 0 lifts it."""
    operations_per_min: int = 200
    """Joins and pushes of one socket; more get the error `rate_limited`. 0 lifts it."""
    chatter_per_min: int = 3000
    """What a socket may say beside operations: pings, pongs, heartbeats, leaves, and operations past the budget; more
    closes it with 1008. 0 lifts it."""
    fragments: int = 4096
    """Frames of one message; more close the socket with 1009. 0 lifts it."""
    refused_joins_per_min: int = 60
    """Joins of one user that were asked about and refused; with more, all of theirs wait. 0 lifts it."""
    refused_join_s: float = 2.0
    """How long a topic that refused a user twice refuses them again without asking the database."""
    handshakes: int = 1024
    """Upgrades under way; the next waits, or takes the place of one over `slow_handshake_s` old. 0 lifts it."""
    address_connections: int = 10_000
    """Connections and long-poll sessions of one client address; the next is refused with HTTP 429. 0 lifts it."""
    slow_handshake_s: float = 1.0
    """Age from which an upgrade under way may be dropped for a newer one."""
    channels: int = 100
    """Topics joined on one socket; the next join is refused with `too_many_channels`."""
    inbox_len: int = 64
    """Pushes waiting on one channel; when full the socket is not read, so TCP holds the client back."""
    deferred_len: int = 256
    """Replies outstanding on one channel; when full its inbox waits."""
    held_len: int = 1000
    """Broadcasts that arrive while a join runs; one more fails the join with `unavailable`."""
    push_s: float = 5.0
    """Time a join, a push, or a deferred reply may take; then it is answered with `unavailable`."""
    leave_s: float = 5.0
    """Time all the `leave` callbacks of a closed socket may take."""
    idle_s: float = 60.0
    """Silence of the client after which the socket is closed with 1001 (phoenix.js speaks every 30 s)."""
    renew_s: float = 60.0
    """How long before its access token expires a socket is told; of a short token's life, half of what is left."""
    handshake_s: float = 10.0
    """Time from accepting the connection to the end of the upgrade; then the connection is dropped."""
    close_s: float = 2.0
    """Time for our close frame to leave and the peer's to arrive; then the connection is dropped."""
    drain_s: float = 5.0
    """Time for pushes in flight to be answered when the hub drains."""
    drain_batch: int = 100
    """Sockets, at least, that a drain closes at once; the next as many a moment later."""
    drain_spread_s: float = 2.0
    """Time in which a drain has begun to close all of them, whatever their number."""
    deflate: bool = True
    """Whether permessage-deflate is negotiated with clients that offer it."""
    deflate_bytes: int = 1024
    """Shorter messages are sent as they are."""
    poll_s: float = 10.0
    """How long a long poll waits for something to say; then it is answered with nothing (Phoenix's `window_ms`)."""
    poll_idle_s: float = 15.0
    """Time without a poll after which a long-poll session is closed with 1001."""
    poll_lines: int = 100
    """Messages in one POST of a long-poll client; more are refused with 413 (phoenix.js sends no more)."""
    poll_body_bytes: int = 8 * 1024 * 1024
    """One POST of a long-poll client; a longer one is refused with 413. Each message obeys `frame_bytes`."""
    presence_s: float = 0.05
    """Changes of presence are gathered this long and sent as one diff per topic."""
    presence_per_s: int = 20_000
    """Deliveries a second that presence may cost a topic: a large one hears of changes less often. 0 lifts it."""
    typing_s: float = 0.5
    """A user's typing indicators on a topic go out at most this often, the latest always. 0 is whenever they come."""
    presence_linger_s: float = 5.0
    """How long somebody whose socket broke stays present, in case they come back. 0 is not at all."""
    presence_people: int = 1000
    """People present on one topic; with more, clients are told how many there are, not who. 0 is no limit."""

    def __post_init__(self) -> None:
        assert self.frame_bytes > 0
        assert self.buffer_bytes > 0
        assert self.inbox_len > 0
        assert self.deferred_len > 0
        assert self.push_s < self.idle_s, "a socket held back by a slow push must not look idle"


class OperationBudget:
    """Generic cell rate algorithm over one minute: a burst of the whole budget, then its steady rate.

    One number is the whole state: the theoretical arrival time (ITU-T I.371; the same algorithm as the
    Redis limiter). The clock is the caller's.
    """

    __slots__ = ("_interval_s", "_tat_s", "_window_s")

    def __init__(self, per_min: int) -> None:
        assert per_min >= 0
        self._interval_s = 60.0 / per_min if per_min else 0.0
        self._window_s = 60.0
        self._tat_s = float("-inf")

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all; without one the clock need not be read."""
        return self._interval_s > 0

    def take(self, now_s: float) -> float:
        """Spend one operation. Returns 0 when allowed, else the seconds until the next one would be."""
        if not self._interval_s:
            return 0.0
        tat = max(self._tat_s, now_s) + self._interval_s
        excess = tat - now_s - self._window_s
        if excess > 1e-9:
            return excess
        self._tat_s = tat
        return 0.0
