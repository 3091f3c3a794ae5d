"""ChatService: rooms, direct messages, moderation and their figures, over gRPC and as live streams."""

from __future__ import annotations
