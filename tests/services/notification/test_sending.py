"""Send… calls: what services have people told, one by one and in bulk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import trio

from tests.conversations.kit import NOBODY, a_group, sign_up
from tests.services.kit import as_, as_service
from tests.services.notification.kit import (
    World,
    a_message,
    faults,
    refusal,
    why,
)
from tests.services.notification.servers import PushServer, Reply
from whispr.errors import Code, WhisprError
from whispr.ids import new_id
from whispr.v1 import notification_pb2 as pb

Preference = pb.ConversationPreference


# Sending


async def test_a_service_notifies_of_a_message(notifications: World, push: PushServer) -> None:
    """Every device is tried before the reply, which says what became of each, and why some were left out."""
    group, (ann, bob, cid, dan, eve) = await a_group(notifications.db, 5)
    stranger = (await sign_up(notifications.db, 1))[0]
    first = (await notifications.webhook(bob, f"{push.url}/1")).device.id
    second = (await notifications.webhook(bob, f"{push.url}/2")).device.id
    await notifications.webhook(dan, f"{push.url}/3")
    notifications.sockets.reads[f"conversation:{group}"] = {dan}
    notifications.others.blocks = {(eve, ann)}
    push.otherwise = lambda request: Reply(200 if request.path == "/1" else 404)
    request = a_message(
        group,
        ann,
        ann,
        bob,
        cid,
        dan,
        eve,
        stranger,
        preview_text="hello",
        priority="URGENT",
        metadata={"a": "b"},
    )
    reply = await notifications.stub.SendMessageNotification(request, metadata=as_service())
    assert why(reply) == {
        first: "", second: "the webhook answered 404", ann: "sender", cid: "no_device", dan: "reading",
        eve: "blocked", stranger: "not_a_member",
    }  # fmt: skip
    delivered = next(each for each in reply.delivery_statuses if each.device_id == first)
    assert delivered.delivered
    assert abs(delivered.delivered_at.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(seconds=60)
    told = msgspec.json.decode(push.requests[0].body)
    assert (told["body"], told["priority"], told["data"]["a"]) == ("hello", "URGENT", "b")
    for user_id, unread in ((bob, 1), (cid, 1), (dan, 0), (eve, 0), (stranger, 0)):
        inbox = await notifications.inbox(user_id)
        assert [each.id for each in inbox.notifications] == [reply.notification_id] * unread

    again = await notifications.stub.SendMessageNotification(request, metadata=as_service())
    assert again.notification_id == reply.notification_id
    assert why(again)[first] == ""
    assert len(push.requests) == 2


async def test_without_recipients_all_members_are_told(notifications: World) -> None:
    """An empty list is everybody; a direct call by a person is refused."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    request = a_message(group, ann)
    reply = await notifications.stub.SendMessageNotification(request, metadata=as_service())
    assert why(reply) == {ann: "sender", bob: "no_device", cid: "no_device"}
    for call in (
        notifications.stub.SendMessageNotification(request, metadata=as_(ann)),
        notifications.stub.SendBulkNotifications(pb.SendBulkNotificationsRequest(), metadata=as_(ann)),
        notifications.stub.SendConversationNotification(
            pb.SendConversationNotificationRequest(), metadata=as_(ann)
        ),
    ):
        assert await refusal(call) == (Code.PERMISSION_DENIED, "service_only")


async def test_a_message_told_by_event_and_by_call_is_pushed_once(
    notifications: World, push: PushServer
) -> None:
    """However many tell of a message, a device hears of it once."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    sent = await notifications.sent(group, ann, 1)
    await notifications.tell()
    request = a_message(group, ann)
    request.message_id = sent.id
    reply = await notifications.stub.SendMessageNotification(request, metadata=as_service())
    assert [each.delivered for each in reply.delivery_statuses if each.device_id] == [True]
    assert len(push.requests) == 1


async def test_a_service_notifies_of_what_happened(notifications: World, push: PushServer) -> None:
    """Conversation notifications reach readers and those who were removed, but no muted type, and never the actor."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    removed = (await sign_up(notifications.db, 1))[0]
    for user_id in (bob, cid, removed):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    notifications.sockets.reads[f"conversation:{group}"] = {bob}
    await notifications.stub.UpdatePreferences(
        pb.UpdatePreferencesRequest(types={"member_removed": False}), metadata=as_(cid)
    )
    request = pb.SendConversationNotificationRequest(
        conversation_id=group, event_type="member_removed", actor_id=ann, title="Chess", body="Dan left",
        recipient_ids=[ann, bob, cid, removed], data={"user_id": removed},
    )  # fmt: skip
    reply = await notifications.stub.SendConversationNotification(request, metadata=as_service())
    assert {user: reason for user, reason in why(reply).items() if reason} == {ann: "sender", cid: "muted"}
    assert {request.path[1:] for request in push.requests} == {bob, removed}
    told = msgspec.json.decode(push.requests[0].body)
    assert (told["type"], told["title"], told["body"]) == ("member_removed", "Chess", "Dan left")
    assert told["data"]["user_id"] == removed
    (entry,) = (await notifications.inbox(removed)).notifications
    assert (entry.type, entry.conversation_id) == ("member_removed", group)


async def test_urgent_passes_quiet_hours_unless_it_may_not(notifications: World, push: PushServer) -> None:
    """URGENT rings at night, unless the person said that not even that may."""
    group, (ann, bob) = await a_group(notifications.db)
    device = (await notifications.webhook(bob, push.url)).device.id
    now = datetime.now(UTC)
    quiet = pb.QuietHours(to=f"{(now + timedelta(hours=2)):%H:%M}", time_zone="Etc/UTC")
    setattr(quiet, "from", f"{(now - timedelta(hours=2)):%H:%M}")
    for priority, also_urgent, expected in (
        ("HIGH", False, {bob: "quiet_hours"}),
        ("URGENT", False, {device: ""}),
        ("URGENT", True, {bob: "quiet_hours"}),
    ):
        quiet.also_urgent = also_urgent
        await notifications.stub.UpdatePreferences(
            pb.UpdatePreferencesRequest(quiet_hours=quiet), metadata=as_(bob)
        )
        reply = await notifications.stub.SendMessageNotification(
            a_message(group, ann, bob, priority=priority), metadata=as_service()
        )
        assert why(reply) == expected


async def test_what_takes_longer_than_the_caller_is_queued(notifications: World, push: PushServer) -> None:
    """The reply comes at the caller's deadline, and the push goes on by itself."""
    group, (ann, bob) = await a_group(notifications.db)
    device = (await notifications.webhook(bob, push.url)).device.id
    push.hold = trio.Event()
    with trio.fail_after(1.5):
        reply = await notifications.stub.SendMessageNotification(
            a_message(group, ann, bob), metadata=as_service()
        )
    assert why(reply) == {device: "queued"}
    push.hold.set()
    await notifications.pushed()
    assert await notifications.states() == ["delivered"]


async def test_requests_are_checked_field_by_field(notifications: World) -> None:
    """Everything that is wrong is named at once; lengths are bounded."""
    send = notifications.stub.SendMessageNotification
    bad = pb.SendMessageNotificationRequest(
        message_id="x", recipient_ids=["y"], message_type="song", preview_text="z" * 513,
        metadata={"k": "v" * 2048}, priority=9,  # type: ignore[arg-type]  # that is the point
    )  # fmt: skip
    assert await faults(send(bad, metadata=as_service())) == {
        "message_id", "conversation_id", "sender_id", "recipient_ids", "message_type", "preview_text", "metadata",
        "priority",
    }  # fmt: skip
    nul = a_message(NOBODY, NOBODY, NOBODY, metadata={"a": "b\0"}, preview_text="a\0b")
    assert await faults(send(nul, metadata=as_service())) == {"metadata"}
    many = a_message(NOBODY, NOBODY, *[new_id() for _ in range(1001)])
    assert await faults(send(many, metadata=as_service())) == {"recipient_ids"}
    event = pb.SendConversationNotificationRequest(
        conversation_id=NOBODY, event_type="message", title=" ", body="b" * 513, actor_id="x"
    )
    assert await faults(notifications.stub.SendConversationNotification(event, metadata=as_service())) == {
        "event_type",
        "title",
        "body",
        "actor_id",
    }


# Bulk


async def test_bulk_reports_what_failed(notifications: World) -> None:
    """Without `fail_on_error` bad ones are reported by their position, and the others are sent."""
    group, (ann, bob) = await a_group(notifications.db)
    bulk = pb.SendBulkNotificationsRequest(
        notifications=[
            a_message(group, ann, bob),
            pb.SendMessageNotificationRequest(),
            a_message(group, ann),
        ],
        batch_size=2,
    )
    reply = await notifications.stub.SendBulkNotifications(bulk, metadata=as_service())
    assert (reply.total_sent, reply.total_failed) == (2, 1)
    assert [(each.index, each.reason) for each in reply.errors] == [(1, "invalid_payload")]
    assert len({each.notification_id for each in reply.results}) == 2
    assert (await notifications.inbox(bob)).unread_count == 2


async def test_bulk_fails_on_error(notifications: World) -> None:
    """With it nothing is sent when one is bad, and nothing after a batch in which one failed."""
    group, (ann, bob) = await a_group(notifications.db)
    bulk = pb.SendBulkNotificationsRequest(
        notifications=[a_message(group, ann, bob), pb.SendMessageNotificationRequest()], fail_on_error=True
    )
    call = notifications.stub.SendBulkNotifications(bulk, metadata=as_service())
    assert await faults(call) == {
        f"notifications[1].{each}" for each in ("message_id", "conversation_id", "sender_id")
    }
    assert (await notifications.inbox(bob)).unread_count == 0
    del bulk.notifications[1]
    bulk.notifications.extend([a_message(group, ann, bob) for _ in range(3)])
    bulk.batch_size = 2
    blocked = notifications.others.blocked
    calls = 0

    async def fails_second(sender_id: str, user_ids: Any) -> set[str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise WhisprError(Code.UNAVAILABLE, "the user service is away")
        return await blocked(sender_id, user_ids)

    notifications.others.blocked = fails_second  # type: ignore[method-assign]  # the test's own fake
    reply = await notifications.stub.SendBulkNotifications(bulk, metadata=as_service())
    assert (reply.total_sent, reply.total_failed) == (1, 3)
    assert [each.reason for each in reply.errors if each.index > 1] == ["not_attempted", "not_attempted"]


async def test_bulk_is_bounded(notifications: World) -> None:
    """Notifications, recipients in all, and the size of a batch."""
    send = notifications.stub.SendBulkNotifications
    many = pb.SendBulkNotificationsRequest(notifications=[pb.SendMessageNotificationRequest()] * 1001)
    assert await faults(send(many, metadata=as_service())) == {"notifications"}
    crowd = pb.SendMessageNotificationRequest(recipient_ids=[NOBODY] * 1001)
    assert await faults(
        send(pb.SendBulkNotificationsRequest(notifications=[crowd] * 10), metadata=as_service())
    ) == {"notifications"}
    assert await faults(send(pb.SendBulkNotificationsRequest(batch_size=101), metadata=as_service())) == {
        "batch_size"
    }
