"""Conversations, their members and their messages: the one owner of the schema `conversations`.

`domain` holds the rules and touches nothing; `store` reads; `membership` changes who is in; `log` appends
messages, many at a time; `permissions` asks the user service and remembers its answers. Services import
from the submodules.
"""

from __future__ import annotations

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
"""The SQL files of the schema `conversations`; they read `auth.people`, so they run after those of auth."""
