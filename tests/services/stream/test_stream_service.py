"""Streams from their making to their summary: who hears them, who is put out, what is told, kept and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
import trio

from tests.services.stream.kit import SERVICE, Rig, as_, open_rig
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.audio.packets import Quality
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import Code, WhisprError, unavailable
from whispr.events import Event
from whispr.services.stream.access import Shown
from whispr.services.stream.analytics import Counting
from whispr.services.stream.domain import StreamLimits
from whispr.services.stream.listener import Listener, Transport
from whispr.services.stream.livestate import TTL_S, Facts
from whispr.services.stream.notices import PUT_OUT, RECONSIDER, SUBJECT, WISH, Notice
from whispr.services.stream.urls import Granted
from whispr.v1 import chat_pb2, common_pb2
from whispr.v1 import stream_pb2 as pb

PATIENCE_S = 10.0


@pytest.fixture
async def rig(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(db, cache, bus, tmp_path) as running:
        yield running


async def refusal(rig: Rig, stream_id: str, shown: Shown, address: str = "192.0.2.1") -> WhisprError:
    """Why somebody is not let in."""
    with pytest.raises(WhisprError) as told:
        async with rig.service.audience.listening(stream_id, shown, Transport.WHEP, address, "test"):
            raise AssertionError("let in")
    return told.value


async def until_ended(listener: Listener) -> str:
    """Wait until a listener is put out; return why."""
    with trio.fail_after(PATIENCE_S):
        await listener.ended.wait()
    return listener.reason


async def emitted(rig: Rig, stream_id: str) -> set[str]:
    """Which events the bus gets of a stream."""
    kinds = await rig.db.fetch(
        "SELECT DISTINCT stream_subject FROM events.outbox WHERE about = $1", stream_id
    )
    return {row["stream_subject"].removeprefix("stream.events.") for row in kinds}


async def test_a_stream_and_its_listener(rig: Rig) -> None:
    """Listeners are listed, measured, told of changes and counted; the end puts them out and sums them up."""
    streamer, member = await rig.person("premium"), await rig.person()
    stream_id = await rig.stream(streamer)
    audience, rpc = rig.service.audience, rig.rpc
    joined = await rpc.JoinStream(
        pb.JoinStreamRequest(stream_id=stream_id, preferred_quality="LOW"), metadata=as_(member)
    )
    shown = Shown(query=joined.urls.hls.partition("?")[2])
    wishes: list[Quality | None] = []
    async with audience.listening(stream_id, shown, Transport.PROGRESSIVE, "192.0.2.1", "test") as listener:
        assert (listener.user_id, listener.quality) == (member, Quality.LOW)
        listener.on_wish(lambda wish: wishes.append(wish.quality))
        listener.report(rendition=Quality.LOW, buffer_ms=500, rebuffers=2, bytes_sent=1000, latency_ms=90)
        await audience.beat()
        found = await rpc.GetListeners(pb.GetListenersRequest(stream_id=stream_id), metadata=as_(streamer))
        assert [(each.user_id, each.quality) for each in found.listeners] == [(member, pb.Stream.LOW)]
        metrics = await rpc.GetAudioMetrics(
            pb.GetAudioMetricsRequest(stream_id=stream_id), metadata=as_(member)
        )
        assert metrics.quality_stats.quality_distribution == {"LOW": 1}
        assert (metrics.quality_stats.rebuffer_events, metrics.latency_ms) == (2, 90)
        info = await rpc.GetStreamInfo(pb.GetStreamInfoRequest(stream_id=stream_id), metadata=as_(member))
        assert info.stream.listener_count == 1
        await rpc.ChangeQuality(
            pb.ChangeQualityRequest(stream_id=stream_id, quality="HIGH"), metadata=as_(member)
        )
        assert wishes == [Quality.HIGH]
        with trio.CancelScope(shield=True):  # what it does is to cancel this block
            stopped = await rpc.StopStream(pb.StopStreamRequest(stream_id=stream_id), metadata=as_(streamer))
        assert await until_ended(listener) == "stream_ended"
        await trio.lowlevel.checkpoint()
        raise AssertionError("what serves a listener is cancelled")
    assert listener.reason == "stream_ended"
    await audience.beat()
    await rig.service._ledger.flush()
    report = await rpc.GetStreamAnalytics(
        pb.GetStreamAnalyticsRequest(stream_id=stream_id), metadata=as_(streamer)
    )
    assert (report.unique_listeners, report.max_concurrent, report.rebuffer_events) == (1, 1, 2)
    assert report.bytes_sent == 1000
    hour = report.hourly_activity[0]
    assert (hour.new_listeners, hour.listeners_left) == (1, 1)
    again = await rpc.StopStream(pb.StopStreamRequest(stream_id=stream_id), metadata=as_(streamer))
    assert again.summary.total_duration == stopped.summary.total_duration
    assert again.summary.unique_listeners == 1
    history = await rpc.GetUserListeningHistory(pb.GetUserListeningHistoryRequest(), metadata=as_(member))
    assert [(s.stream_id, s.transport, s.quality) for s in history.sessions] == [
        (stream_id, "progressive", pb.Stream.LOW)
    ]
    told = {event for _, event, _ in rig.announced}
    assert {"stream_started", "stream_stopped"} <= told
    assert await emitted(rig, stream_id) == {
        "stream_created", "stream_started", "stream_stopped", "listener_joined", "listener_left", "quality_changed",
    }  # fmt: skip


async def test_who_is_put_out_is_out_at_once(rig: Rig) -> None:
    """By RPC, by an invitation taken back, by a session ended, by a stream made private; and they stay out."""
    streamer = await rig.person("premium")
    stream_id = await rig.stream(streamer, visibility="PRIVATE_STREAM")
    audience, rpc = rig.service.audience, rig.rpc
    people = [await rig.person() for _ in range(3)]
    for user_id in people:
        assert (await refusal(rig, stream_id, Shown(user_id))).code is Code.NOT_FOUND
        body = pb.InviteListenerRequest(stream_id=stream_id, user_id=user_id)
        await rpc.InviteListener(body, metadata=as_(streamer))
    reasons: dict[str, str] = {}
    listening = trio.Event()

    async def listen(user_id: str) -> None:
        async with audience.listening(stream_id, Shown(user_id), Transport.WHEP, "192.0.2.1", "") as listener:
            if len(audience) == len(people):
                listening.set()
            await trio.sleep_forever()
        reasons[user_id] = listener.reason

    removed, uninvited, signed_out = people
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for user_id in people:
                nursery.start_soon(listen, user_id)
            await listening.wait()
            await rpc.RemoveListener(
                pb.RemoveListenerRequest(stream_id=stream_id, user_id=removed), metadata=as_(streamer)
            )
            await rpc.UninviteListener(
                pb.UninviteListenerRequest(stream_id=stream_id, user_id=uninvited), metadata=as_(streamer)
            )
            rig.tokens.end(signed_out)
    assert reasons == {removed: "removed", uninvited: "uninvited", signed_out: "session_revoked"}
    assert (await refusal(rig, stream_id, Shown(removed))).code is Code.NOT_FOUND
    url = await rpc.CreateListenUrl(pb.CreateListenUrlRequest(stream_id=stream_id), metadata=as_(streamer))
    with_url = Shown(query=url.urls.progressive.partition("?")[2])
    async with audience.listening(stream_id, with_url, Transport.WHEP, "192.0.2.1", ""):
        assert len(audience) == 1


async def test_hls_listeners_live_while_they_ask(rig: Rig) -> None:
    """A session ends by silence, goes on elsewhere by its token, and not once its listener was put out."""
    streamer = await rig.person("premium")
    stream_id = await rig.stream(streamer)
    audience = rig.service.audience
    session = await audience.open_session(stream_id, Shown(), "192.0.2.1", "test")
    assert audience.seen(stream_id, session.token) is session.listener
    assert audience.seen(str(uuid4()), session.token) is None
    audience._places[session.listener.id].seen_at -= 60
    audience.sweep()
    assert session.listener.reason == "left"
    assert audience.seen(stream_id, session.token) is None
    resumed = await audience.resume(stream_id, session.token, "192.0.2.1", "test")
    assert resumed.id == session.listener.id
    body = pb.RemoveListenerRequest(stream_id=stream_id, listener_id=resumed.id)
    await rig.rpc.RemoveListener(body, metadata=as_(streamer))
    assert await until_ended(resumed) == "removed"
    with pytest.raises(WhisprError) as told:
        await audience.resume(stream_id, session.token, "192.0.2.1", "test")
    assert told.value.reason == "removed"
    # Another session from the same address is no way back; another address is somebody else, as is an account.
    assert (await refusal(rig, stream_id, Shown())).reason == "removed"
    for shown, address in ((Shown(), "192.0.2.2"), (Shown(await rig.person()), "192.0.2.1")):
        async with audience.listening(stream_id, shown, Transport.WHEP, address, ""):
            pass
    await rig.service._ledger.flush()
    parts = await rig.db.fetch(
        "SELECT reason FROM streams.sessions WHERE listener_id = $1 ORDER BY joined_at", resumed.id
    )
    assert [row["reason"] for row in parts] == ["left", "removed"]
    now = datetime.now(UTC)
    assert (await rig.service.analytics.report(stream_id, now, now)).people == 3


async def test_a_source_shows_its_key_or_its_streamers_token(rig: Rig) -> None:
    """Nobody else's; not before the start, not after the end; a key that was replaced is none any more."""
    streamer, other = await rig.person("premium"), await rig.person("premium")
    made = await rig.rpc.CreateStream(pb.CreateStreamRequest(title="t"), metadata=as_(streamer))
    stream_id, key, source = made.stream.id, made.stream_key, rig.service.access.source

    async def told(shown: Shown) -> str:
        with pytest.raises(WhisprError) as error:
            await source(stream_id, shown)
        return error.value.reason

    assert await told(Shown(key)) == "not_started"
    await rig.rpc.StartStream(pb.StartStreamRequest(stream_id=stream_id), metadata=as_(streamer))
    for shown in (Shown(key), Shown(password=key), Shown(streamer)):
        assert (await source(stream_id, shown)).id == stream_id
    assert await told(Shown()) == "unauthorized"
    assert await told(Shown(password="wsk_wrong")) == "wrong_key"
    assert await told(Shown(other)) == "not_the_streamer"
    rig.tokens.roles[streamer] = "user"
    assert await told(Shown(streamer)) == "forbidden"
    rig.tokens.roles[streamer] = "premium"
    rotated = await rig.rpc.RotateStreamKey(
        pb.RotateStreamKeyRequest(stream_id=stream_id), metadata=as_(streamer)
    )
    assert await told(Shown(key)) == "wrong_key"
    await source(stream_id, Shown(rotated.stream_key))
    await rig.rpc.StopStream(pb.StopStreamRequest(stream_id=stream_id), metadata=as_(streamer))
    assert await told(Shown(rotated.stream_key)) == "stream_ended"


async def test_limits_of_listeners(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Of a stream, of one address, of one person: one more is refused, and finds room when another has left."""
    limits = StreamLimits(listeners=3, address_listeners=2, user_listeners=1)
    async with open_rig(db, cache, bus, tmp_path, limits) as rig:
        streamer = await rig.person("premium")
        stream_id = await rig.stream(streamer)
        small = await rig.stream(streamer, max_listeners=1)
        listen, member = rig.service.audience.listening, await rig.person()
        async with listen(stream_id, Shown(member), Transport.WHEP, "192.0.2.1", ""):
            assert (await refusal(rig, stream_id, Shown(member))).reason == "too_many_listeners"
            async with listen(stream_id, Shown(), Transport.WHEP, "192.0.2.1", ""):
                assert (await refusal(rig, stream_id, Shown())).reason == "too_many_listeners"
                async with listen(stream_id, Shown(), Transport.WHEP, "192.0.2.2", ""):
                    assert (await refusal(rig, stream_id, Shown(), "192.0.2.3")).reason == "stream_full"
                    with pytest.raises(WhisprError) as told:
                        body = pb.JoinStreamRequest(stream_id=stream_id)
                        await rig.rpc.JoinStream(body, metadata=as_(await rig.person()))
                    assert told.value.reason == "stream_full"
                    async with listen(stream_id, Shown(streamer), Transport.WHEP, "192.0.2.4", ""):
                        pass  # the streamer always gets in
                await rig.service.audience.beat()
                async with listen(stream_id, Shown(), Transport.WHEP, "192.0.2.3", ""):
                    pass
        async with listen(small, Shown(), Transport.WHEP, "192.0.2.1", ""):
            assert (await refusal(rig, small, Shown())).reason == "stream_full"


async def test_listeners_who_come_at_once_do_not_all_find_room(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """Those on their way in count; a session that two requests go on with is one listener, and leaves as one."""
    async with open_rig(db, cache, bus, tmp_path, StreamLimits(address_listeners=3)) as rig:
        stream_id, audience = await rig.stream(await rig.person("premium")), rig.service.audience
        told: list[str] = []

        async def come() -> None:
            try:
                await audience.open_session(stream_id, Shown(), "192.0.2.1", "")
            except WhisprError as error:
                told.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(come)
        assert (len(audience), told) == (3, ["too_many_listeners"] * 5)
        tokens = list(audience._sessions)
        for place in audience._places.values():
            place.seen_at -= 60
        audience.sweep()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(audience.resume, stream_id, tokens[0], "192.0.2.1", "")
        assert len(audience) == 1
        audience._places[next(iter(audience._places))].seen_at -= 60
        audience.sweep()
        assert (len(audience), dict(audience._admission._addresses)) == (0, {})


async def test_access_that_ends_while_a_listener_comes_in(rig: Rig) -> None:
    """Who was looked up before, and would be found by no order, is not let in by what was so then."""
    streamer, person = await rig.person("premium"), await rig.person()
    stream_id, audience = await rig.stream(streamer), rig.service.audience

    async def private(_: str) -> None:
        body = pb.UpdateStreamRequest(stream_id=stream_id, visibility="PRIVATE_STREAM")
        await rig.rpc.UpdateStream(body, metadata=as_(streamer))

    audience.brings = private
    assert (await refusal(rig, stream_id, Shown(person))).code is Code.NOT_FOUND
    assert (len(audience), dict(audience._admission._people)) == (0, {})


async def test_the_regular_look_is_not_put_off_by_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often some stream is to be looked at, an order lost about another one is made good in time."""
    monkeypatch.setattr("whispr.services.stream.audience.RECHECK_S", 0.3)
    streamer = await rig.person("premium")
    quiet, busy = await rig.stream(streamer), await rig.stream(streamer)
    audience = rig.service.audience
    session = await audience.open_session(quiet, Shown(), "192.0.2.1", "")
    await rig.db.execute("UPDATE streams.streams SET visibility = 'PRIVATE_STREAM' WHERE id = $1", quiet)
    async with trio.open_nursery() as nursery:

        async def bustle() -> None:
            while True:
                rig.service.notices.tell(Notice(busy, RECONSIDER))
                await trio.sleep(0.05)

        nursery.start_soon(audience._recheck_for_ever)
        nursery.start_soon(bustle)
        # An HLS session that nobody asks for ends by itself, too: for another reason.
        assert await until_ended(session.listener) == "unauthorized"
        nursery.cancel_scope.cancel(reason="seen")


async def test_a_sign_in_that_ended_long_ago_is_no_way_in(rig: Rig) -> None:
    """Signed URLs and HLS sessions outlive what processes remember of ended sign-ins; the database knows."""
    streamer, person = await rig.person("premium"), await rig.person("premium")
    stream_id = await rig.stream(streamer, visibility="PREMIUM_ONLY")
    audience, urls, session_id = rig.service.audience, rig.service.urls, str(uuid4())
    await rig.db.execute(
        "INSERT INTO auth.sessions (id, account_id, expires_at) VALUES ($1, $2, now() + interval '1 day')",
        session_id, person,
    )  # fmt: skip
    granted = Granted(stream_id, urls.until(3600), person, session_id, premium=True)
    shown = Shown(query=urls.query(granted))
    session = await audience.open_session(stream_id, shown, "192.0.2.1", "")
    await rig.db.execute("UPDATE auth.sessions SET revoked_at = now() WHERE id = $1", session_id)
    assert (await audience.regard(stream_id, shown))[1] is not None
    assert (await refusal(rig, stream_id, shown)).reason == "session_revoked"
    await audience.recheck(stream_id)
    assert session.listener.reason == "session_revoked"
    audience._admission._put_out.clear()  # as another process, or one that has started since
    with pytest.raises(WhisprError) as told:
        await audience.resume(stream_id, session.token, "192.0.2.1", "")
    assert told.value.reason == "session_revoked"


async def test_limits_of_streamers(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """So many streams that have not ended, so many an hour, so many invitations."""
    limits = StreamLimits(user_streams=2, user_streams_per_hour=4, invitations=1)
    async with open_rig(db, cache, bus, tmp_path, limits) as rig:
        streamer = await rig.person("premium")
        first = await rig.stream(streamer)
        await rig.stream(streamer)
        with pytest.raises(WhisprError) as told:
            await rig.stream(streamer)
        assert told.value.reason == "too_many_streams"
        await rig.rpc.StopStream(pb.StopStreamRequest(stream_id=first), metadata=as_(streamer))
        third = await rig.stream(streamer)
        with pytest.raises(WhisprError) as told:
            await rig.stream(streamer)
        assert told.value.reason == "rate_limited"
        people = [await rig.person() for _ in range(2)]
        for user_id in (people[0], people[0]):
            body = pb.InviteListenerRequest(stream_id=third, user_id=user_id)
            await rig.rpc.InviteListener(body, metadata=as_(streamer))
        with pytest.raises(WhisprError) as told:
            body = pb.InviteListenerRequest(stream_id=third, user_id=people[1])
            await rig.rpc.InviteListener(body, metadata=as_(streamer))
        assert told.value.reason == "too_many_invitations"


async def test_recordings_expire(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """One recording at a time; complete it is told of, shown, and kept for as long as is set."""
    async with open_rig(db, cache, bus, tmp_path, StreamLimits(recording_days=1)) as rig:
        streamer = await rig.person("premium")
        stream_id, index, rpc = await rig.stream(streamer), rig.service.recordings, rig.rpc
        body = pb.StartRecordingRequest(stream_id=stream_id)
        begun = await rpc.StartRecording(body, metadata=as_(streamer))
        assert (await rpc.StartRecording(body, metadata=as_(streamer))).recording_id == begun.recording_id
        ended = await rpc.StopRecording(
            pb.StopRecordingRequest(recording_id=begun.recording_id), metadata=as_(streamer)
        )
        assert ended.recording.status == pb.Recording.PROCESSING
        for _ in range(2):  # again changes nothing
            await index.completed(begun.recording_id, "key", 1234, 5.0)
        found = await rpc.GetRecordings(pb.GetRecordingsRequest(), metadata=as_(streamer))
        (recording,) = found.recordings
        assert (recording.status, recording.file_size, found.total) == (pb.Recording.COMPLETED, 1234, 1)
        assert recording.file_url.startswith("http://127.0.0.1:8080/recordings/")
        others = pb.GetRecordingsRequest(streamer_id=streamer)
        assert (await rpc.GetRecordings(others, metadata=as_(await rig.person()))).total == 1
        assert await index.expired(10) == []
        await db.execute("UPDATE streams.recordings SET expires_at = expires_at - interval '1 day'")
        assert [each.id for each in await index.expired(10)] == [begun.recording_id]


async def test_a_recording_in_two_parts(rig: Rig) -> None:
    """On another machine a second one goes on, of the same kind; the first is ended, once, whoever else says so."""
    streamer = await rig.person("premium")
    stream_id, index = await rig.stream(streamer), rig.service.recordings
    body = pb.StartRecordingRequest(stream_id=stream_id, config=pb.RecordingConfig(title="Night"))
    begun = await rig.rpc.StartRecording(body, metadata=as_(streamer))
    first = await index.find(begun.recording_id)
    second = await index.part(first)
    assert (second.title, second.quality, second.codec) == (first.title, first.quality, first.codec)
    assert [each.id for each in await index.wanted([stream_id])] == [second.id]
    assert (await index.find(first.id)).status == "PROCESSING"
    assert (await index.part(first)).id == second.id, "another process said so, too"


async def test_a_follower_hears_what_happens(rig: Rig) -> None:
    """Each event of the API, in order; who comes, goes and prefers what, whose stream it is, or who does so."""
    streamer, member, other = await rig.person("premium"), await rig.person(), await rig.person()
    stream_id = await rig.stream(streamer)
    heard: dict[str, list[str]] = {streamer: [], member: []}
    async with trio.open_nursery() as nursery:

        async def follow(
            user_id: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            request = pb.SubscribeToStreamEventsRequest(stream_id=stream_id)
            with pytest.raises(WhisprError) as told:
                async with rig.rpc.SubscribeToStreamEvents(request, metadata=as_(user_id)) as events:
                    await anext(events)
                    task_status.started()
                    async for event in events:
                        heard[user_id].append(pb.StreamEvent.Type.Name(event.type))
            assert told.value.reason == "stream_ended"

        with trio.fail_after(PATIENCE_S):
            await nursery.start(follow, streamer)
            await nursery.start(follow, member)
            body = pb.UpdateStreamRequest(stream_id=stream_id, metadata=pb.StreamMetadata(artist="A"))
            await rig.rpc.UpdateStream(body, metadata=as_(streamer))
            await rig.rpc.PauseStream(pb.PauseStreamRequest(stream_id=stream_id), metadata=as_(streamer))
            await rig.rpc.ResumeStream(pb.ResumeStreamRequest(stream_id=stream_id), metadata=as_(streamer))
            listening = rig.service.audience.listening
            for user_id in (member, other):
                async with listening(stream_id, Shown(user_id), Transport.WHEP, "192.0.2.1", ""):
                    change = pb.ChangeQualityRequest(stream_id=stream_id, quality="LOW")
                    await rig.rpc.ChangeQuality(change, metadata=as_(user_id))
            record = pb.StartRecordingRequest(stream_id=stream_id)
            begun = await rig.rpc.StartRecording(record, metadata=as_(streamer))
            await rig.rpc.StartRecording(record, metadata=as_(streamer))
            await rig.service.recordings.failed(begun.recording_id, "the disk is full")
            await rig.service.control.stop(stream_id, "", "error")
    first, last = (
        ["METADATA_UPDATED", "STREAM_PAUSED", "STREAM_RESUMED"],
        ["RECORDING_STARTED", "ERROR_OCCURRED", "ERROR_OCCURRED", "STREAM_STOPPED"],
    )
    listened = ["LISTENER_JOINED", "QUALITY_CHANGED", "LISTENER_LEFT"]
    assert [kind for kind in heard[member] if kind != "LISTENER_COUNT"] == [*first, "QUALITY_CHANGED", *last]
    assert [kind for kind in heard[streamer] if kind != "LISTENER_COUNT"] == [
        *first, *listened, *listened, *last,
    ]  # fmt: skip
    await rig.service._ledger.flush()
    assert await emitted(rig, stream_id) == {
        "stream_created", "stream_started", "metadata_updated", "stream_paused", "stream_resumed",
        "listener_joined", "quality_changed", "listener_left", "recording_started", "error", "stream_stopped",
    }  # fmt: skip
    info = await rig.rpc.GetStreamInfo(pb.GetStreamInfoRequest(stream_id=stream_id), metadata=as_(member))
    assert info.stream.status == pb.Stream.ERROR


async def test_streams_are_found(rig: Rig) -> None:
    """Those that run and are listed, by category, in each order; private and unlisted ones are in no list."""
    streamer, member = await rig.person("premium"), await rig.person()
    ids = {}
    for title, visibility in (("b", "PUBLIC_STREAM"), ("a", "PREMIUM_ONLY"), ("c", "PRIVATE_STREAM")):
        request = pb.CreateStreamRequest(title=title, category="NEWS", visibility=visibility)
        ids[title] = (await rig.rpc.CreateStream(request, metadata=as_(streamer))).stream.id
        await rig.rpc.StartStream(pb.StartStreamRequest(stream_id=ids[title]), metadata=as_(streamer))

    async def found(**asked: object) -> list[str]:
        body = pb.ListActiveStreamsRequest(category="NEWS", **asked)  # type: ignore[arg-type]  # enum names
        return [s.title for s in (await rig.rpc.ListActiveStreams(body, metadata=as_(member))).streams]

    assert await found(sort_by="TITLE") == ["a", "b"]
    assert await found(sort_by="RECENT") == ["a", "b"]
    async with rig.service.audience.listening(ids["b"], Shown(), Transport.WHEP, "192.0.2.1", ""):
        await rig.service.audience.beat()
        assert await found(sort_by="LISTENERS") == ["b", "a"]
        hour = int(datetime.now(UTC).timestamp() // 3600)
        await rig.service.live_state.count(ids["b"], hour, 1, {"listen_ms": 1000})
        await rig.service.analytics.roll_up()
        assert await found(sort_by="POPULAR") == ["b", "a"]
    assert await found(page=2, limit=1, sort_by="TITLE") == ["b"]
    with pytest.raises(WhisprError) as told:
        body = pb.GetStreamInfoRequest(stream_id=ids["c"])
        await rig.rpc.GetStreamInfo(body, metadata=as_(member))
    assert told.value.code is Code.NOT_FOUND


async def test_listeners_of_a_dead_process_are_settled_once(rig: Rig) -> None:
    """What Redis had of them is written down by another process; again changes nothing."""
    stream_id, live = await rig.stream(await rig.person("premium")), rig.service.live_state
    lost = Facts(
        id=str(uuid4()), transport="whep", joined_at=1_700_000_000.0, seen_at=1_700_000_060.0, rebuffers=3
    )
    await rig.db.execute(
        "INSERT INTO streams.sessions (id, listener_id, stream_id, transport, joined_at)"
        " VALUES ($1, $1, $2, 'whep', to_timestamp($3))",
        lost.id, stream_id, lost.joined_at,
    )  # fmt: skip
    await live.beat({stream_id: [lost]})
    assert await live.counts([stream_id]) == {stream_id: 1}
    live._clock = lambda: datetime.now(UTC).timestamp() + 3 * TTL_S
    for _ in range(2):
        await rig.service.analytics.settle()
        await rig.service._ledger.flush()
    row = await rig.db.fetchrow(
        "SELECT reason, rebuffers, extract(epoch FROM left_at - joined_at)::int AS s FROM streams.sessions"
    )
    assert row is not None
    assert tuple(row.values()) == ("lost", 3, 60)
    assert await live.listeners(stream_id) == []


async def test_counters_that_redis_lost_add_to_those_that_were_kept(rig: Rig, cache: Cache) -> None:
    """An hour is never counted twice, nor forgotten when Redis is emptied in the middle of it."""
    stream_id, live = await rig.stream(await rig.person("premium")), rig.service.live_state
    hour = int(datetime.now(UTC).timestamp() // 3600)
    await live.count(stream_id, hour, 2, {"joined": 2, "quality:low": 500})
    for _ in range(2):
        await live.put_back([(stream_id, hour)])
        await rig.service.analytics.roll_up()
    await cache.command("FLUSHDB")
    await live.count(stream_id, hour, 1, {"joined": 3, "quality:low": 250})
    await live.put_back([(stream_id, hour)])
    await rig.service.analytics.roll_up()
    now = datetime.now(UTC)
    report = await rig.service.analytics.report(stream_id, now, now)
    assert [(each.joined, each.peak, each.qualities) for each in report.hours] == [(5, 2, {"low": 750})]


async def test_what_listeners_report_breaks_no_counter(rig: Rig) -> None:
    """Whoever reports without end is counted up to what there is room for, with everybody else behind them."""
    streamer = await rig.person("premium")
    stream_id, audience = await rig.stream(streamer), rig.service.audience
    listen = audience.listening
    async with (
        listen(stream_id, Shown(), Transport.WHEP, "192.0.2.1", "") as one,
        listen(stream_id, Shown(), Transport.WHEP, "192.0.2.1", "") as other,
    ):
        for listener in (one, other) * 3:
            listener.report(rebuffers=2**30, dropped_frames=2**30)
        await audience.beat()
        asked = pb.GetAudioMetricsRequest(stream_id=stream_id)
        told = await rig.rpc.GetAudioMetrics(asked, metadata=as_(streamer))
        assert told.quality_stats.rebuffer_events == told.dropped_frames == 2**31 - 1
    await audience.beat()
    await rig.service._ledger.flush()
    await rig.service.analytics.roll_up()
    rows = await rig.db.fetch("SELECT rebuffers, dropped_frames FROM streams.sessions")
    assert [tuple(row.values()) for row in rows] == [(2**31 - 1, 2**31 - 1)] * 2
    assert await rig.db.fetchval("SELECT rebuffers FROM streams.hours") == 2**31 - 1


async def test_what_redis_took_before_it_failed_is_not_added_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters are added to once, and read by who rolls up, whichever of both Redis failed at."""
    stream_id, live = await rig.stream(await rig.person("premium")), rig.service.live_state
    counting, real, failures = Counting(live), Cache.command, [unavailable("no Redis")]

    async def command(cache: Cache, *words: str | bytes | float) -> object:
        if words[0] == "SADD" and failures:
            raise failures.pop()
        return await real(cache, *words)

    monkeypatch.setattr(Cache, "command", command)
    counting._add(stream_id, "joined", 3)
    with pytest.raises(WhisprError):
        await counting.flush({})
    await counting.flush({})
    now = datetime.now(UTC)
    report = await rig.service.analytics.report(stream_id, now, now)
    assert [each.joined for each in report.hours] == [3]


async def test_orders_that_make_no_sense_are_passed(rig: Rig, bridge: Bridge, backends: Backends) -> None:
    """What a process of another version, or nobody of ours, says on the bus ends nothing here."""
    stream_id, audience = await rig.stream(await rig.person("premium")), rig.service.audience
    assert backends.nats_url is not None
    async with (
        open_bus(bridge, backends.nats_url) as other,
        audience.listening(stream_id, Shown(), Transport.WHEP, "192.0.2.1", "") as listener,
    ):
        await other.wait_connected()
        for kind, data in (
            (WISH, {"user_id": "", "quality": "loud"}),
            (WISH, {"user_id": "", "volume": "loud"}),
            ("metadata_updated", {"metadata": 5}),
            ("unheard_of", {}),
        ):
            other.publish(SUBJECT, msgspec.json.encode(Notice(stream_id, kind, data)))
        other.publish(SUBJECT, msgspec.json.encode(Notice(stream_id, PUT_OUT, {"listener_id": listener.id})))
        await until_ended(listener)
    assert listener.reason == "removed"


async def test_a_deleted_account_leaves_nothing(rig: Rig) -> None:
    """What is held of a person is exported, then erased: their streams end, what they heard is nobody's."""
    streamer, member = await rig.person("premium"), await rig.person()
    stream_id, others = (
        await rig.stream(streamer),
        await rig.stream(member_premium := await rig.person("premium")),
    )
    async with rig.service.audience.listening(others, Shown(streamer), Transport.WHEP, "192.0.2.1", ""):
        await rig.service._ledger.flush()
    await rig.service._ledger.flush()
    await rig.rpc.InviteListener(
        pb.InviteListenerRequest(stream_id=others, user_id=streamer), metadata=as_(member_premium)
    )
    kinds = []
    request = common_pb2.ExportUserDataRequest(user_id=streamer)
    async with rig.rpc.ExportUserData(request, metadata=as_(SERVICE)) as records:
        async for record in records:
            kinds.append(record.kind)
            assert msgspec.json.decode(record.json)
    assert sorted(kinds) == ["listening", "stream", "stream_invitation"]
    event = Event(
        id=str(uuid4()), type="account_deleted", time=datetime.now(UTC), source="user", subject=streamer
    )
    for _ in range(2):
        for consumer in rig.service.consumers:
            if consumer.name == "stream-accounts":
                await consumer.handle(event)
    left = await rig.db.fetchval(
        "SELECT (SELECT count(*) FROM streams.streams WHERE streamer_id = $1)"
        " + (SELECT count(*) FROM streams.sessions WHERE user_id = $1)"
        " + (SELECT count(*) FROM streams.invitations WHERE user_id = $1)",
        streamer,
    )
    assert left == 0
    assert (await refusal(rig, stream_id, Shown(member))).code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("account_deactivated", {"reason": "spam"}, "account_inactive"),
        ("role_changed", {"role": "user", "previous": "premium"}, "role_changed"),
        ("role_changed", {"role": "premium", "previous": "user"}, ""),
    ],
)
async def test_who_may_stream_no_more_streams_no_more(
    rig: Rig, kind: str, data: dict[str, str], reason: str
) -> None:
    """A key asks for no sign-in: streams end with the account, or the role; what was begun since goes on."""
    streamer = await rig.person("premium")
    stream_id = await rig.stream(streamer)
    event = Event(
        id=str(uuid4()), type=kind, time=datetime.now(UTC), source="user", subject=streamer, data=data
    )  # fmt: skip
    since = await rig.stream(streamer)
    (handle,) = [each.handle for each in rig.service.consumers if each.name == "stream-accounts"]
    for _ in range(2):
        await handle(event)
    stream = await rig.service.store.find(stream_id)
    assert (stream.end_reason, stream.status.runs) == (reason, not reason)
    assert (await rig.service.store.find(since)).status.runs


async def test_listening_goes_on_without_redis(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Admission counts here what it cannot count together; what was to be told is told when Redis is back."""
    stream_id = await rig.stream(await rig.person("premium"), max_listeners=1)
    live = rig.service.live_state

    async def away(*_: object) -> object:
        await trio.lowlevel.checkpoint()
        raise WhisprError(Code.UNAVAILABLE, "Redis is away")

    with monkeypatch.context() as patched:
        for method in ("admit", "beat", "leave", "count"):
            patched.setattr(live, method, away)
        async with rig.service.audience.listening(stream_id, Shown(), Transport.WHEP, "192.0.2.1", ""):
            assert (await refusal(rig, stream_id, Shown())).reason == "stream_full"
            with pytest.raises(WhisprError):
                await rig.service.audience.beat()
    await rig.service.audience.beat()
    now = datetime.now(UTC)
    (hour,) = (await rig.service.analytics.report(stream_id, now, now)).hours
    assert (hour.joined, hour.departed) == (1, 1)


async def test_streams_without_a_source_end(rig: Rig) -> None:
    """One that nothing has been sent to for as long as is set ends by itself; others go on."""
    streamer = await rig.person("premium")
    idle, fed = await rig.stream(streamer), await rig.stream(streamer)
    await rig.db.execute("UPDATE streams.streams SET started_at = now() - interval '2 hours'")
    await rig.service.control.sourced(fed)
    await rig.service.control.end_idle(3600)
    assert (await rig.service.store.find(idle)).end_reason == "source_lost"
    assert (await rig.service.store.find(fed)).ended_at is None


async def test_who_comes_before_the_sound_is_no_listener(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """Whatever they listen by, they are told to come again, and are neither counted nor in the history."""
    async with open_rig(db, cache, bus, tmp_path, sound=True) as rig:
        stream_id = await rig.stream(await rig.person("premium"))
        assert (await refusal(rig, stream_id, Shown())).reason == "no_source"
        with pytest.raises(WhisprError) as told:
            await rig.service.audience.open_session(stream_id, Shown(), "192.0.2.1", "")
        assert told.value.reason == "no_source"
        await rig.service._ledger.flush()
        assert await db.fetchval("SELECT count(*) FROM streams.sessions") == 0
        assert await rig.service.live_state.counts([stream_id]) == {stream_id: 0}


async def test_a_room_is_made_when_chat_is_back(rig: Rig) -> None:
    """What StartStream could not have is made by the event of it, once; a stream without chat gets none."""
    streamer, room_id = await rig.person("premium"), str(uuid4())
    stream_id, other = await rig.stream(streamer, enable_chat=True), await rig.stream(streamer)
    made: list[str] = []

    class Chat:
        async def CreateRoom(  # noqa: N802  # as the API names it
            self, request: chat_pb2.CreateRoomRequest, *, metadata: object
        ) -> object:
            made.append(request.name)
            return chat_pb2.CreateRoomResponse(room=chat_pb2.Room(id=room_id))

    consumer = rig.service.consumers[0]
    started = [
        Event(
            id=str(uuid4()), type="stream_started", time=datetime.now(UTC), source="stream", subject=subject
        )
        for subject in (stream_id, other, str(uuid4()))
    ]
    with pytest.raises(WhisprError) as told:
        await consumer.handle(started[0])
    assert told.value.code is Code.UNAVAILABLE
    rig.chats.append(Chat())
    for event in (*started, *started):
        await consumer.handle(event)
    assert made == ["a stream"]
    assert (await rig.service.store.find(stream_id)).room_id == room_id


async def test_a_token_that_runs_out_ends_no_listening(rig: Rig) -> None:
    """Its sign-in does, also when nobody told of its end; a service's token has no other."""
    stream_id, member = await rig.stream(await rig.person("premium")), await rig.person()
    audience = rig.service.audience
    later = datetime.now(UTC).timestamp() + 3600
    async with (
        audience.listening(stream_id, Shown(member), Transport.WHEP, "", "") as listener,
        audience.listening(stream_id, Shown(SERVICE), Transport.WHEP, "", "") as service,
    ):
        audience._clock = lambda: later
        with trio.CancelScope(shield=True):  # what it does is to cancel this block
            audience.sweep()
            assert (listener.reason, service.reason) == ("", "url_expired")
            rig.tokens.ended.add(f"session-{member}")
            await audience.recheck(stream_id)
        assert listener.reason == "session_revoked"
