"""MessagingService: conversations and messages over gRPC, and live on WebSocket channels."""

from __future__ import annotations
