"""What the HTTP server counts. The process's own, over all its servers."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CONNECTIONS = Gauge("whispr_http_connections", "HTTP connections open now")
ACCEPTED = Counter("whispr_http_accepted_total", "HTTP connections accepted")
REFUSED = Counter(
    "whispr_http_refused_total", "Requests that the server answered itself, by reason", ["reason"]
)
FAILURES = Counter("whispr_http_failures_total", "Requests on which the application failed")
CLIENTS_GONE = Counter("whispr_http_clients_gone_total", "Clients that left before they had their answer")
