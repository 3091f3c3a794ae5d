"""Peers that do too little to be served and too much to be idle, and when a server has had enough of them.

A frame or header block that trickles, a window that stays shut in front of DATA, a socket that is never read: each
holds memory on the server at no cost to who does it. A connection is looked at now and then, and what has stood
still for longer than its limit is ended: a stream by RST_STREAM, a connection by GOAWAY, both with
ENHANCE_YOUR_CALM, which gRPC's clients know as RESOURCE_EXHAUSTED. Idle connections are not meant; those are
`keepalive`'s.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from prometheus_client import Counter

from whispr.http2.connection import Connection
from whispr.rpc.transport import FLUSH_S

CUT_OFF = Counter(
    "grpc_peers_cut_off",
    "Streams and connections that a server ended since nothing went on in them",
    ("why",),
)

PROGRESS_BYTES = 4096
"""Less than this between two looks counts as standing still: windows can be opened by the byte."""

_LOOKS = 2
"""In the time of the shorter limit."""


class Served(Protocol):
    """What is asked of a server's connection."""

    core: Connection
    read_at: float
    lost: str | None

    @property
    def unread(self) -> int | None:
        """Bytes that the socket has taken so far, while it does not take more; None while it does."""

    def end_stream(self, stream_id: int, why: str) -> None:
        """End a stream and its call with ENHANCE_YOUR_CALM."""

    def hang_up(self, why: str) -> None:
        """End the connection with ENHANCE_YOUR_CALM, as soon as that has been said."""

    def kill(self, reason: str) -> None:
        """End the connection at once."""


class Patience:
    """Ends what has stood still for `unfinished_s` in what the client sends, `untaken_s` in what it should take."""

    __slots__ = (
        "_begun", "_begun_at", "_connection", "_look_s", "_sent", "_sent_at", "_unfinished_s", "_untaken_s",
        "_waiting", "due",
    )  # fmt: skip

    def __init__(self, connection: Served, unfinished_s: float, untaken_s: float) -> None:
        self._connection = connection
        self._unfinished_s, self._untaken_s = unfinished_s, untaken_s
        self._look_s = min(unfinished_s, untaken_s) / _LOOKS
        self._begun: object = None
        self._begun_at = 0.0
        self._sent = 0
        self._sent_at = inf
        self._waiting: dict[int, tuple[int, float]] | None = None
        self.due = connection.read_at + self._look_s

    def look(self, now: float) -> float:
        """Returns when to look again."""
        connection = self._connection
        if connection.lost is not None:
            connection.kill(connection.lost)  # it has had time to hear why
            return inf
        if self._trickles(now):
            self._hang_up(
                "unfinished", f"a frame or header block was not complete within {self._unfinished_s:g} s"
            )
        elif self._stopped_reading(now):
            CUT_OFF.labels("unread").inc()
            connection.kill(f"nothing sent was read within {self._untaken_s:g} s")
            return inf
        elif self._keeps_shut(now):
            self._hang_up("shut_window", f"the connection's window was shut for {self._untaken_s:g} s")
        else:
            return now + self._look_s
        return now + FLUSH_S

    def _hang_up(self, label: str, why: str) -> None:
        CUT_OFF.labels(label).inc()
        self._connection.hang_up(why)

    def _trickles(self, now: float) -> bool:
        begun = self._connection.core.unfinished
        if begun is None or begun != self._begun:
            self._begun, self._begun_at = begun, now
        return begun is not None and now >= self._begun_at + self._unfinished_s

    def _stopped_reading(self, now: float) -> bool:
        sent = self._connection.unread
        if sent is None:
            self._sent_at = inf
        elif self._sent_at == inf or sent >= self._sent + PROGRESS_BYTES:
            self._sent, self._sent_at = sent, now
        return now >= self._sent_at + self._untaken_s

    def _keeps_shut(self, now: float) -> bool:
        """Look at what waits for windows, and end the streams whose own have been shut for too long."""
        core, before = self._connection.core, self._waiting or {}
        waiting: dict[int, tuple[int, float]] = {}
        for stream_id, taken in core.held_back():
            known, since = before.get(stream_id, (-PROGRESS_BYTES, now))
            waiting[stream_id] = taken, since if taken < known + PROGRESS_BYTES else now
        self._waiting = waiting or None
        late = [stream_id for stream_id, (_, since) in waiting.items() if now >= since + self._untaken_s]
        if late and core.send_window <= 0:
            return True
        for stream_id in late:
            CUT_OFF.labels("shut_window").inc()
            self._connection.end_stream(stream_id, f"the stream's window was shut for {self._untaken_s:g} s")
        return False
