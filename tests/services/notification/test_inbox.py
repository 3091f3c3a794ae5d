"""The inbox, preferences, and what is held about a person, over gRPC."""

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
)
from tests.services.notification.servers import PushServer
from whispr.errors import Code
from whispr.ids import new_id
from whispr.services.notification import personal
from whispr.v1 import common_pb2
from whispr.v1 import notification_pb2 as pb

Preference = pb.ConversationPreference


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


async def test_old_entries_are_let_go(notifications: World) -> None:
    """What nobody changed for `inbox_days` is removed, read or not; the rest stays."""
    group, (ann, bob) = await a_group(notifications.db)
    for _ in range(3):
        await notifications.stub.SendMessageNotification(a_message(group, ann, bob), metadata=as_service())
    old = (await notifications.inbox(bob)).notifications[1].id
    await notifications.db.execute(
        "UPDATE notifications.inbox SET at = now() - interval '91 days' WHERE id = $1", old
    )
    assert await personal.prune(notifications.db, datetime.now(UTC) - timedelta(days=90)) == 1
    left = [each.id for each in (await notifications.inbox(bob)).notifications]
    assert (len(left), old in left) == (2, False)


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
