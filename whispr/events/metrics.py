"""What the relay and the consumers count. A gauge is set by the process that does the work."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

OUTBOX_ROWS = Gauge("whispr_events_outbox_rows", "Rows waiting in the outbox, counted up to 10,000")
OUTBOX_LAG = Gauge("whispr_events_outbox_lag_seconds", "Age of the oldest event that is not published")
BATCH_LEN = Histogram(
    "whispr_events_batch_len", "Events published at once", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
PUBLISHED = Counter("whispr_events_published_total", "Events stored by JetStream", ["stream"])
PUBLISH_FAILURES = Counter("whispr_events_publish_failures_total", "Turns of the relay that stored not all")
HELD = Gauge("whispr_events_consumer_held", "1 where this process runs the consumer", ["consumer"])
LAG = Gauge("whispr_events_consumer_lag", "Events published and not done yet", ["consumer"])
HANDLED = Counter(
    "whispr_events_handled_total",
    "Attempts to handle an event, by outcome: ok, failed, dead",
    ["consumer", "outcome"],
)
DURATION = Histogram(
    "whispr_events_handle_seconds",
    "Time an attempt to handle an event took",
    ["consumer"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
DEAD_LETTERS = Gauge("whispr_events_dead_letters", "Dead letters kept", ["consumer"])
MISSED = Counter(
    "whispr_events_missed_total",
    "Events the stream had discarded before the consumer came to them",
    ["consumer"],
)
