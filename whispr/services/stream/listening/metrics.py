"""What listening counts."""

from __future__ import annotations

from prometheus_client import Counter

SENT_BYTES = Counter("stream_sent_bytes_total", "Bytes of sound given to listeners", ["transport"])
SKIPPED = Counter(
    "stream_listeners_behind_total", "Times a slow listener went on at the live edge", ["transport"]
)
CUT = Counter("stream_listeners_cut_total", "Listeners who were too slow to be served", ["transport"])
