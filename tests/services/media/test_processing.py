"""What becomes of uploads: processed once, whoever dies; scanned; refused with a reason; cleaned up; unlinked."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.services.kit import as_
from tests.services.media.conftest import UNHURRIED, Media, eventually, open_media, reason_of
from tests.services.media.samples import photo
from whispr.adapters.objects import Objects
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError, unavailable
from whispr.events import Event
from whispr.ids import new_id
from whispr.resilience.retry import Backoff
from whispr.services.media import jobs as queue
from whispr.services.media import worker as work
from whispr.services.media.jobs import Jobs
from whispr.services.media.probe import probe
from whispr.v1 import media_pb2 as pb

TEXT = b"a text, for all that matters here"
PAST = "now() - interval '1 year'"


async def test_events_tell_of_it(media: Media) -> None:
    """Ready, failed and deleted media are told of, once each, with whose they are and why."""
    good = await media.ready(photo(), "image/jpeg")
    bad = await media.upload(TEXT, "image/jpeg")
    await media.settled(bad)
    await media.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=good), metadata=as_(media.owner))
    (ready,) = await media.events("media_ready")
    assert (ready["media_id"], ready["owner_id"], ready["kind"]) == (good, media.owner, "image")
    (failed,) = await media.events("media_failed")
    assert (failed["media_id"], failed["reason"]) == (bad, "content_type_mismatch")
    (gone,) = await media.events("media_deleted")
    assert (gone["media_id"], gone["reason"]) == (good, "deleted")


async def test_parts_go_when_it_is_ready(media: Media) -> None:
    """What is left in the store is what is given out; of what failed, nothing."""
    good = await media.ready(photo(width=500), "image/jpeg")
    bad = await media.upload(TEXT, "image/jpeg")
    await media.settled(bad)
    await media.service.janitor.clean()
    assert await media.stored() == [f"{good}/1/original", f"{good}/1/thumbnail_160"]
    assert await used(media) == (await media.metadata(good)).file_size


async def used(media: Media) -> int:
    """What the owner's media take, after it was compared with what they should."""
    counted = await media.db.fetchval("SELECT coalesce(sum(bytes), 0) FROM media.usage")
    summed = await media.db.fetchval("SELECT coalesce(sum(reserved_bytes), 0) FROM media.media")
    assert counted == summed
    return int(counted)


async def test_a_dead_workers_job_is_done_by_another(db: Postgres, tmp_path: Path) -> None:
    """A job whose lease has run out is taken again; what the first worker still writes changes nothing."""
    async with open_media(db, tmp_path, run=False) as media:
        media_id = await media.upload(TEXT, "text/plain")
        first = await Jobs(db).take()
        assert first is not None
        assert first.medium.id == media_id
        assert await Jobs(db).take() is None, "a job is one worker's at a time"
        await db.execute(f"UPDATE media.jobs SET lease_until = {PAST}")  # noqa: S608  # a constant
        owner = media.owner
    async with open_media(db, tmp_path) as media:
        media.owner = owner
        known = await media.settled(media_id)
        assert known.upload_status == "ready"
        assert not await Jobs(db).renew(first)
        assert not await Jobs(db).fail(first, "late", "too late")
        await Jobs(db).retry(first, 0, "too late", counts=True)
        assert (await media.metadata(media_id)).upload_status == "ready"
        await media.service.janitor.clean()
        assert await media.stored() == [f"{media_id}/2/original"]


async def test_many_workers_do_each_job_once(
    db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes at the same queue, one does each job."""
    done: list[str] = []
    original = work.Worker._process

    async def noted(self: work.Worker, job: queue.Job) -> None:
        done.append(job.medium.id)
        await original(self, job)

    monkeypatch.setattr(work.Worker, "_process", noted)
    async with open_media(db, tmp_path) as one, open_media(db, tmp_path) as two:
        two.owner = one.owner
        ids = [await (one, two)[n % 2].upload(TEXT, "text/plain") for n in range(6)]
        for media_id in ids:
            assert (await one.settled(media_id)).upload_status == "ready"
    assert sorted(done) == sorted(ids)


async def test_failures_of_ours_are_tried_again(
    db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away for a moment costs a moment; one that stays away costs the medium, in the end."""
    monkeypatch.setattr(work, "RETRY", Backoff(0.01, 0.01))
    monkeypatch.setattr(work, "ATTEMPTS_MAX", 3)
    failures, original = 2, Objects.put_file

    async def flaky(self: Objects, key: str, path: Path) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise unavailable("the object store failed: test")
        await original(self, key, path)

    monkeypatch.setattr(Objects, "put_file", flaky)
    async with open_media(db, tmp_path) as media:
        assert (await media.settled(await media.upload(TEXT, "text/plain"))).upload_status == "ready"
        failures = 10**9
        known = await media.settled(await media.upload(TEXT, "text/plain"))
    assert (known.upload_status, known.error_reason) == ("error", "processing_failed")


async def test_a_defect_costs_one_medium(
    db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody thought of is logged, and tried again, and in the end given up; other media are processed."""
    monkeypatch.setattr(work, "RETRY", Backoff(0.01, 0.01))
    monkeypatch.setattr(work, "ATTEMPTS_MAX", 2)
    original = probe

    async def broken(folder: Path, declared: str, bounds: Any) -> Any:
        if declared == "text/html":
            raise ZeroDivisionError
        return await original(folder, declared, bounds)

    monkeypatch.setattr(work, "probe", broken)
    async with open_media(db, tmp_path) as media:
        known = await media.settled(await media.upload(TEXT, "text/html"))
        assert known.error_reason == "processing_failed"
        assert (await media.settled(await media.upload(TEXT, "text/plain"))).upload_status == "ready"


async def test_a_lost_part_is_said(db: Postgres, tmp_path: Path) -> None:
    """When the store has lost what it had, the uploader is told to send it again."""
    async with open_media(db, tmp_path, run=False) as media:
        media_id = await media.upload(TEXT, "text/plain")
        await media.objects.delete_under(media_id)
        owner = media.owner
    async with open_media(db, tmp_path) as media:
        media.owner = owner
        assert (await media.settled(media_id)).error_reason == "lost"


# Scanning


def scanner(folder: Path, script: str) -> str:
    """A command that runs a script of ours on the file."""
    path = folder / "scanner.py"
    path.write_text(script)
    return f"{shlex.quote(sys.executable)} -I {shlex.quote(str(path))}"


async def test_infected_files_are_refused(db: Postgres, tmp_path: Path) -> None:
    """What the scanner finds is named, told of, and not kept; what is clean passes."""
    command = scanner(
        tmp_path,
        "import sys\nif b'EICAR' in open(sys.argv[1], 'rb').read(): print('Eicar-Test'); sys.exit(1)",
    )
    async with open_media(db, tmp_path, scan_command=command) as media:
        assert (await media.settled(await media.upload(TEXT, "text/plain"))).upload_status == "ready"
        known = await media.settled(await media.upload(b"an EICAR text", "text/plain"))
        assert (known.error_reason, known.error_message) == ("infected", "it is infected: Eicar-Test")
        assert [event["reason"] for event in await media.events("media_failed")] == ["infected"]


async def test_without_the_scanner_files_wait(
    db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away they stay processing, however long; when it is back they pass."""
    monkeypatch.setattr(work, "SCAN_RETRY", Backoff(0.02, 0.02))
    monkeypatch.setattr(work, "ATTEMPTS_MAX", 2)
    flag = tmp_path / "up"
    script = f"""
import os, sys
open({str(tmp_path / "asked")!r}, "a").write("x")
sys.exit(0 if os.path.exists({str(flag)!r}) else 2)
"""
    async with open_media(db, tmp_path, scan_command=scanner(tmp_path, script)) as media:
        media_id = await media.upload(TEXT, "text/plain")

        async def asked_often() -> bool:
            await trio.lowlevel.checkpoint()
            return (tmp_path / "asked").exists() and len((tmp_path / "asked").read_text()) > 4

        await eventually(asked_often)
        assert (await media.metadata(media_id)).upload_status == "processing"
        flag.touch()
        assert (await media.settled(media_id)).upload_status == "ready"


class Clamd:
    """ClamAV's daemon, as far as INSTREAM goes."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        while not received.endswith(bytes(4)):
            received += await stream.receive_some()
        command, _, chunks = received.partition(b"\0")
        assert command == b"zINSTREAM"
        content = b""
        while size := int.from_bytes(chunks[:4], "big"):
            content, chunks = content + chunks[4 : 4 + size], chunks[4 + size :]
        self.seen.append(content)
        verdict = b"Win.Test FOUND" if b"EICAR" in content else b"ERROR" if b"away" in content else b"OK"
        await stream.send_all(b"stream: " + verdict + b"\0")
        await stream.aclose()


async def test_clamd_is_spoken_to(db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its protocol, over TCP: clean, infected, and an error, after which it is asked again."""
    monkeypatch.setattr(work, "SCAN_RETRY", Backoff(0.02, 0.02))
    clamd = Clamd()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, clamd.serve, listeners)
        async with open_media(db, tmp_path, scan_clamd=f"127.0.0.1:{port}") as media:
            assert (await media.settled(await media.upload(TEXT, "text/plain"))).upload_status == "ready"
            known = await media.settled(await media.upload(b"an EICAR text", "text/plain"))
            assert known.error_message == "it is infected: Win.Test"
            waiting = await media.upload(b"be away", "text/plain")

            async def asked_again() -> bool:
                await trio.lowlevel.checkpoint()
                return clamd.seen.count(b"be away") > 1

            await eventually(asked_again)
            assert (await media.metadata(waiting)).upload_status == "processing"
        assert clamd.seen[0] == TEXT
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.parametrize(("command", "clamd"), [("x", "y:1"), ("'", ""), ("", "nowhere")])
async def test_scanners_that_make_no_sense(db: Postgres, tmp_path: Path, command: str, clamd: str) -> None:
    """A start with such settings fails, and names them."""
    with pytest.raises(WhisprError, match="WHISPR_MEDIA_SCAN"):
        async with open_media(db, tmp_path, scan_command=command, scan_clamd=clamd):
            pass


# Cleaning up


async def test_what_nobody_needs_is_deleted(db: Postgres, tmp_path: Path) -> None:
    """Uploads past their time and media that no message shows go, with their bytes; what is linked or young stays."""
    async with open_media(db, tmp_path, limits=UNHURRIED) as media:
        linked, lonely, young = [await media.ready(TEXT, "text/plain") for _ in range(3)]
        await media.link(linked, new_id(), await media.conversation(media.owner))
        unfinished = (await media.announce(10_000)).media_id
        started = await media.announce(10_000)
        await media.patch(started.upload_url, 0, b"x" * 100)
        late = (await media.announce(10_000)).media_id
        await age(db, linked, lonely, unfinished, started.media_id)
        await media.service.janitor.clean()
        left = {str(row["id"]) for row in await db.fetch("SELECT id FROM media.media")}
        assert left == {linked, young, late}
        assert {key.partition("/")[0] for key in await media.stored()} == {linked, young}
        assert {event["reason"] for event in await media.events("media_deleted")} == {
            "unlinked",
            "upload_expired",
        }
        await used(media)


async def age(db: Postgres, *media_ids: str) -> None:
    """Make media a year older."""
    await db.execute(
        "UPDATE media.media SET upload_expires_at = upload_expires_at - interval '1 year',"
        " unlinked_at = unlinked_at - interval '1 year' WHERE id = ANY ($1::uuid[])",
        list(media_ids),
    )


async def test_a_face_is_not_cleaned_up(media: Media) -> None:
    """What somebody shows as their avatar stays, and everybody may see it."""
    media_id = await media.ready(photo(), "image/jpeg")
    await media.db.execute(
        "INSERT INTO users.profiles (user_id, avatar_media_id) VALUES ($1, $2)", media.owner, media_id
    )
    await age(media.db, media_id)
    await media.service.janitor.clean()
    assert (await media.metadata(media_id, by=new_id())).kind == "image"


async def test_unlinked_media_go_in_their_time(media: Media) -> None:
    """When the last message that showed it is gone, its time begins; a link within it keeps it."""
    media_id = await media.ready(TEXT, "text/plain")
    conversation = await media.conversation(media.owner)
    one, two = new_id(), new_id()
    await media.link(media_id, one, conversation)
    await media.link(media_id, two, conversation)
    assert not (await media.metadata(media_id)).HasField("expires_at")
    await message_deleted(media, one, media_id)
    assert not (await media.metadata(media_id)).HasField("expires_at")
    await message_deleted(media, two, media_id)
    expires_at = (await media.metadata(media_id)).expires_at.ToDatetime(UTC)
    assert 23 * 3600 < (expires_at - datetime.now(UTC)).total_seconds() < 25 * 3600


async def message_deleted(media: Media, message_id: str, *media_ids: str) -> None:
    """Have the service hear that a message was deleted, twice, as events may come."""
    (consumer,) = [each for each in media.service.consumers if each.name == "media-messages"]
    event = Event(
        id=new_id(), type="message_deleted", time=datetime.now(UTC), source="messaging", subject=new_id(),
        data={"message_id": message_id, "media_ids": list(media_ids)},
    )  # fmt: skip
    await consumer.handle(event)
    await consumer.handle(event)


async def test_the_store_being_away_puts_cleaning_off(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that could not be emptied are emptied later."""
    media_id = await media.ready(TEXT, "text/plain")
    await media.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=media_id), metadata=as_(media.owner))
    original = Objects.delete_under

    async def away(self: Objects, folder: str) -> int:
        await trio.lowlevel.checkpoint()
        raise unavailable("the object store failed: test")

    monkeypatch.setattr(Objects, "delete_under", away)
    with pytest.raises(WhisprError):
        await media.service.janitor.clean()
    assert await media.stored()
    monkeypatch.setattr(Objects, "delete_under", original)
    await media.db.execute("UPDATE media.garbage SET due_at = now()")
    await media.service.janitor.clean()
    assert await media.stored() == []
    await media.db.execute("UPDATE media.garbage SET due_at = now()")
    await media.service.janitor.clean()
    assert await media.db.fetchval("SELECT count(*) FROM media.garbage") == 0


async def test_an_erased_account_leaves_nothing(media: Media) -> None:
    """Media of every state go, with their bytes; links that the person made to others' media lose their name."""
    other = new_id()
    conversation = await media.conversation(media.owner, other)
    theirs = await others_medium(media, other)
    await media.link(theirs, new_id(), conversation, by=other)
    await media.link(theirs, new_id(), conversation)
    await media.ready(TEXT, "text/plain")
    await media.announce(1000)
    (consumer,) = [each for each in media.service.consumers if each.name == "media-accounts"]
    event = Event(
        id=new_id(), type="account_deleted", time=datetime.now(UTC), source="user", subject=media.owner
    )
    await consumer.handle(event)
    await consumer.handle(event)
    await media.service.janitor.clean()
    owners = {str(row["owner_id"]) for row in await media.db.fetch("SELECT owner_id FROM media.media")}
    assert owners == {other}
    makers = [row["linked_by"] for row in await media.db.fetch("SELECT linked_by FROM media.links")]
    assert sorted(map(str, makers)) == sorted([other, "None"])
    assert {key.partition("/")[0] for key in await media.stored()} == {theirs}
    assert await media.db.fetchval("SELECT count(*) FROM media.usage WHERE user_id = $1", media.owner) == 0


async def others_medium(media: Media, other: str) -> str:
    """A medium of somebody else's that is ready."""
    media_id = await media.upload(TEXT, "text/plain", by=other)

    async def ready() -> bool:
        known = await media.metadata(media_id, by=other)
        return bool(known.upload_status == "ready")

    await eventually(ready)
    return media_id


# Links


async def test_links_that_are_refused(media: Media) -> None:
    """Of what is not there, not one's own, failed, or elsewhere; and by nobody."""
    media_id = await media.ready(TEXT, "text/plain")
    failed = await media.upload(TEXT, "image/png")
    await media.settled(failed)
    stranger, message = new_id(), new_id()
    here, there = await media.conversation(media.owner, stranger), await media.conversation(media.owner)

    async def refusal(*args: Any, **more: Any) -> tuple[Code, str]:
        with pytest.raises(WhisprError) as caught:
            await media.link(*args, **more)
        return caught.value.code, reason_of(caught)

    assert await refusal(new_id(), message, here) == (Code.NOT_FOUND, "not_found")
    assert await refusal(media_id, message, here, by=stranger) == (Code.PERMISSION_DENIED, "media_forbidden")
    assert await refusal(failed, message, here) == (Code.FAILED_PRECONDITION, "failed")
    assert await refusal(media_id, message, new_id()) == (Code.PERMISSION_DENIED, "not_a_member")
    await media.link(media_id, message, here)
    assert await refusal(media_id, message, there) == (Code.FAILED_PRECONDITION, "linked_elsewhere")
    request = pb.LinkMediaToMessageRequest(media_id=media_id, message_id=message, conversation_id=here)
    with pytest.raises(WhisprError) as caught:
        await media.stub.LinkMediaToMessage(request, metadata=as_(media.owner))
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_a_link_is_told_of_once(media: Media) -> None:
    """However often it is asked for."""
    media_id, message = await media.ready(TEXT, "text/plain"), new_id()
    conversation = await media.conversation(media.owner)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(media.link, media_id, message, conversation)
    (event,) = await media.events("media_linked")
    assert (event["media_id"], event["message_id"], event["conversation_id"]) == (
        media_id,
        message,
        conversation,
    )


async def test_a_link_that_comes_after_its_messages_end(media: Media) -> None:
    """Whichever is first, in the end nothing links a message that is gone."""
    media_id = await media.ready(TEXT, "text/plain")
    conversation = await media.conversation(media.owner)
    gone = new_id()
    await message_deleted(media, gone, media_id)
    with pytest.raises(WhisprError) as caught:
        await media.link(media_id, gone, conversation)
    assert reason_of(caught) == "message_deleted"
    racing = [new_id() for _ in range(10)]

    async def link(message: str) -> None:
        try:
            await media.link(media_id, message, conversation)
        except WhisprError as error:
            assert error.reason == "message_deleted"  # noqa: PT017  # it may be raised or not

    async with trio.open_nursery() as nursery:
        for message in racing:
            pair: list[Callable[[], Awaitable[None]]] = [
                lambda message=message: link(message),  # type: ignore[misc]  # bound now
                lambda message=message: message_deleted(media, message, media_id),  # type: ignore[misc]  # bound now
            ]
            for each in pair:
                nursery.start_soon(each)
    assert await media.db.fetchval("SELECT count(*) FROM media.links") == 0
    assert (await media.metadata(media_id)).HasField("expires_at")


async def test_deleting_while_it_is_processed(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work comes to nothing, and leaves nothing."""
    reached, go_on, original = trio.Event(), trio.Event(), Objects.put_file

    async def held(self: Objects, key: str, path: Path) -> None:
        reached.set()
        await go_on.wait()
        await original(self, key, path)

    monkeypatch.setattr(Objects, "put_file", held)
    media_id = await media.upload(TEXT, "text/plain")
    await reached.wait()
    await media.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=media_id), metadata=as_(media.owner))
    await media.service.janitor.clean()
    go_on.set()

    async def written() -> bool:
        return bool(await media.stored())

    await eventually(written)
    assert await media.events("media_ready") == []
    await media.db.execute("UPDATE media.garbage SET due_at = now()")
    await media.service.janitor.clean()
    assert await media.stored() == [], "the second emptying catches what was on its way at the first"
    with pytest.raises(WhisprError) as caught:
        await media.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=media_id), metadata=as_(media.owner))
    assert caught.value.code is Code.NOT_FOUND
