"""UserService: people as others see them, who blocked whom, and who may do what in a conversation."""

from __future__ import annotations

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
"""The SQL files of the schema `users`; they run after those of auth and conversations."""
