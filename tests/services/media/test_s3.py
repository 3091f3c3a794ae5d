"""The whole way of a file with its bytes in S3: sent in parts, resumed elsewhere, processed, given out, deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import CREDENTIALS, S3, serving_s3
from tests.services.kit import as_
from tests.services.media.conftest import open_media
from tests.services.media.samples import photo
from whispr.adapters.objects import Objects, S3Options, objects_at
from whispr.adapters.postgres import Postgres
from whispr.v1 import media_pb2 as pb


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """Run an S3 server."""
    with serving_s3() as s3:
        yield s3


@pytest.fixture
def objects(s3: S3, db: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return objects_at(db.bridge, f"{s3.url}/{tmp_path.name}", tmp_path, S3Options(endpoint=s3.endpoint))


async def test_an_upload_goes_on_in_another_process(db: Postgres, tmp_path: Path, objects: Objects) -> None:
    """Parts and offset are in S3 and the database alone, so any process takes the rest; nothing stays behind."""
    sent = b"%PDF-1.7\n" + os.urandom(400_000)
    async with open_media(
        db, tmp_path / "one", objects=objects, key_folder=tmp_path / "keys", run=False
    ) as one:
        created = await one.announce(len(sent))
        await one.patch(created.upload_url, 0, sent[:250_000])
        path, owner = created.upload_url.removeprefix(one.base), one.owner
    async with open_media(db, tmp_path / "two", objects=objects, key_folder=tmp_path / "keys") as two:
        two.owner = owner
        assert (await two.head(two.base + path)).headers["upload-offset"] == "250000"
        await two.patch(two.base + path, 250_000, sent[250_000:])
        assert (await two.settled(created.media_id)).upload_status == "ready"
        url = await two.url(created.media_id)
        assert (await two.http.get(url)).content == sent
        part = await two.http.get(url, headers={"range": "bytes=100000-399999"})
        assert (part.status_code, part.content) == (206, sent[100_000:400_000])
        await two.service.janitor.clean()
        assert await two.stored() == [f"{created.media_id}/1/original"]
        await two.stub.DeleteMedia(pb.DeleteMediaRequest(media_id=created.media_id), metadata=as_(owner))
        await two.service.janitor.clean()
        assert await two.stored() == []


async def test_a_large_file_is_stored_in_parts(db: Postgres, tmp_path: Path, objects: Objects) -> None:
    """Past the size of a part of S3's, and given out unchanged."""
    sent = b"%PDF-1.7\n" + os.urandom(1024) * (10 * 1024)
    async with open_media(db, tmp_path, objects=objects, part_bytes=4 * 1024 * 1024) as media:
        media_id = await media.ready(sent)
        assert (await media.http.get(await media.url(media_id))).content == sent


async def test_pictures_in_s3(db: Postgres, tmp_path: Path, objects: Objects) -> None:
    """Thumbnails are objects like any other."""
    async with open_media(db, tmp_path, objects=objects) as media:
        media_id = await media.ready(photo(width=900), "image/jpeg")
        urls = (await media.metadata(media_id)).thumbnail_urls
        assert [(await media.http.get(url)).headers["content-type"] for url in urls] == ["image/webp"] * 2


async def test_lost_objects_are_said(db: Postgres, tmp_path: Path, objects: Objects) -> None:
    """An object that is not in the store is a 503 before the answer has begun, and nothing breaks."""
    async with open_media(db, tmp_path, objects=objects) as media:
        media_id = await media.ready(b"a text", "text/plain")
        await objects.delete_under(media_id)
        answer = await media.http.get(await media.url(media_id))
        assert answer.status_code == 503
