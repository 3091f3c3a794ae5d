"""Downloads: signed, in ranges, safe to show, and for those alone who may have them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.services.kit import as_, as_service
from tests.services.media.conftest import Media, open_media, reason_of
from tests.services.media.samples import SECRET, photo, tone
from whispr.adapters.objects import Objects
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError
from whispr.ids import new_id
from whispr.services.media import http as endpoints
from whispr.services.media.domain import MediaLimits
from whispr.v1 import common_pb2
from whispr.v1 import media_pb2 as pb

PDF = b"%PDF-1.7\n" + os.urandom(700_000)


async def test_content_and_its_headers(media: Media) -> None:
    """The whole file, with what browsers have to know so that nothing of it runs."""
    media_id = await media.ready(PDF, filename='Bericht "Ü".pdf')
    answer = await media.http.get(await media.url(media_id))
    assert answer.status_code == 200
    assert answer.content == PDF
    said = answer.headers
    assert said["content-type"] == "application/pdf"
    assert said["content-length"] == str(len(PDF))
    assert said["x-content-type-options"] == "nosniff"
    assert "sandbox" in said["content-security-policy"]
    assert said["content-disposition"].startswith('attachment; filename="Bericht __')
    assert "filename*=UTF-8''Bericht%20%22%C3%9C%22.pdf" in said["content-disposition"]
    assert said["accept-ranges"] == "bytes"
    assert "private" in said["cache-control"]
    assert said["referrer-policy"] == "no-referrer"


async def test_pictures_are_shown_and_documents_saved(media: Media) -> None:
    """Only what browsers show safely is shown in place, unless saving it was asked for; HTML never."""
    picture = await media.ready(photo(), "image/jpeg", filename="a.jpg")
    shown = await media.http.get(await media.url(picture))
    assert shown.headers["content-disposition"].startswith("inline")
    assert shown.headers["content-type"] == "image/jpeg"
    saved = await media.http.get(await media.url(picture, as_attachment=True))
    assert saved.headers["content-disposition"].startswith("attachment")
    page = await media.ready(b"<html><script>1</script>", "text/html", filename="a.html")
    answer = await media.http.get(await media.url(page))
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_ranges_and_tags(media: Media) -> None:
    """A part, the end, nothing new, not the same file any more: as RFC 9110 has it."""
    url = await media.url(await media.ready(PDF))
    whole = await media.http.head(url)
    assert (whole.status_code, whole.headers["content-length"]) == (200, str(len(PDF)))
    etag = whole.headers["etag"]

    async def asked(**headers: str) -> Any:
        return await media.http.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()})

    part = await asked(range="bytes=100000-600000")
    assert (part.status_code, part.content) == (206, PDF[100_000:600_001])
    assert part.headers["content-range"] == f"bytes 100000-600000/{len(PDF)}"
    assert (await asked(range="bytes=-5")).content == PDF[-5:]
    assert (await asked(range="bytes=0-0", if_range=etag)).content == PDF[:1]
    assert (await asked(range="bytes=0-0", if_range='"other"')).content == PDF
    beyond = await asked(range=f"bytes={len(PDF)}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(PDF)}")
    same = await asked(if_none_match=etag)
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert (await asked(if_match='"other"')).status_code == 412
    assert (await asked(if_modified_since=whole.headers["last-modified"])).status_code == 304


async def test_thumbnails_are_given_out_too(media: Media) -> None:
    """Each has a URL of its own in the metadata, smallest first, and says nothing that the picture did beside."""
    media_id = await media.ready(photo(width=1000, height=500), "image/jpeg")
    known = await media.metadata(media_id)
    assert (known.width, known.height, known.kind) == (1000, 500, "image")
    sizes = []
    for url in known.thumbnail_urls:
        answer = await media.http.get(url)
        assert answer.headers["content-type"] == "image/webp"
        sizes.append(len(answer.content))
    assert len(sizes) == 2
    assert sizes == sorted(sizes)
    content = (await media.http.get(await media.url(media_id))).content
    assert SECRET not in content
    assert known.file_size == len(content)
    assert (await media.http.get(await media.url(media_id, variant="thumbnail_160"))).status_code == 200
    with pytest.raises(WhisprError, match="thumbnail_640"):
        await media.url(media_id, variant="poster")


async def test_sound_is_described(media: Media) -> None:
    """Its length and the shape of its loudness come with the metadata."""
    known = await media.metadata(await media.ready(tone(), "audio/ogg"))
    assert known.duration_seconds == pytest.approx(2, abs=0.1)
    assert len(known.waveform) == 64
    assert max(known.waveform) == 100


async def test_urls_end_and_cannot_be_changed(db: Postgres, tmp_path: Path) -> None:
    """A URL holds for its time; another's cannot be made of it."""
    async with open_media(db, tmp_path, limits=MediaLimits(download_url_s=-600, uploads_per_min=0)) as media:
        first, second = await media.ready(PDF), await media.ready(b"text", "text/plain")
        url = await media.url(first)
        expired = await media.http.get(url)
        assert (expired.status_code, expired.json()["details"][0]["reason"]) == (403, "url_expired")
        forged = await media.http.get(url.replace(first, second))
        assert (forged.status_code, forged.json()["details"][0]["reason"]) == (403, "bad_signature")
        assert (await media.http.post(url)).status_code == 405


async def test_what_is_not_there_yet(db: Postgres, tmp_path: Path) -> None:
    """Before it is ready there is no URL, and it says why; what failed says why, too."""
    async with open_media(db, tmp_path, run=False) as media:
        created = await media.announce(10)
        with pytest.raises(WhisprError) as caught:
            await media.url(created.media_id)
        assert (caught.value.code, reason_of(caught)) == (Code.FAILED_PRECONDITION, "not_ready")
    async with open_media(db, tmp_path) as media:
        failed = await media.upload(b"no picture", "image/png")
        assert (await media.settled(failed)).error_reason == "content_type_mismatch"
        with pytest.raises(WhisprError) as caught:
            await media.url(failed)
        assert reason_of(caught) == "failed"
        assert "no picture" not in str(await media.stored())


async def test_a_slow_client_holds_the_store_back(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large file no more is read than the client takes, and what the network holds."""
    size = 24 * 1024 * 1024
    media_id = await media.ready(b"%PDF-1.7\n" + bytes(size))
    read = 0
    original = Objects._read

    async def counted(self: Objects, key: str, start: int, end: int) -> bytes:
        nonlocal read
        read += end - start
        return await original(self, key, start, end)

    monkeypatch.setattr(Objects, "_read", counted)
    async with media.http.stream("GET", await media.url(media_id), headers={"range": "bytes=1-"}) as answer:
        before = -1
        while read != before:
            before = read
            await trio.sleep(0.1)
        assert 0 < read < size // 2
        total = 0
        async for piece in answer.aiter_raw():
            total += len(piece)
    assert total == size + 8


async def test_downloads_at_once_are_limited(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """More at a time than a process holds in memory are told to come back; whole files of a folder are not held."""
    url = await media.url(await media.ready(PDF))
    monkeypatch.setattr(endpoints, "SENDING_MAX", 0)
    busy = await media.http.get(url, headers={"range": "bytes=0-10"})
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert (await media.http.get(url)).status_code == 200


async def test_who_may_have_what(media: Media) -> None:
    """Its owner, and the members of a conversation where it is linked; once they have left, not any more."""
    member, stranger = new_id(), new_id()
    media_id = await media.ready(PDF)
    conversation = await media.conversation(media.owner, member)
    for person in (member, stranger):
        assert await media.metadata(media_id, by=person) is None
        with pytest.raises(WhisprError) as caught:
            await media.url(media_id, by=person)
        assert caught.value.code is Code.NOT_FOUND
    message = new_id()
    link = await media.link(media_id, message, conversation)
    assert (await media.link(media_id, message, conversation)).link_id == link.link_id
    assert (await media.metadata(media_id, by=member)).media_id == media_id
    assert (await media.http.get(await media.url(media_id, by=member))).content == PDF
    assert await media.metadata(media_id, by=stranger) is None
    with pytest.raises(WhisprError) as caught:
        await media.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=media_id), metadata=as_(member))
    assert caught.value.code is Code.PERMISSION_DENIED
    await db_leave(media, conversation, member)
    assert await media.metadata(media_id, by=member) is None


async def db_leave(media: Media, conversation: str, person: str) -> None:
    await media.db.execute(
        "UPDATE conversations.members SET left_at = now() WHERE conversation_id = $1 AND user_id = $2",
        conversation, person,
    )  # fmt: skip


async def test_access_is_explained(media: Media) -> None:
    """ValidateMediaAccess says yes or why not, of reading, linking and downloading, here or there."""
    member, stranger = new_id(), new_id()
    media_id = await media.ready(PDF)
    here, there = await media.conversation(media.owner, member), await media.conversation(media.owner)
    await media.link(media_id, new_id(), here)

    async def asked(
        who: str, kind: str = "", where: str = "", *, by_service: bool = False
    ) -> tuple[bool, str]:
        request = pb.ValidateMediaAccessRequest(
            media_id=media_id, user_id=who if by_service else "", access_type=kind, conversation_id=where
        )
        reply = await media.stub.ValidateMediaAccess(
            request, metadata=as_service() if by_service else as_(who)
        )
        assert reply.access_granted == (not reply.reason)
        assert bool(reply.metadata.media_id) == (reply.access_granted or reply.reason == "not_a_member")
        return reply.access_granted, reply.reason

    for kind in ("", "read", "link", "download"):
        assert await asked(media.owner, kind) == (True, "")
        assert await asked(member, kind) == (True, "")
        assert await asked(stranger, kind) == (False, "not_found")
        assert await asked(stranger, kind, by_service=True) == (False, "forbidden")
    assert await asked(member, "read", here) == (True, "")
    assert await asked(member, "read", there) == (False, "not_found")
    assert await asked(member, "link", here) == (True, "")
    assert await asked(member, "link", there) == (False, "not_a_member")
    assert await asked(media.owner, "link", there) == (True, "")
    with pytest.raises(WhisprError, match="must be one of"):
        await asked(media.owner, "own")
    about_another = pb.ValidateMediaAccessRequest(media_id=media_id, user_id=media.owner)
    with pytest.raises(WhisprError) as caught:
        await media.stub.ValidateMediaAccess(about_another, metadata=as_(stranger))
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_files_are_judged_beforehand(media: Media) -> None:
    """Everything that CreateUpload would say is said at once, with what would be better."""

    async def judged(name: str, kind: str, size: int, **more: str) -> Any:
        request = pb.ValidateMediaMetadataRequest(filename=name, content_type=kind, file_size=size, **more)
        return await media.stub.ValidateMediaMetadata(request, metadata=as_(media.owner))

    good = await judged("a.pdf", "application/pdf", 10)
    assert (good.is_valid, list(good.errors), list(good.warnings)) == (True, [], [])
    assert good.suggested_metadata == {
        "content_type": "application/pdf", "kind": "document", "filename": "a.pdf",
    }  # fmt: skip
    bad = await judged("x/y.png", "picture", 2**40, conversation_id=new_id())
    assert not bad.is_valid
    assert {error.partition(":")[0] for error in bad.errors} == {
        "content_type",
        "file_size",
        "conversation_id",
    }
    assert bad.suggested_metadata["content_type"] == "image/png"
    assert any("y.png" in warning for warning in bad.warnings)
    odd = await judged("a.png", "application/pdf", 10)
    assert odd.is_valid
    assert any("image/png" in warning for warning in odd.warnings)


async def test_ones_own_media_are_listed(media: Media) -> None:
    """Latest first, in pages, with what they take of the quota; nothing of others'."""
    made = [(await media.announce(100)).media_id for _ in range(5)]
    await media.announce(100, by=new_id())
    listed: list[str] = []
    token = ""
    while True:
        request = pb.ListMediaRequest(page_size=2, page_token=token)
        page = await media.stub.ListMedia(request, metadata=as_(media.owner))
        listed += [each.media_id for each in page.media]
        assert (page.used_bytes, page.quota_bytes) == (500, 1024**3)
        if not (token := page.next_page_token):
            break
    assert listed == made[::-1]
    for bad in (pb.ListMediaRequest(page_size=-1), pb.ListMediaRequest(page_token="x")):
        with pytest.raises(WhisprError) as caught:
            await media.stub.ListMedia(bad, metadata=as_(media.owner))
        assert caught.value.code is Code.INVALID_ARGUMENT


async def test_exports_say_everything(media: Media) -> None:
    """A data export holds each medium, with a URL that gives it, and each link; nothing of others'."""
    media_id = await media.ready(PDF)
    await media.link(media_id, new_id(), await media.conversation(media.owner))
    await media.upload(b"another's", "text/plain", by=new_id())
    request = common_pb2.ExportUserDataRequest(user_id=media.owner)
    async with media.stub.ExportUserData(request, metadata=as_service()) as call:
        records = [record async for record in call]
    assert sorted(record.kind for record in records) == ["media_link", "medium"]
