"""Telling people of messages: who, in which words, once."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.conversations.kit import a_group, sign_up
from tests.services.kit import as_
from tests.services.notification.kit import AT_ONCE, Subscription, World, event, message_event, world
from tests.services.notification.servers import PushServer, Reply
from whispr.adapters.postgres import Postgres
from whispr.errors import unavailable
from whispr.ids import new_id
from whispr.services.notification.notifier import Options
from whispr.v1 import notification_pb2 as pb


def bodies(push: PushServer) -> list[dict[str, Any]]:
    return [msgspec.json.decode(request.body) for request in push.requests]


async def test_a_message_reaches_the_members_who_are_not_there(
    notifications: World, push: PushServer
) -> None:
    """Not the sender, not who reads on a live socket; the others get an entry and a signed push."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    notifications.others.names[group] = "Chess"
    secret = (await notifications.webhook(bob, f"{push.url}/bob")).secret
    for user_id in (ann, cid):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    notifications.sockets.reads[f"conversation:{group}"] = {cid}
    notifications.sockets.online = {ann, bob, cid}
    sent = await notifications.sent(group, ann, 1, "your  move\nnow")
    await notifications.tell()

    (request,) = push.requests
    assert (request.method, request.path) == ("POST", "/bob")
    moment, _, digest = request.headers["whispr-signature"].partition(",v1=")
    expected = hmac.new(secret.encode(), moment[2:].encode() + b"." + request.body, hashlib.sha256)
    assert digest == expected.hexdigest()
    assert abs(int(moment[2:]) - datetime.now(UTC).timestamp()) < 60
    told = msgspec.json.decode(request.body)
    assert (told["type"], told["title"], told["body"]) == ("message", "Chess", "Somebody: your move now")
    assert told["data"]["message_id"] == sent.id
    assert told["unread_count"] == 1

    inbox = await notifications.inbox(bob)
    assert inbox.unread_count == 1
    assert inbox.notifications[0].id == told["notification_id"]
    assert inbox.notifications[0].actor_id == ann
    assert (await notifications.inbox(ann)).unread_count == 0
    assert (await notifications.inbox(cid)).unread_count == 0
    ((topic, name, payload),) = notifications.sockets.announced
    assert (topic, name, payload["id"]) == (f"user:{bob}", "notification", told["notification_id"])
    assert payload["unread_count"] == 1


async def test_a_message_that_everybody_has_on_screen_costs_nothing(
    notifications: World, push: PushServer
) -> None:
    """Whose other members all read in this process leaves nothing behind, unless one of them is away."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    topic = f"conversation:{group}"
    noted = "SELECT array_agg(seq ORDER BY seq) FROM notifications.messages"
    notifications.sockets.reads[topic] = {bob, cid}
    await notifications.sent(group, ann, 1, member_count=3)
    assert await notifications.db.fetchval(noted) is None
    notifications.sockets.reads[topic] = {ann, bob}
    await notifications.sent(group, ann, 2, member_count=3)
    await notifications.sent(group, ann, 3)
    assert await notifications.db.fetchval(noted) == [2, 3]


async def test_messages_are_noted_together_and_once(notifications: World, push: PushServer) -> None:
    """Events that come at once are told of as when they come one by one, and those among them that repeat once."""
    teller = notifications.service.teller
    one, (ann, bob) = await a_group(notifications.db)
    other, (cid, dan) = await a_group(notifications.db)
    for user_id in (bob, dan):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    first = message_event(one, ann, 1, "one", metadata={"mentions": f"{bob} {ann}"})
    rest = [message_event(one, ann, 2, "two"), message_event(other, cid, 1, "other")]
    await teller.message_sent(first)
    await teller.messages_sent([first, *rest, rest[0]])
    await notifications.tell()
    await teller.messages_sent([first, *rest])
    await notifications.tell()
    told = {request.path[1:]: msgspec.json.decode(request.body) for request in push.requests}
    assert {user_id: each["body"] for user_id, each in told.items()} == {bob: "2 new messages", dan: "other"}
    assert len(push.requests) == 2


async def test_a_burst_is_one_push(notifications: World, push: PushServer) -> None:
    """Messages that come together are told together, and later ones go into the entry that is still unread."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    for seq in range(1, 6):
        await notifications.sent(group, ann, seq, f"{seq}")
    await notifications.tell()
    assert [told["body"] for told in bodies(push)] == ["5 new messages"]
    await notifications.sent(group, ann, 6)
    await notifications.tell()
    assert [told["body"] for told in bodies(push)] == ["5 new messages", "6 new messages"]
    assert len({told["notification_id"] for told in bodies(push)}) == 1
    assert {told["collapse_key"] for told in bodies(push)} == {f"conversation:{group}"}
    (entry,) = (await notifications.inbox(bob)).notifications
    assert (entry.count, entry.data["seq"]) == (6, "6")


async def test_everybody_is_told_of_what_the_others_said(notifications: World, push: PushServer) -> None:
    """In a burst of several senders each is told of the messages that are not their own."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    for user_id in (ann, bob, cid):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    await notifications.sent(group, ann, 1, "one")
    await notifications.sent(group, ann, 2, "two")
    await notifications.sent(group, bob, 3, "three")
    await notifications.tell()
    told = {request.path[1:]: msgspec.json.decode(request.body)["body"] for request in push.requests}
    assert told == {ann: "three", bob: "2 new messages", cid: "3 new messages"}


async def test_a_repeated_event_tells_nothing_twice(notifications: World, push: PushServer) -> None:
    """The bus delivers at least once; a phone rings once."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    sent = await notifications.sent(group, ann, 1)
    await notifications.service.teller.message_sent(sent)
    await notifications.tell()
    await notifications.service.teller.message_sent(sent)
    await notifications.tell()
    assert len(push.requests) == 1
    assert (await notifications.inbox(bob)).notifications[0].count == 1


async def test_a_burst_that_was_interrupted_is_told_once(notifications: World, push: PushServer) -> None:
    """What another service's absence interrupted is told later; a process that lost its lease tells nothing."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    await notifications.sent(group, ann, 1)
    notifications.others.failure = unavailable("the user service is away")
    assert await notifications.service.teller.tell_due() == 0.0
    assert not push.requests
    notifications.others.failure = None
    await notifications.db.execute("UPDATE notifications.bursts SET due_at = now()")
    bursts = notifications.service.notifier.bursts
    (slow,) = await bursts.take(10)
    assert await bursts.take(10) == []
    await notifications.db.execute("UPDATE notifications.bursts SET lease_until = '-infinity'")
    await notifications.tell()
    assert len(push.requests) == 1
    await notifications.service.notifier.tell_burst(slow)
    await notifications.pushed()
    assert len(push.requests) == 1


async def test_old_and_system_messages_ring_nowhere(notifications: World, push: PushServer) -> None:
    """A replayed stream tells nothing; a system message and one sent silently are pushed silently."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    old = message_event(group, ann, 1)
    await notifications.service.teller.message_sent(
        msgspec.structs.replace(old, time=datetime.now(UTC) - timedelta(hours=2))
    )
    await notifications.sent(group, ann, 2, deleted=True)
    await notifications.tell()
    assert (await notifications.inbox(bob)).unread_count == 0
    await notifications.sent(group, ann, 3, message_type="system")
    await notifications.tell()
    await notifications.sent(group, ann, 4, metadata={"silent": "true"})
    await notifications.tell()
    assert [told["silent"] for told in bodies(push)] == [True, True]


async def test_what_only_recipients_can_read_is_not_shown(notifications: World, push: PushServer) -> None:
    """Encrypted content has no preview, nor has any for people who do not want it."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    await notifications.webhook(bob, f"{push.url}/bob")
    await notifications.webhook(cid, f"{push.url}/cid")
    await notifications.stub.UpdatePreferences(pb.UpdatePreferencesRequest(previews=False), metadata=as_(cid))
    contents: list[dict[str, Any]] = [
        {"text": "secret"},
        {"text": "c2VjcmV0", "encrypted": True},
        {"text": None},
    ]
    for seq, facts in enumerate(contents, 1):
        await notifications.sent(group, ann, seq, **facts)
        await notifications.tell()
        for user_id in (bob, cid):
            await notifications.stub.MarkNotificationsAsRead(
                pb.MarkNotificationsAsReadRequest(), metadata=as_(user_id)
            )
    await notifications.pushed()
    told = [(r.path, msgspec.json.decode(r.body)) for r in push.requests]
    shown = {path: [b["body"] for p, b in told if p == path and b["type"] == "message"] for path, _ in told}
    assert shown == {
        "/bob": ["secret", "New message", "New message"],
        "/cid": ["New message", "New message", "New message"],
    }


async def test_blocks_hold_both_ways(notifications: World, push: PushServer) -> None:
    """Nobody is told of messages of people they blocked or who blocked them."""
    group, (ann, bob, cid, dan) = await a_group(notifications.db, 4)
    for user_id in (bob, cid, dan):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    notifications.others.blocks = {(bob, ann), (ann, cid)}
    await notifications.sent(group, ann, 1)
    await notifications.tell()
    assert [request.path for request in push.requests] == [f"/{dan}"]


async def test_who_left_or_has_read_is_not_told(notifications: World, push: PushServer) -> None:
    """Membership and the read watermark count as they are when people are told."""
    group, (ann, bob, cid) = await a_group(notifications.db, 3)
    for user_id in (bob, cid):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    await notifications.sent(group, ann, 1)
    await notifications.db.execute("UPDATE conversations.members SET left_at = now() WHERE user_id = $1", bob)
    await notifications.db.execute("UPDATE conversations.members SET read_seq = 1 WHERE user_id = $1", cid)
    await notifications.tell()
    assert not push.requests
    assert (await notifications.inbox(cid)).unread_count == 0


async def test_mutes_levels_and_mentions(notifications: World, push: PushServer) -> None:
    """A muted conversation tells nothing until the mute ends; at level MENTIONS a mention is told, as such."""
    group, (ann, bob, cid, dan) = await a_group(notifications.db, 4)
    for user_id in (bob, cid, dan):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    wish = pb.ConversationPreference(conversation_id=group)
    wish.muted_until.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    await notifications.stub.UpdatePreferences(
        pb.UpdatePreferencesRequest(conversations=[wish]), metadata=as_(bob)
    )
    mentions = pb.ConversationPreference(conversation_id=group, level=pb.ConversationPreference.MENTIONS)
    await notifications.stub.UpdatePreferences(
        pb.UpdatePreferencesRequest(conversations=[mentions]), metadata=as_(cid)
    )
    await notifications.db.execute(
        "UPDATE conversations.members SET notify_muted_until = 'infinity' WHERE user_id = $1", dan
    )
    await notifications.sent(group, ann, 1)
    await notifications.tell()
    assert not push.requests
    await notifications.sent(group, ann, 2, metadata={"mentions": f"{cid}, {bob} nonsense"})
    await notifications.tell()
    assert [request.path for request in push.requests] == [f"/{cid}"]
    assert (bodies(push)[0]["type"], bodies(push)[0]["priority"]) == ("mention", "HIGH")
    await notifications.db.execute(
        "UPDATE notifications.conversation_preferences SET muted_until = now() WHERE user_id = $1", bob
    )
    await notifications.sent(group, ann, 3)
    await notifications.tell()
    assert [request.path for request in push.requests] == [f"/{cid}", f"/{bob}"]


async def test_a_large_conversation_tells_of_mentions_only(
    db: Postgres, tmp_path: Any, push: PushServer
) -> None:
    """Beyond `everyone_max` members, those are told who are mentioned or asked for everything."""
    async with world(db, tmp_path, Options(batch_s=0, everyone_max=2)) as notifications:
        group, (ann, bob, cid, dan) = await a_group(db, 4)
        for user_id in (bob, cid, dan):
            await notifications.webhook(user_id, f"{push.url}/{user_id}")
        everything = pb.ConversationPreference(conversation_id=group, level=pb.ConversationPreference.ALL)
        await notifications.stub.UpdatePreferences(
            pb.UpdatePreferencesRequest(conversations=[everything]), metadata=as_(bob)
        )
        await notifications.sent(group, ann, 1)
        await notifications.tell()
        await notifications.sent(group, ann, 2, metadata={"mentions": cid})
        await notifications.tell()
        assert sorted(r.path[1:] for r in push.requests) == sorted([bob, bob, cid])


async def test_quiet_hours_keep_the_inbox(notifications: World, push: PushServer) -> None:
    """During quiet hours nothing rings, and the inbox has it all the same; so without devices or with all off."""
    group, (ann, bob, cid, dan) = await a_group(notifications.db, 4)
    for user_id in (bob, cid):
        await notifications.webhook(user_id, f"{push.url}/{user_id}")
    now = datetime.now(UTC)
    quiet = pb.QuietHours(to=f"{(now + timedelta(hours=2)):%H:%M}", time_zone="Etc/UTC")
    setattr(quiet, "from", f"{(now - timedelta(hours=2)):%H:%M}")
    await notifications.stub.UpdatePreferences(
        pb.UpdatePreferencesRequest(quiet_hours=quiet), metadata=as_(bob)
    )
    await notifications.stub.UpdatePreferences(pb.UpdatePreferencesRequest(enabled=False), metadata=as_(cid))
    await notifications.sent(group, ann, 1)
    await notifications.tell()
    assert not push.requests
    for user_id in (bob, cid, dan):
        assert (await notifications.inbox(user_id)).unread_count == 1


async def test_reading_elsewhere_clears_inbox_and_screens(notifications: World, push: PushServer) -> None:
    """A read watermark marks what it covers as read and tells devices to take it off, and sockets."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, f"{push.url}/phone")
    await notifications.webhook(bob, f"{push.url}/desk")
    notifications.sockets.online = {bob}
    await notifications.sent(group, ann, 1)
    await notifications.sent(group, ann, 2)
    await notifications.tell()
    told = bodies(push)[0]
    half = event("read", group, conversation_id=group, conversation_kind="group", user_id=bob, seq=1)
    await notifications.service.teller.read(half)
    (entry,) = (await notifications.inbox(bob)).notifications
    assert (entry.count, entry.HasField("read_at")) == (1, False)
    whole = event("read", group, conversation_id=group, conversation_kind="group", user_id=bob, seq=2)
    await notifications.service.teller.read(whole)
    await notifications.pushed()
    assert (await notifications.inbox(bob)).unread_count == 0
    clears = bodies(push)[2:]
    assert sorted(r.path for r in push.requests[2:]) == ["/desk", "/phone"]
    for clear in clears:
        assert (clear["type"], clear["silent"], clear["unread_count"]) == ("clear", True, 0)
        assert clear["data"]["notification_ids"] == told["notification_id"]
        assert clear["collapse_key"] == told["collapse_key"]
    topic, name, payload = notifications.sockets.announced[-1]
    assert (topic, name, payload["type"], payload["unread_count"]) == (
        f"user:{bob}",
        "notification",
        "read",
        0,
    )
    await notifications.service.teller.read(whole)
    await notifications.pushed()
    assert len(push.requests) == 4


async def test_a_push_that_waits_is_dropped_when_it_was_read(notifications: World, push: PushServer) -> None:
    """A push service that was away is not asked for what the person has read meanwhile."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    push.otherwise = Reply(503)
    await notifications.sent(group, ann, 1)
    await notifications.tell()
    await notifications.stub.MarkNotificationsAsRead(
        pb.MarkNotificationsAsReadRequest(conversation_id=group), metadata=as_(bob)
    )
    assert await notifications.states() == ["read"]
    await notifications.db.execute("UPDATE notifications.deliveries SET due_at = now()")
    await notifications.pushed()
    assert len(push.requests) == 1


async def test_a_deleted_message_is_not_told_and_its_words_vanish(
    notifications: World, push: PushServer
) -> None:
    """Deleted for everyone: what waits is dropped, and what an inbox shows is taken out."""
    group, (ann, bob) = await a_group(notifications.db)
    shown = await notifications.sent(group, ann, 1, "oops")
    await notifications.tell()
    await notifications.service.teller.deleted(event("message_deleted", group, message_id=shown.id))
    assert (await notifications.inbox(bob)).notifications[0].body == "This message was deleted"
    await notifications.webhook(bob, push.url)
    waiting = await notifications.sent(group, ann, 2, "oops")
    await notifications.service.teller.deleted(event("message_deleted", group, message_id=waiting.id))
    await notifications.tell()
    assert not push.requests


async def test_an_edited_message_is_told_without_its_words(notifications: World, push: PushServer) -> None:
    """What it said before is shown nowhere: not in a push that comes later, and no more in the inbox."""
    group, (ann, bob) = await a_group(notifications.db)
    shown = await notifications.sent(group, ann, 1, "oops")
    await notifications.tell()
    await notifications.service.teller.edited(event("message_edited", group, message_id=shown.id))
    assert (await notifications.inbox(bob)).notifications[0].body == "This message was edited"
    other, (cid, dan) = await a_group(notifications.db)
    await notifications.webhook(dan, push.url)
    waiting = await notifications.sent(other, cid, 1, "oops")
    await notifications.service.teller.edited(event("message_edited", other, message_id=waiting.id))
    await notifications.tell()
    assert [told["body"] for told in bodies(push)] == ["New message"]


async def test_people_are_told_who_brought_them_in(notifications: World, push: PushServer) -> None:
    """Added to a group or invited to a room: by whom, once, and not who did it themselves."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    teller = notifications.service.teller
    created = event(
        "conversation_created", group, ann, conversation_id=group, conversation_kind="group",
        member_ids=[ann, bob], name="Chess",
    )  # fmt: skip
    notifications.others.names = {group: "Chess"}
    for each in (
        created,
        created,
        event("member_added", group, ann, conversation_id=group, conversation_kind="group", user_id=bob),
        event("member_added", group, conversation_id=group, conversation_kind="group", user_id=bob),
        event("user_invited", group, ann, room_id=group, user_id=bob),
        event("member_added", group, bob, conversation_id=group, conversation_kind="group", user_id=bob),
        event(
            "conversation_created",
            group,
            ann,
            conversation_id=group,
            conversation_kind="direct",
            member_ids=[bob],
        ),
    ):
        await teller.invited(each)
        await notifications.pushed()
    assert [(told["type"], told["title"], told["body"]) for told in bodies(push)] == [
        ("member_added", "Chess", "Somebody added you"),
        ("member_added", "Chess", "Somebody added you"),
        ("member_added", "A group", "You were added"),
        ("user_invited", "Chess", "Somebody invited you"),
    ]
    assert (await notifications.inbox(bob)).notifications[-1].id == created.id
    assert (await notifications.inbox(ann)).unread_count == 0


async def test_devices_end_with_their_session(notifications: World, push: PushServer) -> None:
    """Whoever signs out hears no more on that device; a webhook, which is none, stays."""
    ann, bob = await sign_up(notifications.db, 2)
    for user_id in (ann, bob):
        browser = Subscription(f"{push.url}/{user_id}")
        await notifications.stub.RegisterDevice(browser.request(), metadata=as_(user_id))
    await notifications.webhook(ann, push.url)
    await notifications.service.teller.session_ended(
        event("session_revoked", ann, user_id=ann, session_id="s", reason="logout")
    )
    left = await notifications.db.fetch("SELECT user_id, platform FROM notifications.devices")
    assert {(str(row["user_id"]), row["platform"]) for row in left} == {(ann, "webhook"), (bob, "webpush")}


async def test_an_inbox_keeps_its_length(db: Postgres, tmp_path: Any) -> None:
    """Past the limit the oldest entries go."""
    async with world(db, tmp_path, msgspec.structs.replace(AT_ONCE, inbox_length=2)) as notifications:
        people = await sign_up(db, 1)
        for _ in range(4):
            group, (ann, *_) = await a_group(db, 1)
            await db.execute(
                "INSERT INTO conversations.members (conversation_id, user_id, role) VALUES ($1, $2, 'member')",
                group, people[0],
            )  # fmt: skip
            await notifications.sent(group, ann, 1)
            await notifications.tell()
        inbox = await notifications.inbox(people[0])
        assert inbox.notifications[0].conversation_id == group
        assert len(inbox.notifications) == 2


async def test_messages_of_many_conversations_are_due_in_their_own_time(notifications: World) -> None:
    """A burst is due `batch_s` after its first message, not after its last."""
    group, (ann, _) = await a_group(notifications.db)
    bursts = notifications.service.notifier.bursts
    notifier = notifications.service.notifier
    notifier.options = Options(batch_s=100)
    await notifications.sent(group, ann, 1)
    first = await notifications.db.fetchval("SELECT due_at FROM notifications.bursts")
    await notifications.sent(group, ann, 2)
    assert await notifications.db.fetchval("SELECT due_at FROM notifications.bursts") == first
    assert await bursts.take(10) == []
    assert 90 < (await bursts.seconds_to_next() or 0) <= 100


async def test_a_message_that_comes_while_a_burst_is_told_is_told_too(
    notifications: World, push: PushServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst ends only when nothing has been added to it meanwhile."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(bob, push.url)
    await notifications.sent(group, ann, 1)
    others = notifications.others
    blocked = others.blocked

    async def meanwhile(sender_id: str, user_ids: Any) -> set[str]:
        monkeypatch.setattr(others, "blocked", blocked)
        await notifications.sent(group, ann, 2)
        return await blocked(sender_id, user_ids)

    monkeypatch.setattr(others, "blocked", meanwhile)
    await notifications.tell()
    # The push of the first may have been sent by then or not; if not, the second took its place.
    assert bodies(push)[-1]["body"] == "2 new messages"
    assert await notifications.db.fetchval("SELECT count(*) FROM notifications.bursts") == 0


async def test_an_account_that_ends_leaves_nothing(notifications: World, push: PushServer) -> None:
    """Erased with an account: devices, inbox, preferences, and what the person said in others' inboxes."""
    group, (ann, bob) = await a_group(notifications.db)
    await notifications.webhook(ann, push.url)
    await notifications.stub.UpdatePreferences(pb.UpdatePreferencesRequest(enabled=False), metadata=as_(ann))
    await notifications.sent(group, ann, 1, "secret")
    await notifications.sent(group, bob, 2, "secret")
    await notifications.tell()
    await notifications.service.teller.account_deleted(event("account_deleted", ann))
    for table in ("devices", "inbox", "preferences", "deliveries"):
        held = f"SELECT count(*) FROM notifications.{table} WHERE user_id = $1"  # noqa: S608  # from the list above
        assert await notifications.db.fetchval(held, ann) == 0, table
    (entry,) = (await notifications.inbox(bob)).notifications
    assert (entry.actor_id, entry.title, entry.body) == ("", "Somebody", "")
    await notifications.service.teller.account_deleted(event("account_deleted", new_id()))
