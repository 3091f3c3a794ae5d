"""Whispr: a self-hosted backend for chat, presence and live audio, in structured concurrency."""

import h2.events

# purerpc 0.8, whose servicers and signatures we use, annotates with an event that h2 4 renamed. The alias
# has to exist before anything of ours imports purerpc; a package's __init__ always runs before its modules.
if not hasattr(h2.events, "PingAcknowledged"):
    h2.events.PingAcknowledged = h2.events.PingAckReceived  # type: ignore[attr-defined]  # the old name

__version__ = "0.1.0"
