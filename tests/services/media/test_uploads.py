"""Uploads: resumable, bounded, counted once, whatever breaks on the way."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.services.kit import as_
from tests.services.media.conftest import TUS, Counted, Media, eventually, open_media, reason_of
from whispr.adapters.objects import Objects, objects_at
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError, unavailable
from whispr.ids import new_id
from whispr.services.media import http as endpoints
from whispr.services.media.domain import MediaLimits
from whispr.v1 import media_pb2 as pb

PDF = b"%PDF-1.7\n"


def document(size: int) -> bytes:
    return PDF + os.urandom(size - len(PDF))


async def content(media: Media, media_id: str) -> bytes:
    answer = await media.http.get(await media.url(media_id))
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_an_upload_in_pieces(media: Media) -> None:
    """The client asks how far it is, sends on from there, and gets back what it sent."""
    sent = document(300_000)
    created = await media.announce(len(sent), filename="../Überraschung.pdf")
    url = created.upload_url
    assert url.startswith(f"{media.base}/v1/media/uploads/{created.media_id}?")
    begun = await media.head(url)
    assert (begun.status_code, begun.headers["upload-offset"], begun.headers["upload-length"]) == (
        200,
        "0",
        "300000",
    )
    assert begun.headers["cache-control"] == "no-store"
    first = await media.patch(url, 0, sent[:100_000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "100000")
    assert first.headers["tus-resumable"] == "1.0.0"
    assert "upload-expires" in first.headers
    assert (await media.metadata(created.media_id)).received_bytes == 100_000
    assert (await media.head(url)).headers["upload-offset"] == "100000"
    last = await media.patch(url, 100_000, sent[100_000:])
    assert last.headers["upload-offset"] == "300000"
    known = await media.settled(created.media_id)
    assert (known.upload_status, known.file_size, known.filename) == ("ready", 300_000, "Überraschung.pdf")
    assert known.sha256 == hashlib.sha256(sent).hexdigest()
    assert await content(media, created.media_id) == sent


async def test_a_plain_put(media: Media) -> None:
    """A client that knows nothing of tus sends all of it at once."""
    sent = document(200_000)
    created = await media.announce(len(sent))
    assert (await media.http.put(created.upload_url, content=sent)).status_code == 204
    assert (await media.settled(created.media_id)).upload_status == "ready"
    assert await content(media, created.media_id) == sent


async def test_a_put_begins_anew(media: Media) -> None:
    """What was there before does not matter, nor is it kept; a put that is too short counts for nothing."""
    sent = document(150_000)
    created = await media.announce(len(sent))
    await media.patch(created.upload_url, 0, b"x" * 70_000)
    short = await media.http.put(created.upload_url, content=sent[:-1])
    assert (short.status_code, short.json()["details"][0]["reason"]) == (400, "wrong_size")
    assert (await media.head(created.upload_url)).headers["upload-offset"] == "0"
    assert await media.stored() == []
    assert (await media.http.put(created.upload_url, content=sent)).status_code == 204
    await media.settled(created.media_id)
    assert await content(media, created.media_id) == sent


async def test_a_broken_connection_keeps_what_came(media: Media) -> None:
    """A client that vanishes in the middle of a request goes on where its bytes ended, not where that began."""
    sent = document(200_000)
    created = await media.announce(len(sent))

    begun = trio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield sent[:100_000]
        begun.set()  # The client asks for more once the network has taken what there was.
        await trio.sleep_forever()

    async def send() -> None:
        await media.patch(created.upload_url, 0, half(), content_length="200000")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await begun.wait()
        nursery.cancel_scope.cancel(reason="the client vanishes")

    async def kept() -> bool:
        return (await media.head(created.upload_url)).headers["upload-offset"] == "100000"

    await eventually(kept)
    assert (await media.patch(created.upload_url, 100_000, sent[100_000:])).status_code == 204
    await media.settled(created.media_id)
    assert await content(media, created.media_id) == sent


async def test_an_upload_goes_on_in_another_process(db: Postgres, tmp_path: Path) -> None:
    """After a restart, or at another instance, the same URL takes the rest."""
    sent = document(250_000)
    async with open_media(db, tmp_path) as one:
        created = await one.announce(len(sent))
        await one.patch(created.upload_url, 0, sent[:200_000])
        path = created.upload_url.removeprefix(one.base)
        owner = one.owner
    async with open_media(db, tmp_path) as other:
        other.owner = owner
        offset = int((await other.head(other.base + path)).headers["upload-offset"])
        assert offset == 200_000
        await other.patch(other.base + path, offset, sent[offset:])
        await other.settled(created.media_id)
        assert await content(other, created.media_id) == sent


async def test_two_at_once_do_not_mix(media: Media) -> None:
    """Of two requests for the same place one wins, and the other is told; the bytes are the winner's."""
    sent, other = document(180_000), document(180_000)
    created = await media.announce(len(sent))
    answers: list[tuple[bytes, int]] = []

    async def send(body: bytes) -> None:
        answers.append((body, (await media.patch(created.upload_url, 0, body)).status_code))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, sent)
        nursery.start_soon(send, other)
    won = [body for body, status in answers if status == 204]
    assert sorted(status for _, status in answers) == [204, 409]
    await media.settled(created.media_id)
    assert await content(media, created.media_id) == won[0]


async def test_a_wrong_offset_is_a_conflict(media: Media) -> None:
    """Before or behind what there is, the answer is 409, and nothing changes."""
    created = await media.announce(1000)
    await media.patch(created.upload_url, 0, b"x" * 100)
    for offset in (0, 99, 101, 5000):
        answer = await media.patch(created.upload_url, offset, b"y")
        assert answer.status_code in (409, 413)
        assert answer.headers["tus-resumable"] == "1.0.0"
    assert (await media.head(created.upload_url)).headers["upload-offset"] == "100"


async def test_more_than_announced_is_not_taken(media: Media) -> None:
    """A byte over, declared or not, is refused; the upload can still be finished as announced."""
    created = await media.announce(100_000)

    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(100):
            await trio.lowlevel.checkpoint()
            yield PDF + bytes(4087)

    assert (await media.patch(created.upload_url, 0, bytes(100_001))).status_code == 413
    assert (await media.patch(created.upload_url, 0, chunked())).status_code == 413
    assert (await media.http.put(created.upload_url, content=chunked())).status_code == 413
    at = int((await media.head(created.upload_url)).headers["upload-offset"])
    assert at == 0
    assert (await media.patch(created.upload_url, 0, document(100_000))).status_code == 204
    assert (await media.settled(created.media_id)).upload_status == "ready"


async def test_checksums(media: Media) -> None:
    """Bytes that do not add up count for nothing, also those of parts that were written; right ones count."""
    sent = document(200_000)
    created = await media.announce(len(sent))
    digest = base64.b64encode(hashlib.sha256(sent).digest()).decode()
    wrong = await media.patch(created.upload_url, 0, bytes(200_000), upload_checksum=f"sha256 {digest}")
    assert (wrong.status_code, wrong.json()["details"][0]["reason"]) == (460, "checksum_mismatch")
    assert (await media.head(created.upload_url)).headers["upload-offset"] == "0"
    assert await media.stored() == []
    right = await media.patch(created.upload_url, 0, sent, upload_checksum=f"sha256 {digest}")
    assert right.status_code == 204
    await media.settled(created.media_id)
    assert await content(media, created.media_id) == sent


async def test_what_the_server_can_do(media: Media) -> None:
    """OPTIONS says version, extensions and limits; a browser's own question about origins is answered, too."""
    url = f"{media.base}/v1/media/uploads/{new_id()}"
    told = await media.http.options(url)
    assert told.status_code == 204
    assert told.headers["tus-version"] == "1.0.0"
    assert set(told.headers["tus-extension"].split(",")) == {"expiration", "checksum", "termination"}
    assert told.headers["tus-max-size"] == str(100 * 1024 * 1024)
    assert "sha1" in told.headers["tus-checksum-algorithm"]
    for method in ("HEAD", "PATCH"):
        preflight = await media.http.options(url, headers={
            "origin": "https://app.test", "access-control-request-method": method,
            "access-control-request-headers": "tus-resumable,upload-offset,content-type",
        })  # fmt: skip
        assert preflight.status_code == 200, preflight.text
        assert preflight.headers["access-control-allow-origin"] == "https://app.test"


async def test_requests_that_are_not_tus(media: Media) -> None:
    """Each fault has the status that the protocol gives it, and changes nothing."""
    created = await media.announce(1000)
    url = created.upload_url
    http = media.http
    assert (
        await http.patch(url, content=b"x", headers={**TUS, "tus-resumable": "0.2.2", "upload-offset": "0"})
    ).status_code == 412
    assert (await http.head(url)).status_code == 412
    assert (await http.patch(url, content=b"x", headers=TUS)).status_code == 400
    text = {**TUS, "content-type": "text/plain", "upload-offset": "0"}
    assert (await http.patch(url, content=b"x", headers=text)).status_code == 415
    assert (await http.get(url)).status_code == 405
    assert (await http.post(url)).status_code == 405
    override = {**TUS, "upload-offset": "0", "x-http-method-override": "PATCH"}
    assert (await http.post(url, content=b"x", headers=override)).status_code == 204
    assert (await media.head(url)).headers["upload-offset"] == "1"


async def test_urls_that_are_not_ours(media: Media) -> None:
    """A changed or unsigned URL is refused, and one of an upload that is gone not found."""
    created = await media.announce(1000)
    url = created.upload_url
    for changed in (url.partition("?")[0], url[:-2] + "xx", url.replace("expires=", "expires=9")):
        refused = await media.http.put(changed, content=b"x")
        assert (refused.status_code, refused.json()["details"][0]["reason"]) == (403, "bad_signature")
    assert (await media.http.delete(url, headers={"tus-resumable": "1.0.0"})).status_code == 204
    assert (await media.head(url)).status_code == 404


async def test_an_expired_upload_is_gone(db: Postgres, tmp_path: Path) -> None:
    """After its time the URL takes nothing more, and says so."""
    async with open_media(db, tmp_path, limits=MediaLimits(upload_url_s=-1)) as media:
        created = await media.announce(1000)
        assert (await media.head(created.upload_url)).status_code == 410
        answer = await media.patch(created.upload_url, 0, b"x")
        assert (answer.status_code, answer.json()["details"][0]["reason"]) == (410, "url_expired")


async def test_a_finished_upload_takes_no_more(media: Media) -> None:
    """A repeated last request is told that all is there; anything else is a conflict."""
    sent = document(1000)
    created = await media.announce(len(sent))
    await media.patch(created.upload_url, 0, sent)
    assert (await media.head(created.upload_url)).headers["upload-offset"] == "1000"
    assert (await media.patch(created.upload_url, 1000, b"")).status_code == 204
    assert (await media.patch(created.upload_url, 0, sent)).status_code == 409
    assert (await media.http.put(created.upload_url, content=sent)).status_code == 409
    gone = await media.http.delete(created.upload_url, headers={"tus-resumable": "1.0.0"})
    assert gone.status_code == 409


@pytest.mark.parametrize(("fields", "at_fault"), [
    ({"filename": ""}, {"filename"}), ({"content_type": "image/tiff"}, {"content_type"}),
    ({"file_size": 0}, {"file_size"}), ({"file_size": -5, "filename": "/"}, {"file_size", "filename"}),
    ({"custom_metadata": {str(n): "" for n in range(17)}}, {"custom_metadata"}),
    ({"custom_metadata": {"k" * 65: ""}}, {"custom_metadata"}),
    ({"custom_metadata": {"k": "v" * 1025}}, {"custom_metadata"}),
    ({"conversation_id": "nonsense"}, {"conversation_id"}),
])  # fmt: skip
async def test_announcements_that_make_no_sense(
    media: Media, fields: dict[str, object], at_fault: set[str]
) -> None:
    """Every field at fault is named, all of them at once."""
    request: dict[str, object] = {
        "filename": "a.pdf",
        "content_type": "application/pdf",
        "file_size": 10,
        **fields,
    }
    with pytest.raises(WhisprError) as caught:
        await media.stub.CreateUpload(pb.CreateUploadRequest(**request), metadata=as_(media.owner))  # type: ignore[arg-type]
    assert set(caught.value.fields) == at_fault


async def test_the_size_of_a_file_is_limited(db: Postgres, tmp_path: Path) -> None:
    """At the limit it is taken, over it and far over it not."""
    async with open_media(db, tmp_path, limits=MediaLimits(file_bytes=1000, uploads_per_min=0)) as media:
        assert (await media.announce(1000)).media_id
        for size in (1001, 2**62):
            with pytest.raises(WhisprError) as caught:
                await media.announce(size)
            assert (caught.value.code, reason_of(caught)) == (Code.RESOURCE_EXHAUSTED, "file_too_large")


async def test_the_quota_holds_against_uploads_at_once(db: Postgres, tmp_path: Path) -> None:
    """Ten announcements at once, of which three fit: three are taken, whoever is first."""
    limits = MediaLimits(user_bytes=3500, uploads_per_min=0)
    async with open_media(db, tmp_path, limits=limits) as media:
        taken: list[str] = []
        refused: list[str] = []

        async def announce() -> None:
            try:
                taken.append((await media.announce(1000)).media_id)
            except WhisprError as error:
                refused.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(announce)
        assert len(taken) == 3
        assert refused == ["quota_exceeded"] * 7
        assert (await media.announce(500)).media_id
        with pytest.raises(WhisprError):
            await media.announce(1)
        assert (await media.announce(1000, by=new_id())).media_id, "another's quota is another's"
        await media.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=taken[0]), metadata=as_(media.owner))
        assert (await media.announce(1000)).media_id, "what is deleted gives its room back"


async def test_limits_can_be_lifted(db: Postgres, tmp_path: Path) -> None:
    """0 means no limit, of a file, a user, and of uploads that wait."""
    limits = MediaLimits(file_bytes=0, user_bytes=0, pending_uploads=0, uploads_per_min=0)
    async with open_media(db, tmp_path, limits=limits) as media:
        assert (await media.announce(2**40)).media_id
        assert (await media.announce(2**40)).media_id


async def test_unfinished_uploads_and_their_rate_are_limited(db: Postgres, tmp_path: Path) -> None:
    """A person has so many uploads under way, and announces so many a minute."""
    limiter = Counted()
    limits = MediaLimits(pending_uploads=3, uploads_per_min=5)
    async with open_media(db, tmp_path, limits=limits, limiter=limiter) as media:
        for _ in range(3):
            await media.announce(10)
        with pytest.raises(WhisprError) as caught:
            await media.announce(10)
        assert reason_of(caught) == "too_many_uploads"
        with pytest.raises(WhisprError) as caught:
            await media.announce(10, by=media.owner)
            await media.announce(10)
        with pytest.raises(WhisprError) as caught:
            await media.announce(10)
        assert reason_of(caught) == "rate_limited"
        assert caught.value.retry_after_s


async def test_requests_at_once_are_limited(
    db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More uploads at a time than a process may hold are told to come back soon."""
    stored = trio.Event()

    async def stuck(self: Objects, key: str, data: bytes) -> None:
        stored.set()
        await trio.sleep_forever()

    limits = MediaLimits(streams=1, uploads_per_min=0)
    async with open_media(db, tmp_path, limits=limits) as media:
        sent = document(1000)
        one, two = await media.announce(len(sent)), await media.announce(len(sent))
        monkeypatch.setattr(Objects, "put", stuck)
        monkeypatch.setattr("whispr.services.media.uploads.SAVE_S", 0.05)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(media.patch, one.upload_url, 0, sent)
            await stored.wait()
            busy = await media.http.put(two.upload_url, content=sent)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "2")
            nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_store_that_is_away(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is told to come back, nothing counts that was not stored, and later the upload goes on."""
    sent = document(150_000)
    created = await media.announce(len(sent))
    put = Objects.put

    async def away(self: Objects, key: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise unavailable("the object store failed: test", 3)

    monkeypatch.setattr(Objects, "put", away)
    answer = await media.patch(created.upload_url, 0, sent)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert (await media.head(created.upload_url)).headers["upload-offset"] == "0"
    monkeypatch.setattr(Objects, "put", put)
    assert (await media.patch(created.upload_url, 0, sent)).status_code == 204


async def test_a_slow_store_holds_the_client_back(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a part is written nothing more is read: what is in memory is a part, and what the network holds."""
    size = 24 * 1024 * 1024
    created = await media.announce(size)
    resume, put, taken = trio.Event(), Objects.put, 0

    async def stuck(self: Objects, key: str, data: bytes) -> None:
        await resume.wait()
        await put(self, key, data)

    monkeypatch.setattr(Objects, "put", stuck)

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for n in range(size // 65536):
            yield (PDF if n == 0 else b"") + bytes(65536 - (len(PDF) if n == 0 else 0))
            taken += 65536

    async with trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def send() -> None:
            answers.append(await media.patch(created.upload_url, 0, body(), content_length=str(size)))

        nursery.start_soon(send)
        before = -1
        while taken != before:
            before = taken
            await trio.sleep(0.1)
        assert taken < size // 2
        resume.set()
    assert answers[0].status_code == 204


async def test_a_small_part_at_a_time_has_its_limit(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends byte by byte is told to send more at a time."""
    from whispr.services.media import store

    monkeypatch.setattr(store, "PARTS_MAX", 3)
    created = await media.announce(1000)
    for n in range(3):
        assert (await media.patch(created.upload_url, n, b"x")).status_code == 204
    answer = await media.patch(created.upload_url, 3, b"x")
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (413, "too_many_parts")


async def test_strangers_are_kept_out(media: Media) -> None:
    """An upload for a conversation is announced by its members alone, and shown to its owner alone."""
    stranger = new_id()
    conversation = await media.conversation(media.owner)
    created = await media.announce(10, conversation_id=conversation)
    with pytest.raises(WhisprError) as caught:
        await media.announce(10, conversation_id=conversation, by=stranger)
    assert (caught.value.code, reason_of(caught)) == (Code.PERMISSION_DENIED, "not_a_member")
    assert await media.metadata(created.media_id, by=stranger) is None
    assert endpoints.PATH.fullmatch(f"/v1/media/{created.media_id}") is None


async def test_a_shared_store_in_another_folder(db: Postgres, tmp_path: Path) -> None:
    """A folder of the operator's choice is used as it is."""
    objects = objects_at(db.bridge, f"file://{tmp_path}/elsewhere", tmp_path / "unused")
    async with open_media(db, tmp_path, objects=objects) as media:
        await media.ready(document(1000))
        assert list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "unused").exists()
