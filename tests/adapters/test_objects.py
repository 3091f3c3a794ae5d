"""Objects in a folder and in S3: the same promises, kept by both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from obstore.store import S3Store

from tests.s3 import CREDENTIALS, S3, serving_s3
from whispr.adapters.objects import MissingObjectError, Objects, S3Options, objects_at
from whispr.bridge import Bridge
from whispr.errors import Code, WhisprError


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """Run an S3 server."""
    with serving_s3() as s3:
        yield s3


@pytest.fixture(params=["folder", "s3"])
async def objects(
    request: pytest.FixtureRequest, bridge: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Objects:
    url, options = "", S3Options()
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        url, options = f"{s3.url}/{tmp_path.name}", S3Options(endpoint=s3.endpoint)
    await trio.lowlevel.checkpoint()
    return objects_at(bridge, url, tmp_path / "objects", options)


async def whole(objects: Objects, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in objects.read(key, start, end)])


async def test_what_was_put_is_read(objects: Objects) -> None:
    """An object is read back whole, from the middle, and up to a place."""
    await objects.put("a/b", b"0123456789")
    assert await whole(objects, "a/b") == b"0123456789"
    assert await whole(objects, "a/b", 4) == b"456789"
    assert await whole(objects, "a/b", 2, 5) == b"234"
    await objects.put("a/b", b"new")
    assert await whole(objects, "a/b") == b"new"


async def test_a_large_file_goes_in_parts(objects: Objects, tmp_path: Path) -> None:
    """A file larger than one part arrives unchanged, and is read in bounded pieces."""
    content = os.urandom(1024) * (9 * 1024 + 1)
    source = tmp_path / "source"
    source.write_bytes(content)
    await objects.put_file("large", source)
    pieces = [piece async for piece in objects.read("large")]
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= 1024 * 1024


async def test_a_file_put_is_the_stores_own(objects: Objects, tmp_path: Path) -> None:
    """What becomes of the file afterwards is nothing to the object; putting another replaces it."""
    source = tmp_path / "source"
    source.write_bytes(b"first")
    await objects.put_file("a/b/c", source)
    source.unlink()
    assert await whole(objects, "a/b/c") == b"first"
    source.write_bytes(b"second")
    await objects.put_file("a/b/c", source)
    assert await whole(objects, "a/b/c") == b"second"
    assert [key async for key in objects.list("a")] == ["a/b/c"]


async def test_objects_are_put_together(objects: Objects, tmp_path: Path) -> None:
    """Several objects, one after the other, in an open file; one that is missing is said."""
    content = os.urandom(5 * 1024 * 1024)
    await objects.put("one", content)
    await objects.put("two", b"and more")
    with (tmp_path / "whole").open("wb") as file:
        assert await objects.copy_into("one", len(content), file.fileno()) == len(content)
        assert await objects.copy_into("two", 3, file.fileno()) == 3
        with pytest.raises(MissingObjectError):
            await objects.copy_into("three", 3, file.fileno())
    assert (tmp_path / "whole").read_bytes() == content + b"and"


async def test_what_is_not_there(objects: Objects) -> None:
    """Reading it is an error of its own; deleting it is none."""
    with pytest.raises(MissingObjectError) as caught:
        await whole(objects, "nowhere/at/all")
    assert caught.value.key == "nowhere/at/all"
    await objects.delete(["nowhere/at/all"])
    assert await objects.delete_under("nowhere") == 0


async def test_deleting_a_folder_leaves_its_neighbours(objects: Objects) -> None:
    """A folder is deleted with all below it, one whose name merely begins alike is not."""
    for key in ("m1/parts/0", "m1/parts/1", "m1/x", "m10/x", "m2/x"):
        await objects.put(key, b"x")
    assert await objects.delete_under("m1") == 3
    assert sorted([key async for key in objects.list("m10")]) == ["m10/x"]
    assert await whole(objects, "m2/x") == b"x"
    with pytest.raises(MissingObjectError):
        await whole(objects, "m1/x")


async def test_a_read_can_be_left(objects: Objects) -> None:
    """Whoever stops reading, or is cancelled, leaves nothing behind that would keep the bridge from closing."""
    await objects.put("big", bytes(6 * 1024 * 1024))
    reading = objects.read("big")
    assert await anext(reading)
    await reading.aclose()
    with trio.move_on_after(0.001) as scope:
        await whole(objects, "big")
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(await whole(objects, "big")) == 6 * 1024 * 1024


async def test_a_store_that_is_away_is_unavailable(bridge: Bridge, tmp_path: Path) -> None:
    """Without an answer the error says so, and the caller's deadline holds."""
    options = S3Options(endpoint="http://127.0.0.1:9")
    objects = objects_at(bridge, "s3://bucket", tmp_path, options)
    objects._store = S3Store(
        "bucket",
        config={"endpoint": "http://127.0.0.1:9", "access_key_id": "a", "secret_access_key": "b"},
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(WhisprError) as caught, trio.fail_after(5):
        await objects.put("x", b"x")
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "file://host/x", "file:///", "folder"])
async def test_other_urls_are_refused(bridge: Bridge, tmp_path: Path, url: str) -> None:
    """A store that we cannot open is an error that names the setting."""
    with pytest.raises(WhisprError, match="WHISPR_MEDIA_STORE_URL"):
        objects_at(bridge, url, tmp_path)


async def test_a_store_that_cannot_be_is_named_by_its_setting(bridge: Bridge, tmp_path: Path) -> None:
    """A URL of something else, and a folder that cannot be made, name what the operator has to change."""
    (tmp_path / "file").touch()
    for url, why in (("ftp://x", "neither"), (f"file://{tmp_path}/file/below", "Not a directory")):
        with pytest.raises(WhisprError, match=f"WHISPR_STREAM_STORE_URL: .*{why}"):
            objects_at(bridge, url, tmp_path, setting="WHISPR_STREAM_STORE_URL")
