"""NotificationService: inboxes, devices, preferences, and pushes through Web Push, webhooks, FCM and APNs."""

from __future__ import annotations

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
"""The SQL files of the schema `notifications`; they run after those of events, auth and conversations."""
