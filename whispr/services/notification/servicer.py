"""NotificationService's RPCs. People see to their own inbox, devices and preferences; services tell people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import msgspec
import trio

from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.conversations.domain import Limits, clamp_page
from whispr.errors import WhisprError, conflict, invalid
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.services.notification import inbox as inboxes
from whispr.services.notification import personal, protobuf, requests
from whispr.services.notification.deliveries import Status
from whispr.services.notification.dispatcher import Dispatcher
from whispr.services.notification.domain import Platform
from whispr.services.notification.entries import Telling
from whispr.services.notification.notifier import Notifier, Told
from whispr.services.notification.requests import Addresses
from whispr.v1 import common_pb2
from whispr.v1 import notification_pb2 as pb
from whispr.v1.notification_grpc import NotificationServiceServicer

WAIT_S = 5.0
"""How long a Send… call waits for devices, unless its caller has less patience."""
RETURN_S = 0.2
"""What of the caller's patience is left for the reply."""
LOOK_EVERY_S = 0.25
BATCH, BATCH_MAX = 50, 100
BULK_MAX = 1_000
BULK_RECIPIENTS_MAX = 10_000
IDS_MAX = 1_000
REGISTRATIONS_PER_HOUR = 120


class NotificationServicer(NotificationServiceServicer):
    """Answers from the notifier's stores."""

    def __init__(
        self,
        db: Postgres,
        notifier: Notifier,
        dispatcher: Dispatcher,
        *,
        limiter: RateLimiter,
        limits: Limits,
        addresses: Addresses,
        platforms: Sequence[Platform],
        vapid_public_key: str,
    ) -> None:
        super().__init__()
        self._db = db
        self._notifier = notifier
        self._dispatcher = dispatcher
        self._limiter = limiter
        self._limits = limits
        self._addresses = addresses
        self._platforms = tuple(platforms)
        self._vapid_public_key = vapid_public_key

    # For services

    async def SendMessageNotification(
        self, input_message: pb.SendMessageNotificationRequest
    ) -> pb.SendNotificationResponse:
        """Notify people of a message."""
        return await self._send(requests.message_telling(input_message))

    async def SendConversationNotification(
        self, input_message: pb.SendConversationNotificationRequest
    ) -> pb.SendNotificationResponse:
        """Notify people of something that happened in a conversation."""
        return await self._send(requests.conversation_telling(input_message))

    async def SendBulkNotifications(
        self, input_message: pb.SendBulkNotificationsRequest
    ) -> pb.SendBulkNotificationsResponse:
        """Notify people of several messages."""
        tellings = _bulk(input_message)
        size = input_message.batch_size or BATCH
        reply = pb.SendBulkNotificationsResponse()
        for start in range(0, len(tellings), size):
            if reply.errors and input_message.fail_on_error:
                rest = range(start, len(tellings))
                reply.errors.extend(_error(index, "not_attempted", "an earlier one failed") for index in rest)
                break
            await self._send_batch(reply, start, tellings[start : start + size])
        reply.total_sent, reply.total_failed = len(reply.results), len(reply.errors)
        return reply

    async def _send_batch(
        self, reply: pb.SendBulkNotificationsResponse, start: int, batch: Sequence[Telling | WhisprError]
    ) -> None:
        """Send the notifications of one batch beside each other."""
        results: dict[int, pb.SendNotificationResponse | WhisprError] = {}

        async def one(index: int, telling: Telling | WhisprError) -> None:
            try:
                if isinstance(telling, WhisprError):
                    raise telling
                results[index] = await self._send(telling)
            except WhisprError as error:
                results[index] = error

        async with trio.open_nursery() as nursery:
            for index, telling in enumerate(batch, start):
                nursery.start_soon(one, index, telling)
        for index in sorted(results):
            result = results[index]
            if isinstance(result, WhisprError):
                reply.errors.append(_error(index, result.reason, result.message))
            else:
                reply.results.append(result)

    async def _send(self, telling: Telling) -> pb.SendNotificationResponse:
        """Write what people are told, and wait for the first attempt at each device."""
        told = await self._notifier.tell(telling)
        self._dispatcher.wake()
        statuses = await self._tried(told)
        reply = pb.SendNotificationResponse(notification_id=told.notification_id)
        reply.delivery_statuses.extend(protobuf.status(status) for status in statuses)
        reply.delivery_statuses.extend(
            pb.DeliveryStatus(user_id=user_id, error_message=why.value)
            for user_id, why in told.skipped.items()
        )
        return reply

    async def _tried(self, told: Told) -> list[Status]:
        """Wait until every device was tried once, within the caller's patience; return what is known then."""
        ids = [device_id for _, device_id in told.devices]
        now = trio.current_time()
        until = min(now + WAIT_S, trio.current_effective_deadline() - RETURN_S)
        while True:
            statuses = await self._notifier.deliveries.statuses(told.about, ids) if ids else []
            if all(status.tried for status in statuses) or trio.current_time() >= until:
                return statuses
            # Another process may have taken some: those make no sound here.
            with trio.move_on_at(min(until, trio.current_time() + LOOK_EVERY_S)):
                await self._dispatcher.settled()

    async def ExportUserData(
        self, input_message: common_pb2.ExportUserDataRequest
    ) -> AsyncIterator[common_pb2.DataRecord]:
        """Yield everything held about a person."""
        user_id = parse_id(input_message.user_id, "user_id")
        notifier = self._notifier
        async with aclosing(personal.export(self._db, notifier.wishes, notifier.inbox, user_id)) as records:
            async for kind, json in records:
                yield common_pb2.DataRecord(source="notification", kind=kind, json=json)

    # The inbox

    async def MarkNotificationsAsRead(
        self, input_message: pb.MarkNotificationsAsReadRequest
    ) -> pb.MarkNotificationsAsReadResponse:
        """Mark entries of the caller's inbox as read."""
        user_id = _person()
        if len(input_message.notification_ids) > IDS_MAX:
            raise invalid({"notification_ids": f"at most {IDS_MAX}"})
        ids = [parse_id(each, "notification_ids") for each in input_message.notification_ids]
        conversation_id = _optional_id(input_message.conversation_id, "conversation_id")
        device_id = _optional_id(input_message.device_id, "device_id")
        at = inboxes.now()
        if input_message.HasField("read_at"):
            at = min(at, requests.moment_of(input_message.read_at, "read_at"))
        marked = await self._notifier.mark_read(
            user_id, at, ids=ids, conversation_id=conversation_id, device_id=device_id
        )
        self._dispatcher.wake()
        known = await self._notifier.inbox.known(user_id, ids) if ids else set()
        unread = await self._notifier.inbox.unread([user_id])
        return pb.MarkNotificationsAsReadResponse(
            marked_count=marked,
            failed_notification_ids=[each for each in dict.fromkeys(ids) if each not in known],
            unread_count=unread[user_id],
        )

    async def ListNotifications(
        self, input_message: pb.ListNotificationsRequest
    ) -> pb.ListNotificationsResponse:
        """Return a page of the caller's inbox."""
        user_id = _person()
        size = clamp_page(input_message.page_size, self._limits)
        entries, token = await self._notifier.inbox.page(
            user_id,
            size,
            input_message.page_token,
            unread_only=input_message.unread_only,
            conversation_id=_optional_id(input_message.conversation_id, "conversation_id"),
        )
        unread = await self._notifier.inbox.unread([user_id])
        return pb.ListNotificationsResponse(
            notifications=[protobuf.notification(entry) for entry in entries],
            next_page_token=token,
            unread_count=unread[user_id],
        )

    # Devices

    async def RegisterDevice(self, input_message: pb.RegisterDeviceRequest) -> pb.RegisterDeviceResponse:
        """Register a device of the caller's."""
        user_id = _person()
        await self._limiter.take(f"devices:{user_id}", REGISTRATIONS_PER_HOUR, 3600)
        new = requests.new_device(input_message, self._addresses)
        if new.platform not in self._platforms:
            raise conflict(f"{new.platform} is not set up on this server", "platform_disabled")
        actor = current_actor()
        if new.platform is not Platform.WEBHOOK and not actor.is_service:
            new = msgspec.structs.replace(new, session_id=actor.claims.session_id)
        device, secret = await self._notifier.devices.register(user_id, new)
        return pb.RegisterDeviceResponse(device=protobuf.device(device), secret=secret)

    async def UnregisterDevice(
        self, input_message: pb.UnregisterDeviceRequest
    ) -> pb.UnregisterDeviceResponse:
        """Remove a device of the caller's."""
        device_id = parse_id(input_message.device_id, "device_id")
        await self._notifier.devices.unregister(_person(), device_id)
        return pb.UnregisterDeviceResponse()

    async def ListDevices(self, input_message: pb.ListDevicesRequest) -> pb.ListDevicesResponse:
        """Return the caller's devices."""
        del input_message
        devices = await self._notifier.devices.of(_person())
        return pb.ListDevicesResponse(devices=[protobuf.device(device) for device in devices])

    async def GetPushConfig(self, input_message: pb.GetPushConfigRequest) -> pb.GetPushConfigResponse:
        """Return what a client needs to register."""
        del input_message
        await trio.lowlevel.checkpoint()
        return pb.GetPushConfigResponse(
            vapid_public_key=self._vapid_public_key, platforms=[each.value for each in self._platforms]
        )

    # Preferences

    async def GetPreferences(self, input_message: pb.GetPreferencesRequest) -> pb.GetPreferencesResponse:
        """Return what the caller wants to be told."""
        del input_message
        return pb.GetPreferencesResponse(preferences=await self._preferences(_person()))

    async def UpdatePreferences(
        self, input_message: pb.UpdatePreferencesRequest
    ) -> pb.UpdatePreferencesResponse:
        """Change what the caller wants to be told."""
        user_id = _person()
        conversations = requests.conversation_wishes(input_message)
        wishes = self._notifier.wishes
        await wishes.update(user_id, lambda own: requests.changed(own, input_message), conversations)
        return pb.UpdatePreferencesResponse(preferences=await self._preferences(user_id))

    async def _preferences(self, user_id: str) -> pb.Preferences:
        wishes = self._notifier.wishes
        return protobuf.preferences(await wishes.of(user_id), await wishes.conversations_of(user_id))


def _person() -> str:
    """Return the id of the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    return parse_id(current_actor().person, "x-whispr-actor")


def _optional_id(value: str, field: str) -> str:
    return parse_id(value, field) if value else ""


def _error(index: int, reason: str, message: str) -> pb.BulkError:
    return pb.BulkError(index=index, reason=reason, message=message)


def _bulk(request: pb.SendBulkNotificationsRequest) -> list[Telling | WhisprError]:
    """Read all notifications of a bulk; with `fail_on_error`, raise for the first one that is bad."""
    found = request.notifications
    if not 0 <= request.batch_size <= BATCH_MAX:
        raise invalid({"batch_size": f"1 to {BATCH_MAX}"})
    if len(found) > BULK_MAX:
        raise invalid({"notifications": f"at most {BULK_MAX}"})
    # An empty list is all members of a conversation, which is bounded by itself.
    if sum(len(each.recipient_ids) or 1 for each in found) > BULK_RECIPIENTS_MAX:
        raise invalid({"notifications": f"at most {BULK_RECIPIENTS_MAX} recipients in all"})
    tellings: list[Telling | WhisprError] = []
    for index, each in enumerate(found):
        try:
            tellings.append(requests.message_telling(each))
        except WhisprError as error:
            if request.fail_on_error:
                fields = {f"notifications[{index}].{name}": why for name, why in error.fields.items()}
                raise invalid(fields) from error
            tellings.append(error)
    return tellings
