"""What the hub counts. One process has one hub, so these are the process's own."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

SOCKETS = Gauge("whispr_ws_sockets", "WebSocket connections open now")
CHANNELS = Gauge("whispr_ws_channels", "Topics joined now, over all sockets")
UPGRADES = Counter("whispr_ws_upgrades_total", "Opening handshakes by outcome", ["outcome"])
JOINS = Counter("whispr_ws_joins_total", "Channel joins by outcome", ["outcome"])
PUSHES = Counter("whispr_ws_pushes_total", "Pushes from clients to channels")
CRASHES = Counter("whispr_ws_crashes_total", "Channels closed by an unexpected exception")
BROADCASTS = Counter("whispr_ws_broadcasts_total", "Broadcasts to local subscribers")
DELIVERIES = Counter("whispr_ws_deliveries_total", "Frames handed to sockets by broadcasts")
REFUSED_OPERATIONS = Counter("whispr_ws_rate_limited_total", "Operations over a socket's budget")
FLOODS = Counter("whispr_ws_floods_total", "Sockets closed with 1008 for what they said beside operations")
JOINS_UNASKED = Counter(
    "whispr_ws_joins_unasked_total", "Joins refused without asking, so soon after others were"
)
HANDSHAKES = Gauge("whispr_ws_handshakes", "Opening handshakes under way")
OVERDUE = Counter("whispr_ws_overdue_total", "Pushes answered `unavailable` because they took too long")
CLOSED = Counter("whispr_ws_closed_total", "Connections ended, by close code", ["code"])
FILLS = Counter("whispr_ws_fills_total", "Reads of broadcasts that had not arrived in time")
SLOW_CLOSED = Counter("whispr_ws_slow_closed_total", "Slow readers closed with 1013")

POLL_SESSIONS = Gauge(
    "whispr_longpoll_sessions", "Long-poll sessions open now; they count among the sockets too"
)
POLL_ANSWERS = Counter("whispr_longpoll_answers_total", "Answers to long-poll requests", ["method", "status"])
POLLS_PASSED = Counter("whispr_longpoll_passed_total", "Long-poll requests that another process answered")
POLLS_FORGED = Counter(
    "whispr_longpoll_forged_total", "Long-poll requests with a token that no process has signed"
)
RENEWALS = Counter("whispr_ws_renewals_total", "Access tokens handed in by sockets that are open")
SPARED = Counter(
    "whispr_ws_spared_total",
    "Frames that slow readers went without, by event and by how: drop, or conflate (a later one took its place)",
    ["event", "policy"],
)
