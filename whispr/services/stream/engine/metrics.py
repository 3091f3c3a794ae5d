"""Metrics of the engine."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

LIVE = Gauge("whispr_stream_live", "Streams that are live in this process.")
SOURCES = Counter("whispr_stream_sources", "Sources that connected, by kind.", ["kind"])
REFUSED = Counter("whispr_stream_sources_refused", "Sources that were refused, by reason.", ["reason"])
RECEIVED = Counter("whispr_stream_source_bytes", "Bytes of sound received from sources.")
LOST = Counter("whispr_stream_source_lost", "Pieces of 20 ms that sources lost, or that came too late.")
LEFT_OUT = Counter(
    "whispr_stream_left_out", "Pieces of 20 ms that were not encoded because the machine was too slow."
)
ENCODING = Counter("whispr_stream_encoding_seconds", "CPU time spent on decoding, measuring and encoding.")
RECORDING = Gauge("whispr_stream_recording", "Recordings that this process makes.")
RECORDED = Counter("whispr_stream_recorded", "Recordings that were ended and stored.")
