"""What needs no backend: who may listen, signed URLs, readers' queues, what requests may hold."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.adapters.signing import Signer
from whispr.audio.packets import Codec, Quality
from whispr.errors import Code, WhisprError
from whispr.services.stream import wire
from whispr.services.stream.access import Shown, shown_by
from whispr.services.stream.channel import _quality
from whispr.services.stream.domain import (
    Status,
    Stream,
    Viewer,
    Visibility,
    may_not_know,
    may_not_listen,
)
from whispr.services.stream.geography import countries_in
from whispr.services.stream.notices import RECONSIDER, Notice
from whispr.services.stream.subscriptions import Reader
from whispr.services.stream.urls import Granted, HlsPass, ListenUrls
from whispr.v1 import stream_pb2 as pb

STREAM = "0190163d-8694-739b-aea5-966c26f8ad91"
OTHER = "0190163d-8694-739b-aea5-966c26f8ad92"
STREAMER, SOMEBODY = "streamer", "somebody"
NOW = 1_800_000_000.0


def a_stream(visibility: Visibility = Visibility.PUBLIC_STREAM, status: Status = Status.LIVE) -> Stream:
    return Stream(
        id=STREAM, title="t", visibility=visibility, streamer_id=STREAMER, streamer_username="s",
        status=status, created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def urls(at: float = NOW) -> ListenUrls:
    return ListenUrls(Signer([b"k" * 32]), lambda: at)


NOBODY, PERSON, PREMIUM = Viewer(), Viewer(SOMEBODY), Viewer(SOMEBODY, premium=True)
WITH_URL, OWN, TRUSTED = Viewer(let_in=True), Viewer(STREAMER), Viewer(trusted=True)


@pytest.mark.parametrize(
    ("visibility", "viewer", "invited", "removed", "code"),
    [
        (Visibility.PUBLIC_STREAM, NOBODY, False, False, None),
        (Visibility.UNLISTED, NOBODY, False, False, None),
        (Visibility.PRIVATE_STREAM, NOBODY, False, False, Code.UNAUTHENTICATED),
        (Visibility.PREMIUM_ONLY, NOBODY, False, False, Code.UNAUTHENTICATED),
        (Visibility.PUBLIC_STREAM, PERSON, False, True, Code.PERMISSION_DENIED),
        (Visibility.PRIVATE_STREAM, PERSON, False, False, Code.NOT_FOUND),
        (Visibility.PRIVATE_STREAM, PREMIUM, False, False, Code.NOT_FOUND),
        (Visibility.PRIVATE_STREAM, PERSON, True, False, None),
        (Visibility.PRIVATE_STREAM, WITH_URL, False, False, None),
        (Visibility.PRIVATE_STREAM, OWN, False, False, None),
        (Visibility.PRIVATE_STREAM, TRUSTED, False, False, None),
        (Visibility.PREMIUM_ONLY, PERSON, False, False, Code.PERMISSION_DENIED),
        (Visibility.PREMIUM_ONLY, PREMIUM, False, False, None),
        (Visibility.PREMIUM_ONLY, WITH_URL, False, False, None),
        (Visibility.PREMIUM_ONLY, OWN, False, False, None),
    ],
)
def test_who_may_listen(
    visibility: Visibility, viewer: Viewer, invited: bool, removed: bool, code: Code | None
) -> None:
    """Each kind of stream is heard by whom it is for; whoever was put out stays out."""
    refused = may_not_listen(a_stream(visibility), viewer, invited=invited, removed=removed, anonymous=True)
    assert (refused.code if refused else None) == code


def test_anonymous_listening_can_be_turned_off() -> None:
    """Then a public stream asks for a token, and still takes a signed URL."""
    told = may_not_listen(a_stream(), NOBODY, invited=False, removed=False, anonymous=False)
    assert told is not None
    assert told.code is Code.UNAUTHENTICATED
    assert may_not_listen(a_stream(), WITH_URL, invited=False, removed=False, anonymous=False) is None


@pytest.mark.parametrize(
    ("status", "reason"), [(Status.CREATED, "not_started"), (Status.ENDED, "stream_ended")]
)
def test_what_does_not_run_is_not_heard(status: Status, reason: str) -> None:
    """Not even by its streamer, who may know of it all the same."""
    stream = a_stream(status=status)
    told = may_not_listen(stream, OWN, invited=False, removed=False, anonymous=True)
    assert told is not None
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, reason)
    assert may_not_know(stream, OWN, invited=False) is None


def test_a_signed_url_says_what_it_allows_until_it_expires() -> None:
    """What was granted comes back; another stream, a changed word, and a later time do not pass."""
    granted = Granted(STREAM, int(NOW) + 60, SOMEBODY, "session", True, False, Quality.HIGH)
    query = urls().query(granted)
    assert urls().check(query, STREAM) == granted
    assert urls().check(f"{query}&quality=low", STREAM) == granted, (
        "what follows the signature does not count"
    )
    for stream_id, text, at, reason in (
        (OTHER, query, NOW, "bad_signature"),
        (STREAM, query.replace("quality=high", "quality=ultra"), NOW, "bad_signature"),
        (STREAM, f"user=x&{query}", NOW, "bad_signature"),
        (STREAM, query, NOW + 61, "url_expired"),
    ):
        with pytest.raises(WhisprError) as refusal:
            urls(at).check(text, stream_id)
        assert refusal.value.reason == reason


@given(st.text(max_size=200))
def test_nothing_unsigned_passes(text: str) -> None:
    """Whatever is sent in its place is refused, and nothing worse."""
    for check in (urls().check, urls().hls_pass):
        with pytest.raises(WhisprError) as refusal:
            check(text, STREAM)
        assert refusal.value.reason == "bad_signature"
    with pytest.raises(WhisprError):
        urls().check_recording(text, STREAM)


def test_a_session_goes_on_in_another_process() -> None:
    """Its token holds all another process needs, fits into a path, and is of one stream."""
    own = HlsPass(STREAM, "listener", SOMEBODY, "session", False, False, True, "high", NOW, NOW + 60)
    token = urls().hls_token(own)
    assert not set(token) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert urls().hls_pass(token, STREAM) == own
    for stream_id, at in ((OTHER, NOW), (STREAM, NOW + 61)):
        with pytest.raises(WhisprError):
            urls(at).hls_pass(token, stream_id)


def test_a_recordings_token_is_good_for_it_alone() -> None:
    """Not for another recording, and not for ever."""
    token = urls().recording_token(STREAM, int(NOW) + 60)
    urls().check_recording(token, STREAM)
    for recording_id, at in ((OTHER, NOW), (STREAM, NOW + 61)):
        with pytest.raises(WhisprError):
            urls(at).check_recording(token, recording_id)


@pytest.mark.parametrize(
    ("headers", "query", "shown"),
    [
        ([(b"authorization", b"Bearer t")], b"", Shown("t")),
        ([(b"authorization", b"Basic c291cmNlOndza19r")], b"", Shown(password="wsk_k")),
        ([(b"authorization", b"Basic !!")], b"", Shown()),
        ([], b"token=t", Shown("t")),
        ([], b"key=wsk_k", Shown(password="wsk_k")),
        ([], b"stream=s&key=k&signature=x", Shown(password="k", query="stream=s&key=k&signature=x")),
    ],
)
def test_credentials_are_read_off_a_request(
    headers: list[tuple[bytes, bytes]], query: bytes, shown: Shown
) -> None:
    """From the header or the query; what is malformed counts as not there."""
    assert shown_by({"headers": headers, "query_string": query}) == shown


async def test_a_slow_reader_is_ended_rather_than_buffered_for() -> None:
    """Its queue is bounded: it gets what was queued, then an error that says so."""
    reader = Reader(STREAM, SOMEBODY, "session", (), own=False, len_max=2)
    for number in range(3):
        reader.hear(Notice(STREAM, "metadata_updated", {"number": number}))
    for number in range(2):
        news = await reader.next()
        assert news is not None
        assert news.data == {"number": number}
    with pytest.raises(WhisprError) as told:
        await reader.next()
    assert told.value.reason == "slow_consumer"


async def test_readers_hear_what_is_theirs() -> None:
    """Who comes and goes is for the streamer; a change of access makes the reader ask again; the end is the end."""
    reader = Reader(STREAM, SOMEBODY, "session", (), own=False, len_max=9)
    reader.hear(Notice(STREAM, "listener_joined", {}))
    reader.hear(Notice(STREAM, RECONSIDER))
    assert await reader.next() is None
    reader.hear(Notice(STREAM, "stream_stopped", {"reason": "stopped"}))
    news = await reader.next()
    assert news is not None
    assert news.kind == "stream_stopped"
    with pytest.raises(WhisprError) as told:
        await reader.next()
    assert told.value.reason == "stream_ended"


def test_a_configuration_is_checked_as_a_whole() -> None:
    """Every bad field is named at once; a bitrate stands for the quality at or below it."""
    with pytest.raises(WhisprError) as told:
        wire.config_of(pb.StreamConfig(codec="MP3", sample_rate=44_100, max_listeners=-1))
    assert set(told.value.fields) == {"config.codec", "config.sample_rate", "config.max_listeners"}
    config = wire.config_of(pb.StreamConfig(bitrate=200_000, codec="AAC", max_listeners=5))
    assert (config.quality, config.codec, config.max_listeners) == (Quality.MEDIUM, Codec.AAC, 5)
    assert wire.config_of(pb.StreamConfig(bitrate=1)).quality is Quality.LOW


def test_qualities_have_one_name_everywhere() -> None:
    """The API's names, the channel's words, and the ladder's rungs are the same; AUTO is none of them."""
    for name, value in pb.Stream.Quality.items():
        quality = wire.quality_of(value, "quality")
        assert wire.quality_name(quality) == name
        assert _quality(name.lower()) is quality
    with pytest.raises(WhisprError):
        wire.quality_of(9, "quality")


def test_no_database_no_countries(tmp_path: Path) -> None:
    """Without a file nothing is known of an address; a file that is none is said so at start."""
    assert countries_in(None)("192.0.2.1") == ""
    (tmp_path / "bad.mmdb").write_bytes(b"no database")
    with pytest.raises(WhisprError) as told:
        countries_in(tmp_path / "bad.mmdb")
    assert told.value.reason == "bad_setting"
