"""Devices: registered, pushed to, tried again, and forgotten."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.conversations.kit import a_group, sign_up
from tests.services.kit import as_, as_service
from tests.services.notification.kit import (
    AT_ONCE,
    Subscription,
    World,
    a_message,
    faults,
    refusal,
    why,
    world,
)
from tests.services.notification.servers import PushServer, Reply, http1_server
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError
from whispr.ids import new_id
from whispr.services.notification import dispatcher as dispatching
from whispr.services.notification.domain import Priority
from whispr.services.notification.requests import Addresses
from whispr.services.notification.senders.port import Push
from whispr.v1 import notification_pb2 as pb

Preference = pb.ConversationPreference


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


async def begun(
    notifications: World, request: pb.SendMessageNotificationRequest, push: PushServer, requests: int = 1
) -> None:
    """Have a notification sent, and go away once its pushes are under way."""

    async def send() -> None:
        await notifications.stub.SendMessageNotification(request, metadata=as_service())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await push.wait_requests(requests)
        nursery.cancel_scope.cancel(reason="the caller has seen enough")


async def test_a_process_that_stops_lets_pushes_come_to_their_end(
    db: Postgres, tmp_path: Path, push: PushServer
) -> None:
    """An orderly stop loses no push that is under way."""
    push.hold = trio.Event()
    async with world(db, tmp_path) as notifications, trio.open_nursery() as nursery:
        group, (ann, bob) = await a_group(db)
        await notifications.webhook(bob, push.url)
        request = a_message(group, ann, bob)
        await begun(notifications, request, push)
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
        await begun(notifications, a_message(group, ann, bob), slow, 2)
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
