"""What a node counts of the other nodes."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

TOPICS = Gauge("whispr_peers_topics", "Topics on which other nodes are heard")
HEARD = Counter(
    "whispr_peers_heard_total", "Broadcasts of other nodes heard, by what they were heard for", ["by"]
)
GAPS = Counter(
    "whispr_peers_gaps_total", "Times that other nodes were told that broadcasts of this one may be lost"
)
MISSED = Counter("whispr_peers_missed_total", "Times that broadcasts of a topic were lost on the way here")
