"""From the domain's values to protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping

from whispr.services.notification.deliveries import Status
from whispr.services.notification.devices import Device
from whispr.services.notification.domain import (
    ConversationPreference,
    Level,
    Preferences,
    QuietHours,
    time_of,
)
from whispr.services.notification.inbox import Entry
from whispr.v1 import notification_pb2 as pb

_LEVELS = {
    Level.DEFAULT: pb.ConversationPreference.DEFAULT,
    Level.ALL: pb.ConversationPreference.ALL,
    Level.MENTIONS: pb.ConversationPreference.MENTIONS,
    Level.NONE: pb.ConversationPreference.NONE,
}
_ERRORS = {"pending": "queued", "sending": "queued", "gone": "device_gone", "delivered": ""}


def notification(entry: Entry) -> pb.Notification:
    """Build a Notification."""
    return pb.Notification(
        id=entry.id,
        type=entry.type,
        conversation_id=entry.conversation_id,
        actor_id=entry.actor_id,
        title=entry.title,
        body=entry.body,
        data=dict(entry.data),
        priority=entry.priority.name,
        count=entry.count,
        created_at=entry.at,
        read_at=entry.read_at,
    )


def device(found: Device) -> pb.Device:
    """Build a Device."""
    return pb.Device(
        id=found.id,
        platform=found.platform.value,
        name=found.name,
        created_at=found.created_at,
        last_delivered_at=found.last_delivered_at,
    )


def status(found: Status) -> pb.DeliveryStatus:
    """Build a DeliveryStatus."""
    delivered = found.state == "delivered"
    error = _ERRORS.get(found.state, found.error or found.state)
    return pb.DeliveryStatus(
        user_id=found.user_id,
        device_id=found.device_id,
        delivered=delivered,
        error_message=error,
        delivered_at=found.at if delivered else None,
    )


def preferences(own: Preferences, conversations: Mapping[str, ConversationPreference]) -> pb.Preferences:
    """Build Preferences."""
    return pb.Preferences(
        enabled=own.enabled,
        previews=own.previews,
        quiet_hours=_quiet_hours(own.quiet_hours) if own.quiet_hours is not None else None,
        types=dict(own.types),
        conversations=[
            pb.ConversationPreference(
                conversation_id=conversation_id, level=_LEVELS[wish.level], muted_until=wish.muted_until
            )
            for conversation_id, wish in conversations.items()
        ],
    )


def _quiet_hours(quiet: QuietHours) -> pb.QuietHours:
    made = pb.QuietHours(
        to=time_of(quiet.end),
        time_zone=quiet.time_zone,
        days=quiet.days,
        also_urgent=quiet.also_urgent,
    )
    setattr(made, "from", time_of(quiet.start))  # a keyword of Python
    return made
