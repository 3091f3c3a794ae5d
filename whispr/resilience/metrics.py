"""What Prometheus reads of the calls this process makes. Labels are kinds of targets, never addresses."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

BREAKER_STATE = Gauge(
    "whispr_breaker_state", "Of calls to a target: 0 closed, 1 half-open, 2 open", ["target"]
)
BREAKER_TRIPS = Counter("whispr_breaker_trips_total", "Times that a breaker opened", ["target"])
CALLS_CUT = Counter(
    "whispr_calls_rejected_total",
    "Calls refused, or ended as a breaker opened, by reason",
    ["target", "reason"],
)
CALLS_FAILED = Counter("whispr_call_failures_total", "Attempts that speak against their target", ["target"])
RETRIES = Counter("whispr_call_retries_total", "Attempts made again, by the code before", ["target", "code"])
HEDGES = Counter("whispr_call_hedges_total", "Second attempts beside slow ones", ["target"])
LAST_GOOD = Counter(
    "whispr_last_good_answers_total", "Times that the last good answer stood in for a fresh one", ["of"]
)
