"""NotificationService over gRPC: what services send, and what people see to themselves."""

from __future__ import annotations

import random
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.conversations.kit import NOBODY, a_group, sign_up
from tests.services.kit import as_, as_service
from tests.services.notification.kit import AT_ONCE, Subscription, World, world
from tests.services.notification.servers import PushServer, Reply, http1_server
from whispr.adapters.postgres import Postgres
from whispr.conversations.ids import new_id
from whispr.errors import Code, WhisprError
from whispr.services.notification import dispatcher as dispatching
from whispr.services.notification.domain import Priority
from whispr.services.notification.requests import Addresses
from whispr.services.notification.senders.port import Push
from whispr.v1 import common_pb2
from whispr.v1 import notification_pb2 as pb

Preference = pb.ConversationPreference


async def refusal(call: Awaitable[Any]) -> tuple[Code, str]:
    with pytest.raises(WhisprError) as refused:
        await call
    return refused.value.code, refused.value.reason


async def faults(call: Awaitable[Any]) -> set[str]:
    with pytest.raises(WhisprError) as refused:
        await call
    assert refused.value.code is Code.INVALID_ARGUMENT
    return set(refused.value.fields)


def a_message(group: str, sender: str, *recipients: str, **fields: Any) -> pb.SendMessageNotificationRequest:
    return pb.SendMessageNotificationRequest(
        message_id=new_id(), conversation_id=group, sender_id=sender, recipient_ids=recipients, **fields
    )


def why(reply: pb.SendNotificationResponse) -> dict[str, str]:
    """Person or device → why nothing was pushed; empty where it was."""
    return {each.device_id or each.user_id: each.error_message for each in reply.delivery_statuses}


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
    with trio.fail_after(0.6):
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


# The inbox


async def test_the_inbox_is_read_page_by_page_and_marked(notifications: World) -> None:
    """Latest first, by page, unread only, of one conversation; marking says what was not there."""
    groups = [await a_group(notifications.db) for _ in range(2)]
    bob = (await sign_up(notifications.db, 1))[0]
    ids = []
    for number in range(5):
        group, (ann, _) = groups[number % 2]
        event = pb.SendConversationNotificationRequest(
            conversation_id=group, event_type="poll", title=f"{number}", actor_id=ann, recipient_ids=[bob]
        )
        reply = await notifications.stub.SendConversationNotification(event, metadata=as_service())
        ids.append(reply.notification_id)
    page = await notifications.inbox(bob, page_size=2)
    assert [each.title for each in page.notifications] == ["4", "3"]
    assert page.unread_count == 5
    rest = await notifications.inbox(bob, page_size=9, page_token=page.next_page_token)
    assert ([each.title for each in rest.notifications], rest.next_page_token) == (["2", "1", "0"], "")
    of_one = await notifications.inbox(bob, conversation_id=groups[1][0])
    assert [each.title for each in of_one.notifications] == ["3", "1"]
    assert await faults(notifications.inbox(bob, page_token="junk")) == {"page_token"}
    assert (await notifications.inbox(groups[0][1][0])).unread_count == 0

    async def mark(who: str, **fields: Any) -> tuple[int, list[str], int]:
        request = pb.MarkNotificationsAsReadRequest(**fields)
        reply = await notifications.stub.MarkNotificationsAsRead(request, metadata=as_(who))
        return reply.marked_count, list(reply.failed_notification_ids), reply.unread_count

    assert await mark(bob, notification_ids=[ids[0], NOBODY]) == (1, [NOBODY], 4)
    assert await mark(bob, notification_ids=[ids[0]]) == (0, [], 4)
    assert await mark(groups[0][1][0], notification_ids=[ids[1]]) == (0, [ids[1]], 0)
    assert await mark(bob, conversation_id=groups[1][0]) == (2, [], 2)
    unread = await notifications.inbox(bob, unread_only=True)
    assert [each.title for each in unread.notifications] == ["4", "2"]
    assert await mark(bob) == (2, [], 0)
    assert (await notifications.inbox(bob)).notifications[0].HasField("read_at")
    assert await faults(mark(bob, notification_ids=["x"])) == {"notification_ids"}
    assert await faults(mark(bob, notification_ids=[NOBODY] * 1001)) == {"notification_ids"}
    service = pb.MarkNotificationsAsReadRequest()
    assert await refusal(notifications.stub.MarkNotificationsAsRead(service, metadata=as_service())) == (
        Code.PERMISSION_DENIED,
        "forbidden",
    )
    await notifications.stub.MarkNotificationsAsRead(service, metadata=as_service(bob))


async def test_marking_clears_the_other_devices(notifications: World, push: PushServer) -> None:
    """All devices that showed it are told, but the one on which it was read."""
    group, (ann, bob) = await a_group(notifications.db)
    phone = (await notifications.webhook(bob, f"{push.url}/phone")).device.id
    await notifications.webhook(bob, f"{push.url}/desk")
    notifications.sockets.online = {bob}
    reply = await notifications.stub.SendMessageNotification(
        a_message(group, ann, bob), metadata=as_service()
    )
    request = pb.MarkNotificationsAsReadRequest(notification_ids=[reply.notification_id], device_id=phone)
    request.read_at.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    await notifications.stub.MarkNotificationsAsRead(request, metadata=as_(bob))
    await notifications.pushed()
    assert [each.path for each in push.requests[2:]] == ["/desk"]
    assert msgspec.json.decode(push.requests[2].body)["type"] == "clear"
    read_at = (await notifications.inbox(bob)).notifications[0].read_at.ToDatetime(UTC)
    assert read_at <= datetime.now(UTC)
    *_, (topic, event, payload) = notifications.sockets.announced
    assert (topic, event) == (f"user:{bob}", "notification")
    assert payload == {
        "type": "read", "notification_ids": [reply.notification_id], "conversation_ids": [group], "unread_count": 0
    }  # fmt: skip


# Devices


async def test_devices_come_and_go(notifications: World, push: PushServer) -> None:
    """Registered, listed without its token, pushed to with its keys, and gone."""
    group, (ann, bob) = await a_group(notifications.db)
    browser = Subscription(f"{push.url}/sub")
    stub = notifications.stub
    reply = await stub.RegisterDevice(browser.request(name=" my\tbrowser "), metadata=as_(bob))
    assert (reply.device.platform, reply.device.name, reply.secret) == ("webpush", "my browser", "")
    listed = await stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(bob))
    assert [each.id for each in listed.devices] == [reply.device.id]
    push.otherwise = Reply(201)
    await stub.SendMessageNotification(a_message(group, ann, bob, preview_text="hi"), metadata=as_service())
    assert browser.decrypt(push.requests[0])["body"] == "hi"
    listed = await stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(bob))
    assert listed.devices[0].HasField("last_delivered_at")
    gone = pb.UnregisterDeviceRequest(device_id=reply.device.id)
    assert (await refusal(stub.UnregisterDevice(gone, metadata=as_(ann))))[0] is Code.NOT_FOUND
    await stub.UnregisterDevice(gone, metadata=as_(bob))
    assert (await refusal(stub.UnregisterDevice(gone, metadata=as_(bob))))[0] is Code.NOT_FOUND
    assert not (await stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(bob))).devices


async def test_a_token_belongs_to_one_person(notifications: World, push: PushServer) -> None:
    """Registered again it is updated; by somebody else it moves, and what waited for the first is not sent."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    first = await notifications.webhook(bob, push.url)
    again = await notifications.webhook(bob, push.url, name="new")
    assert (again.device.id, again.device.name) == (first.device.id, "new")
    assert again.secret != first.secret
    push.otherwise = Reply(503)
    await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    moved = await notifications.webhook(cid, push.url)
    assert moved.device.id != first.device.id
    assert not (await notifications.stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(bob))).devices
    await notifications.db.execute("UPDATE notifications.deliveries SET due_at = now()")
    await notifications.pushed()
    assert len(push.requests) == 1
    assert await notifications.states() == ["gone"]
    assert (await notifications.stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(cid))).devices


async def test_a_person_has_so_many_devices(db: Postgres, tmp_path: Path) -> None:
    """The limit holds also when many are registered at once, and moving a device in counts."""
    async with world(db, tmp_path, msgspec.structs.replace(AT_ONCE, user_devices=3)) as notifications:
        ann, bob = await sign_up(db, 2)
        refused: list[str] = []

        async def register(number: int) -> None:
            try:
                await notifications.webhook(ann, f"https://hooks.example/{number}")
            except WhisprError as error:
                refused.append(error.reason)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(register, number)
        assert refused == ["too_many_devices"] * 5
        await notifications.webhook(bob, "https://hooks.example/bob")
        call = notifications.webhook(ann, "https://hooks.example/bob")
        assert await refusal(call) == (Code.RESOURCE_EXHAUSTED, "too_many_devices")
        assert (await notifications.stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(bob))).devices


async def test_registrations_are_limited(notifications: World) -> None:
    """A person registers so often in an hour."""
    ann = (await sign_up(notifications.db, 1))[0]
    notifications.limiter.taken = [f"devices:{ann}"] * 120
    call = notifications.webhook(ann, "https://hooks.example/")
    assert await refusal(call) == (Code.RESOURCE_EXHAUSTED, "rate_limited")


async def test_what_is_no_device_is_refused(db: Postgres, tmp_path: Path) -> None:
    """Platforms, tokens, keys and addresses are checked when a device is registered."""
    async with world(db, tmp_path, addresses=Addresses()) as notifications:
        ann = (await sign_up(db, 1))[0]
        register = notifications.stub.RegisterDevice

        async def wrong(**fields: Any) -> set[str]:
            return await faults(register(pb.RegisterDeviceRequest(**fields), metadata=as_(ann)))

        assert await wrong(platform="pager", token="x") == {"platform"}
        assert await wrong(platform="webhook") == {"token"}
        assert await wrong(platform="apns", token="xyz") == {"token"}
        assert await wrong(platform="fcm", token="short") == {"token"}
        assert await wrong(platform="webhook", token="https://x.example/" + "x" * 4096) == {"token"}
        assert await wrong(platform="webhook", token="https://x.example/", name="n" * 65) == {"name"}
        fine = Subscription("https://push.example/1").request()
        off_curve = pb.RegisterDeviceRequest(platform="webpush", token=fine.token, auth=fine.auth)
        off_curve.p256dh = "BA" + "A" * 85
        assert await faults(register(off_curve, metadata=as_(ann))) == {"p256dh"}
        assert await wrong(platform="webpush", token=fine.token, p256dh="!", auth="AAAA") == {
            "p256dh",
            "auth",
        }
        for url in (
            "http://hooks.example/", "ftp://hooks.example/", "https://", "nonsense", "https://u:p@hooks.example/",
            "https://hooks.example/#x", "https://127.0.0.1/", "https://[::1]/", "https://localhost/",
            "https://localhost./", "https://printer.local/", "https://10.0.0.1/", "https://169.254.169.254/",
            "https://intranet/", "https://127.1/", "https://0x7f000001/", "https://2130706433/",
            "https://[::ffff:10.0.0.1]/", "https://hooks.example:port/", "https://hooks.example/ x",
        ):  # fmt: skip
            assert await wrong(platform="webhook", token=url) == {"token"}, url
        call = register(pb.RegisterDeviceRequest(platform="fcm", token="a" * 30), metadata=as_(ann))
        assert await refusal(call) == (Code.FAILED_PRECONDITION, "platform_disabled")
        await register(fine, metadata=as_(ann))
        config = await notifications.stub.GetPushConfig(pb.GetPushConfigRequest(), metadata=as_(ann))
        assert list(config.platforms) == ["webpush", "webhook"]
        assert len(config.vapid_public_key) == 87


# What becomes of pushes


async def test_devices_that_are_gone_are_forgotten(notifications: World, push: PushServer) -> None:
    """A subscription that ended is removed at once, and not pushed to again."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.stub.RegisterDevice(Subscription(push.url).request(), metadata=as_(bob))
    push.otherwise = Reply(410)
    reply = await notifications.stub.SendMessageNotification(
        a_message(group, ann, bob), metadata=as_service()
    )
    assert [each.error_message for each in reply.delivery_statuses] == ["device_gone"]
    reply = await notifications.stub.SendMessageNotification(
        a_message(group, ann, bob), metadata=as_service()
    )
    assert why(reply) == {bob: "no_device"}
    assert len(push.requests) == 1


async def test_a_busy_push_service_is_asked_again(notifications: World, push: PushServer) -> None:
    """429 and 5xx are tried again, not before the time they name, until it works; the person is told once."""
    group, (ann, bob) = await a_group(notifications.db)
    device = (await notifications.webhook(bob, push.url)).device.id
    push.answers = [Reply(429, [("retry-after", "100")]), Reply(500)]
    reply = await notifications.stub.SendMessageNotification(
        a_message(group, ann, bob), metadata=as_service()
    )
    assert why(reply) == {device: "queued"}
    waits = "SELECT extract(epoch FROM due_at - now())::float8 FROM notifications.deliveries"
    assert 90 < await notifications.db.fetchval(waits) <= 110
    for _ in range(2):
        await notifications.db.execute("UPDATE notifications.deliveries SET due_at = now()")
        await notifications.pushed()
    assert await notifications.states() == ["delivered"]
    ids = {request.headers["whispr-delivery"] for request in push.requests}
    assert (len(push.requests), len(ids)) == (3, 1)


async def test_trying_ends(notifications: World, push: PushServer) -> None:
    """After so many attempts, or when the push is of no use any more, it is given up."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    push.otherwise = Reply(503)
    await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    for _ in range(dispatching.ATTEMPTS_MAX + 2):
        await notifications.db.execute("UPDATE notifications.deliveries SET due_at = now()")
        await notifications.pushed()
    assert len(push.requests) == dispatching.ATTEMPTS_MAX
    assert await notifications.states() == ["expired"]
    await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    await notifications.db.execute(
        "UPDATE notifications.deliveries SET due_at = now(), expires_at = now() WHERE state = 'pending'"
    )
    await notifications.pushed()
    assert await notifications.states() == ["expired", "expired"]
    assert len(push.requests) == dispatching.ATTEMPTS_MAX + 1


async def test_a_device_that_always_refuses_is_removed(notifications: World, push: PushServer) -> None:
    """A webhook that answers 404 for long enough is as good as gone."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    await notifications.db.execute("UPDATE notifications.devices SET refusals = 24")
    push.otherwise = Reply(404)
    await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    assert not (await notifications.stub.ListDevices(pb.ListDevicesRequest(), metadata=as_(bob))).devices


async def test_what_a_crash_left_behind_is_not_sent_again(notifications: World, push: PushServer) -> None:
    """A push that was under way when its process died counts as lost: at most once."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    await notifications.db.execute(
        "UPDATE notifications.deliveries SET state = 'sending', finished_at = NULL,"
        " lease_until = now() - interval '1 s'"
    )
    deliveries = notifications.service.notifier.deliveries
    assert await deliveries.sweep() == 1
    assert await notifications.states() == ["unknown"]
    await notifications.pushed()
    assert len(push.requests) == 1
    await notifications.db.execute(
        "UPDATE notifications.deliveries SET finished_at = now() - interval '4 days'"
    )
    assert await deliveries.sweep() == 1
    assert await notifications.states() == []


async def test_a_process_that_stops_lets_pushes_come_to_their_end(
    db: Postgres, tmp_path: Path, push: PushServer
) -> None:
    """An orderly stop loses no push that is under way."""
    push.hold = trio.Event()
    async with world(db, tmp_path) as notifications, trio.open_nursery() as nursery:
        group, (ann, bob) = await a_group(db)
        await notifications.webhook(bob, push.url)
        request = a_message(group, ann, bob)
        with trio.move_on_after(0.3):
            await notifications.stub.SendMessageNotification(request, metadata=as_service())
        await push.wait_requests(1)
        stopping = dispatching.Dispatcher(
            notifications.service.notifier.deliveries,
            notifications.service.senders.by_platform,
            jitter=random.Random(1),
        )
        await nursery.start(stopping.run)
        await notifications.db.execute(
            "UPDATE notifications.deliveries SET state = 'pending', due_at = now()"
        )
        stopping.wake()
        await push.wait_requests(2)
        nursery.cancel_scope.cancel(reason="the process stops")
        push.hold.set()
    rows = await db.fetch("SELECT state FROM notifications.deliveries")
    assert [row["state"] for row in rows] == ["delivered"]


async def test_a_sender_that_breaks_ends_only_its_own_push(
    notifications: World, push: PushServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in a sender is logged, and the dispatcher goes on."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    sender = notifications.service.senders.by_platform["webhook"]  # type: ignore[index]  # a StrEnum's value
    send = sender.send

    async def broken(*args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    monkeypatch.setattr(sender, "send", broken)
    reply = await notifications.stub.SendMessageNotification(
        a_message(group, ann, bob), metadata=as_service()
    )
    assert [each.error_message for each in reply.delivery_statuses] == ["internal"]
    monkeypatch.setattr(sender, "send", send)
    await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    assert len(push.requests) == 1


async def test_several_dispatchers_send_each_push_once(
    db: Postgres, tmp_path: Path, push: PushServer
) -> None:
    """Any number of processes may run; a claim is one's."""
    async with world(db, tmp_path) as notifications, trio.open_nursery() as nursery:
        group, people = await a_group(db, 12)
        for user_id in people[1:]:
            await notifications.webhook(user_id, f"{push.url}/{user_id}")
        for _ in range(2):
            other = dispatching.Dispatcher(
                notifications.service.notifier.deliveries, notifications.service.senders.by_platform
            )
            await nursery.start(other.run)
        await notifications.stub.SendMessageNotification(a_message(group, people[0]), metadata=as_service())
        await notifications.pushed()
        nursery.cancel_scope.cancel(reason="the test is over")
    assert sorted(request.path for request in push.requests) == sorted(f"/{each}" for each in people[1:])


async def test_a_slow_host_holds_up_its_own_pushes_only(
    db: Postgres, tmp_path: Path, push: PushServer
) -> None:
    """However many wait for it, the others' pushes are sent; and what matters more goes first."""
    async with http1_server() as slow, world(db, tmp_path, host_requests=2) as notifications:
        slow.hold = trio.Event()
        group, (ann, bob, cid) = await a_group(db, 3)
        for number in range(6):
            await notifications.webhook(bob, f"{slow.url}/{number}")
        await notifications.webhook(cid, push.url)
        with trio.move_on_after(0.3):
            await notifications.stub.SendMessageNotification(
                a_message(group, ann, bob), metadata=as_service()
            )
        await slow.wait_requests(2)
        reply = await notifications.stub.SendMessageNotification(
            a_message(group, ann, cid), metadata=as_service()
        )
        assert [each.delivered for each in reply.delivery_statuses] == [True]
        assert slow.at_once == 2
        slow.hold.set()
        with trio.fail_after(10):
            while len(slow.requests) < 6:
                await db.execute("UPDATE notifications.deliveries SET due_at = now() WHERE state = 'pending'")
                await notifications.pushed()
        assert (slow.at_once_max, len(slow.requests)) == (2, 6)
        attempts = await db.fetch("SELECT attempts FROM notifications.deliveries")
        assert {row["attempts"] for row in attempts} == {1}


async def test_what_matters_goes_first(notifications: World) -> None:
    """Of what waits, URGENT is claimed before HIGH, and that before the rest."""
    deliveries = notifications.service.notifier.deliveries
    ann = (await sign_up(notifications.db, 1))[0]
    async with notifications.db.transaction() as tx:
        for priority in Priority:
            push = Push(type="message", notification_id=new_id(), priority=priority)
            await deliveries.add(tx, new_id(), "", 60, [(ann, new_id(), push)])
        # Not committed: the dispatcher does not take them from under the test.
        rows = await tx.fetch(
            "SELECT push ->> 'priority' AS priority FROM notifications.deliveries ORDER BY due_at, id"
        )
    assert [row["priority"] for row in rows][:2] == ["4", "3"]


# Preferences


async def test_preferences_are_merged(notifications: World) -> None:
    """What a request sets changes, what it leaves out stays; a conversation is replaced, and plain ones vanish."""
    ann = (await sign_up(notifications.db, 1))[0]
    one, two = new_id(), new_id()

    async def update(**fields: Any) -> pb.Preferences:
        request = pb.UpdatePreferencesRequest(**fields)
        return (await notifications.stub.UpdatePreferences(request, metadata=as_(ann))).preferences

    fresh = (
        await notifications.stub.GetPreferences(pb.GetPreferencesRequest(), metadata=as_(ann))
    ).preferences
    assert (fresh.enabled, fresh.previews, fresh.HasField("quiet_hours")) == (True, True, False)
    quiet = pb.QuietHours(to="07:00", time_zone="Europe/Paris", days=[5, 1, 5])
    setattr(quiet, "from", "22:30")
    forever = Preference(conversation_id=two)
    forever.muted_until.FromDatetime(datetime(9999, 12, 31, tzinfo=UTC))
    await update(previews=False, quiet_hours=quiet, types={"poll": False})
    now = await update(
        types={"event": True}, conversations=[Preference(conversation_id=one, level=Preference.NONE), forever]
    )
    assert (now.enabled, now.previews, dict(now.types)) == (True, False, {"poll": False, "event": True})
    assert (getattr(now.quiet_hours, "from"), now.quiet_hours.to, list(now.quiet_hours.days)) == (
        "22:30", "07:00", [1, 5],
    )  # fmt: skip
    levels = {each.conversation_id: each for each in now.conversations}
    assert levels[one].level == Preference.NONE
    assert levels[two].muted_until.ToDatetime(UTC).year == 9999
    now = await update(clear_quiet_hours=True, conversations=[Preference(conversation_id=one)])
    assert not now.HasField("quiet_hours")
    assert [each.conversation_id for each in now.conversations] == [two]


async def test_preferences_are_checked_and_bounded(notifications: World) -> None:
    """Times, zones, days, types, levels and counts; a refused request changes nothing."""
    ann = (await sign_up(notifications.db, 1))[0]

    async def update(**fields: Any) -> Any:
        return await notifications.stub.UpdatePreferences(
            pb.UpdatePreferencesRequest(**fields), metadata=as_(ann)
        )

    bad = pb.QuietHours(to="7:00", time_zone="Mars/Base", days=[8])
    setattr(bad, "from", "25:00")
    assert await faults(update(quiet_hours=bad)) == {
        f"quiet_hours.{each}" for each in ("from", "to", "time_zone", "days")
    }
    same = pb.QuietHours(to="07:00", time_zone="../etc/passwd")
    setattr(same, "from", "07:00")
    assert await faults(update(quiet_hours=same)) == {"quiet_hours.to", "quiet_hours.time_zone"}
    assert await faults(update(quiet_hours=same, clear_quiet_hours=True)) >= {"clear_quiet_hours"}
    assert await faults(update(types={"No!": True})) == {"types"}
    wrong = Preference(conversation_id="x", level=9)  # type: ignore[arg-type]  # that is the point
    assert await faults(update(conversations=[wrong])) == {
        "conversations[0].conversation_id",
        "conversations[0].level",
    }
    many = [Preference(conversation_id=new_id(), level=Preference.NONE) for _ in range(1001)]
    assert await faults(update(conversations=many)) == {"conversations"}
    await update(conversations=many[:1000])
    assert await refusal(update(previews=False, conversations=many[1000:])) == (
        Code.RESOURCE_EXHAUSTED, "too_many_preferences",
    )  # fmt: skip
    types = {f"type_{number}": True for number in range(33)}
    assert await refusal(update(types=types)) == (Code.RESOURCE_EXHAUSTED, "too_many_preferences")
    reply = await notifications.stub.GetPreferences(pb.GetPreferencesRequest(), metadata=as_(ann))
    assert reply.preferences.previews


async def test_changes_at_the_same_time_do_not_undo_each_other(notifications: World) -> None:
    """Two devices that change different things both get their way."""
    ann = (await sign_up(notifications.db, 1))[0]

    async def wish(name: str) -> None:
        request = pb.UpdatePreferencesRequest(types={name: False})
        await notifications.stub.UpdatePreferences(request, metadata=as_(ann))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(wish, f"type_{number}")
    reply = await notifications.stub.GetPreferences(pb.GetPreferencesRequest(), metadata=as_(ann))
    assert len(reply.preferences.types) == 10


# Personal data


async def test_everything_held_about_a_person_is_handed_over(notifications: World, push: PushServer) -> None:
    """ExportUserData: preferences, devices without their secrets, and the inbox over all its pages."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url, name="hook")
    wish = Preference(conversation_id=group, level=Preference.ALL)
    await notifications.stub.UpdatePreferences(
        pb.UpdatePreferencesRequest(conversations=[wish]), metadata=as_(bob)
    )
    for _ in range(3):
        await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    records: dict[str, list[Any]] = {}
    request = common_pb2.ExportUserDataRequest(user_id=bob)
    async with notifications.stub.ExportUserData(request, metadata=as_service()) as answers:
        async for record in answers:
            assert record.source == "notification"
            records.setdefault(record.kind, []).append(msgspec.json.decode(record.json))
    assert {kind: len(found) for kind, found in records.items()} == {
        "preferences": 1, "conversation_preference": 1, "device": 1, "notification": 3,
    }  # fmt: skip
    assert records["device"][0]["token"] == push.url
    assert "secret" not in records["device"][0]
    assert records["conversation_preference"][0]["level"] == "all"
