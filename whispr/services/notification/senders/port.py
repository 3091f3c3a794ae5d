"""What a push is, and what becomes of it: the port that every sender implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from whispr.services.notification.domain import Platform, Priority


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is told. It has no recipient: one push may go to many devices."""

    type: str
    """Of the notification; `clear` takes notifications off the screen that were read elsewhere."""
    notification_id: str
    title: str = ""
    body: str = ""
    data: Mapping[str, str] = {}
    collapse_key: str = ""
    """A later push of the same key takes the place of an earlier one that was not shown yet."""
    priority: Priority = Priority.NORMAL
    silent: bool = False
    """The device updates itself and shows nothing."""
    badge: int = 0
    """Unread entries of the inbox."""
    trace: str = ""
    """W3C traceparent of what it tells of. It stays here: no device is told."""


TITLE_BYTES_MAX = 300
BODY_BYTES_MAX = 800
"""As JSON. With `domain.DATA_BYTES_MAX` of data and our own, below the 4,096 bytes that push services take."""


def fitted(push: Push) -> Push:
    """Cut title and body so that the push fits whatever script they are in."""
    return msgspec.structs.replace(
        push, title=_cut(push.title, TITLE_BYTES_MAX), body=_cut(push.body, BODY_BYTES_MAX)
    )


def _cut(text: str, bytes_max: int) -> str:
    size = len(msgspec.json.encode(text))
    while size > bytes_max:
        # At least as many characters go as there are bytes too many, over the most that one may take.
        text = text[: -max(2, (size - bytes_max) // 6)] + "…"
        size = len(msgspec.json.encode(text))
    return text


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A device as its sender sees it."""

    id: str
    platform: Platform
    token: str
    p256dh: bytes = b""
    auth: bytes = b""
    secret: str = ""


class Delivered(msgspec.Struct, frozen=True):
    """The push service took it."""


class Gone(msgspec.Struct, frozen=True):
    """The device is no more; it is to be forgotten."""

    reason: str


class Refused(msgspec.Struct, frozen=True):
    """This push will not be taken, however often it is sent."""

    reason: str


class Later(msgspec.Struct, frozen=True):
    """It may be taken later, not before `after_s` seconds if that is given."""

    reason: str
    after_s: float | None = None


Outcome = Delivered | Gone | Refused | Later


class Sender(Protocol):
    """Speaks to one kind of push service."""

    async def send(self, target: Target, push: Push, delivery_id: str, ttl_s: float) -> Outcome:
        """Send once. The push is of no use after `ttl_s` seconds. Time is the caller's; errors are outcomes."""


def payload_of(push: Push) -> bytes:
    """Encode a push as JSON, for receivers that we define: service workers and webhooks."""
    return msgspec.json.encode(
        {
            "type": push.type,
            "notification_id": push.notification_id,
            "title": push.title,
            "body": push.body,
            "data": push.data,
            "collapse_key": push.collapse_key,
            "priority": push.priority.name,
            "silent": push.silent,
            "unread_count": push.badge,
        }
    )


def strings_of(push: Push) -> dict[str, str]:
    """Flatten a push into the map of strings that FCM and APNs hand to an app."""
    return {
        **{key: value for key, value in push.data.items() if key not in _RESERVED},
        "type": push.type,
        "notification_id": push.notification_id,
        "collapse_key": push.collapse_key,
        "unread_count": str(push.badge),
    }


# FCM refuses some names; ours are set after the sender's.
_RESERVED = frozenset({"from", "message_type", "notification", "aps"})
