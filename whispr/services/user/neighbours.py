"""What the user service asks of others; given to it by whoever puts a process together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime

import trio

from whispr.errors import unavailable


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The other services."""

    set_display_name: Callable[[str, str], Awaitable[str]]
    """Has auth change the name others see of a person (first); returns the name."""
    owns_picture: Callable[[str, str], Awaitable[bool]]
    """Asks media whether a person (first) owns a medium that is a finished image."""
    last_seen: Callable[[Collection[str]], Awaitable[dict[str, datetime]]]
    """When people were last connected, of those of whom it is known."""


async def _nobody(user_id: str, value: str) -> str:
    await trio.lowlevel.checkpoint()
    raise unavailable("this process reaches no other service")


async def _no_media(user_id: str, media_id: str) -> bool:
    await trio.lowlevel.checkpoint()
    raise unavailable("this process reaches no other service")


async def _nothing_known(user_ids: Collection[str]) -> dict[str, datetime]:
    await trio.lowlevel.checkpoint()
    return {}


ALONE = Neighbours(_nobody, _no_media, _nothing_known)
"""Of a user service that reaches nobody: what needs another is UNAVAILABLE."""
