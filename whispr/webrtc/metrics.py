"""What the WebRTC endpoint counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

PEERS = Gauge("webrtc_peers", "WebRTC peers, connected or on the way there")
CONNECTED = Counter("webrtc_connected_total", "WebRTC peers whose handshake went through")
STRAY = Counter("webrtc_stray_datagrams_total", "Datagrams of addresses that no peer has")
REFUSED_CHECKS = Counter(
    "webrtc_refused_checks_total", "Checks of hosts that sent too many that were nobody's"
)
REFUSED_HANDSHAKES = Counter("webrtc_refused_handshakes_total", "Handshakes put off: too many were in flight")
FAILURES = Counter("webrtc_failures_total", "Datagrams on which a defect of ours showed")
LOST = Counter("webrtc_unsent_datagrams_total", "Datagrams the kernel did not take", ["reason"])
UNPROTECTED = Counter(
    "webrtc_unprotected_packets_total", "Packets that could not be encrypted, and were not sent"
)
SENT = Counter("webrtc_sent_packets_total", "RTP packets sent")
AGAIN = Counter("webrtc_resent_packets_total", "RTP packets sent again because a peer asked")
RECEIVED = Counter("webrtc_received_packets_total", "RTP packets received from publishers, by fate", ["fate"])


def lost(error: OSError) -> None:
    """Count a datagram that could not be sent."""
    LOST.labels("full" if isinstance(error, BlockingIOError) else "unreachable").inc()
