"""What the stream service counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

LISTENERS = Gauge("stream_listeners", "Listeners that this process serves", ["transport"])
ADMITTED = Counter("stream_listeners_admitted_total", "Listeners let in", ["transport"])
REFUSED = Counter("stream_listeners_refused_total", "Listeners refused", ["reason"])
PUT_OUT = Counter(
    "stream_listeners_put_out_total", "Listeners whose access ended while they listened", ["reason"]
)
FORGOTTEN = Counter(
    "stream_listenings_forgotten_total",
    "Comings and goings that waited too long for PostgreSQL to be written",
)
