"""What WebRTC streams count."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LISTENERS = Gauge("stream_webrtc_listeners", "Listeners that hear a stream by WebRTC")
PUBLISHERS = Gauge("stream_webrtc_publishers", "Streams whose source is WebRTC")
CHANGES = Counter(
    "stream_webrtc_quality_changes_total", "Listeners moved to another rendition", ["direction"]
)
LOSS = Histogram(
    "stream_webrtc_loss_ratio",
    "Share of packets lost, by report of listeners",
    buckets=(0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
)
JITTER = Histogram(
    "stream_webrtc_jitter_seconds",
    "How unevenly packets come, by report of listeners",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
)
ROUND_TRIP = Histogram(
    "stream_webrtc_round_trip_seconds",
    "Round trips to listeners",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
)
CONNECTING = Histogram(
    "stream_webrtc_connecting_seconds",
    "From an answer until media can flow",
    buckets=(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
