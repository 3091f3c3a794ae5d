"""Signed URLs, ranges and preconditions, tus headers, names and types: what is pure about bytes on the web."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.adapters.signing import ensure_keys
from whispr.asgi.conditions import Plan, disposition, http_date, plan
from whispr.errors import WhisprError
from whispr.services.media import tus, types
from whispr.services.media.types import TypeFault
from whispr.services.media.urls import Granted, SignedUrls

ID = "0190163d-8694-739b-aea5-966c26f8ad91"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ETAG = '"abc"'
AT = datetime(2026, 5, 4, 3, 2, 1, 999, tzinfo=UTC)


class Hands:
    """A clock whose hands are moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def urls(clock: Hands, *keys: bytes) -> SignedUrls:
    return SignedUrls(keys or (KEY,), lambda: "https://media.test", clock)


def check(signed: SignedUrls, url: str) -> Granted:
    parts = urlsplit(url)
    return signed.check(parts.path, parts.query)


def refusal(signed: SignedUrls, url: str) -> str:
    with pytest.raises(WhisprError) as caught:
        check(signed, url)
    return caught.value.reason


def test_a_url_allows_what_it_was_made_for() -> None:
    """What goes in comes out, for both kinds."""
    signed = urls(Hands())
    assert check(signed, signed.upload(ID, 1500.9)) == Granted(ID, 1500)
    assert check(signed, signed.content(ID, "original", 1500)) == Granted(ID, 1500, "original")
    download = signed.content(ID, "thumbnail_160", 1500, as_attachment=True)
    assert check(signed, download) == Granted(ID, 1500, "thumbnail_160", as_attachment=True)


def test_a_url_ends() -> None:
    """It holds up to its last second and not a moment longer."""
    clock = Hands()
    signed = urls(clock)
    url = signed.content(ID, "original", 1500)
    clock.now = 1499.9
    assert check(signed, url).variant == "original"
    clock.now = 1500.0
    assert refusal(signed, url) == "url_expired"


def test_nothing_of_a_url_can_be_changed() -> None:
    """Another medium, another variant, a later end, an upload out of a download, another query after it."""
    signed = urls(Hands())
    url = signed.content(ID, "thumbnail_160", 1500)
    for old, new in (
        (ID, ID[:-1] + "2"), ("thumbnail_160", "original"), ("1500", "9500"), ("&key=", "&download=1&key="),
        ("/content", "/x"), (f"{ID}/content", f"uploads/{ID}"), ("&signature=", "&signature=A"), ("?", "?x=1&"),
        ("&signature=", "&nothing="), (url[-3:], ""),
    ):  # fmt: skip
        assert refusal(signed, url.replace(old, new)) == "bad_signature", (old, new)
    assert refusal(signed, url + "&expires=9999") == "bad_signature"
    assert refusal(urls(Hands(), OTHER_KEY), url) == "bad_signature"


@given(st.text(max_size=80))
def test_no_query_at_all_breaks_it(query: str) -> None:
    """Whatever a client makes up is refused as such."""
    with pytest.raises(WhisprError):
        urls(Hands()).check(f"/v1/media/{ID}/content", query + "&signature=" + query)


def test_keys_are_rotated_by_adding_one() -> None:
    """URLs under the old key hold while it is there; new ones are under the new key."""
    old, both, new = urls(Hands(), KEY), urls(Hands(), KEY, OTHER_KEY), urls(Hands(), OTHER_KEY)
    url = old.upload(ID, 1500)
    assert check(both, url).media_id == ID
    assert check(new, both.upload(ID, 1500)).media_id == ID
    assert refusal(new, url) == "bad_signature"


def test_a_first_key_is_made_and_kept(tmp_path: Path) -> None:
    """It is for its owner's eyes alone, and the same at the next start."""
    folder = tmp_path / "keys"
    (key,) = ensure_keys(folder)
    assert len(key) == 32
    assert (folder / "0001.key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder) == ["0001.key"]
    assert ensure_keys(folder) == [key]
    (folder / "0002.key").write_text("11" * 32)
    (folder / "0002.key").chmod(0o600)
    assert ensure_keys(folder) == [key, b"\x11" * 32]


@pytest.mark.parametrize(
    ("content", "mode"), [("11" * 32, 0o644), ("11" * 31, 0o600), ("no hexadecimal", 0o600)]
)
def test_keys_that_will_not_do(tmp_path: Path, content: str, mode: int) -> None:
    """A key that others can read, or that is none, is an error that names its file."""
    (tmp_path / "0001.key").write_text(content)
    (tmp_path / "0001.key").chmod(mode)
    with pytest.raises(WhisprError, match=r"0001\.key"):
        ensure_keys(tmp_path)


@pytest.mark.parametrize(("asked", "expected"), [
    ("", Plan(200, 0, 100)), ("bytes=0-", Plan(206, 0, 100)), ("bytes=0-0", Plan(206, 0, 1)),
    ("bytes=10-19", Plan(206, 10, 20)), ("bytes=90-500", Plan(206, 90, 100)), ("bytes=-1", Plan(206, 99, 100)),
    ("bytes=-500", Plan(206, 0, 100)), ("bytes=99-", Plan(206, 99, 100)), ("bytes=100-", Plan(416)),
    ("bytes=-0", Plan(416)), ("bytes=5-4", Plan(200, 0, 100)), ("bytes=0-1,5-6", Plan(200, 0, 100)),
    ("lines=0-1", Plan(200, 0, 100)), ("bytes=a-b", Plan(200, 0, 100)),
    ("bytes=99999999999999999999-", Plan(200, 0, 100)),
])  # fmt: skip
def test_ranges(asked: str, expected: Plan) -> None:
    """One range is given as asked, cut to what there is; what is none is not honoured."""
    assert plan({"range": asked} if asked else {}, ETAG, AT, 100) == expected


@pytest.mark.parametrize(("headers", "status"), [
    ({"if-none-match": ETAG}, 304), ({"if-none-match": 'W/"abc"'}, 304), ({"if-none-match": "*"}, 304),
    ({"if-none-match": '"x", "abc"'}, 304), ({"if-none-match": '"x"'}, 200),
    ({"if-match": ETAG}, 200), ({"if-match": '"x"'}, 412), ({"if-match": 'W/"abc"'}, 412), ({"if-match": "*"}, 200),
    ({"if-modified-since": http_date(AT)}, 304), ({"if-modified-since": http_date(AT - timedelta(1))}, 200),
    ({"if-modified-since": "yesterday"}, 200), ({"if-unmodified-since": http_date(AT - timedelta(1))}, 412),
    ({"if-unmodified-since": http_date(AT)}, 200),
    ({"if-none-match": '"x"', "if-modified-since": http_date(AT)}, 200),
    ({"range": "bytes=0-1", "if-range": ETAG}, 206), ({"range": "bytes=0-1", "if-range": '"x"'}, 200),
    ({"range": "bytes=0-1", "if-range": 'W/"abc"'}, 200), ({"range": "bytes=0-1", "if-range": http_date(AT)}, 206),
    ({"range": "bytes=0-1", "if-range": http_date(AT + timedelta(1))}, 200),
    ({"range": "bytes=0-1", "if-none-match": ETAG}, 304),
])  # fmt: skip
def test_preconditions(headers: Mapping[str, str], status: int) -> None:
    """Tags and dates, alone and together, mean what RFC 9110 says."""
    assert plan(headers, ETAG, AT, 100).status == status


@given(st.text(min_size=1, max_size=40))
def test_any_name_is_a_safe_header(name: str) -> None:
    """No name breaks out of its header, and what can be said of it in UTF-8 is said."""
    try:
        clean = types.clean_filename(name)
    except TypeFault:
        return
    header = disposition(clean, inline=False)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    assert unquote(header.rpartition("''")[2]) == clean


@pytest.mark.parametrize(("given", "kept"), [
    ("a.png", "a.png"), ("../../etc/passwd", "passwd"), ("C:\\x\\b.doc", "b.doc"), ("e\u0301.txt", "é.txt"),
    ("gpj\u202e.exe", "gpj.exe"), ("a\nb\0.txt", "ab.txt"), (" . spaced .", "spaced"), ("日本.txt", "日本.txt"),
])  # fmt: skip
def test_names_are_cleaned(given: str, kept: str) -> None:
    """Folders, controls, and marks that turn text around go."""
    assert types.clean_filename(given) == kept


@pytest.mark.parametrize("name", ["", "/", "...", "\u202e", "x" * 256, "a/"])
def test_some_names_are_none(name: str) -> None:
    """A name of nothing, or of too much, is refused."""
    with pytest.raises(TypeFault):
        types.clean_filename(name)
    assert types.clean_filename("x" * 255) == "x" * 255


@pytest.mark.parametrize(("declared", "kept"), [
    ("image/JPG", "image/jpeg"), ("audio/webm;codecs=opus", "audio/webm"),
    ("Text/Plain; charset=utf-8", "text/plain"),
    ("application/octet-stream", "application/octet-stream"),
    ("application/vnd.x.y+json", "application/vnd.x.y+json"),
])  # fmt: skip
def test_types_are_canonical(declared: str, kept: str) -> None:
    """Case and parameters do not matter, and neither which of a format's names is used."""
    assert types.essence(declared) == kept


@pytest.mark.parametrize("declared", [
    "", "image", "image/", "/png", "image/svg+xml", "image/tiff", "image/heic", "video/x-flv", "audio/midi",
    "multipart/form-data", "message/http", "a b/c", "text/plain\r\nx: y", "*/*",
])  # fmt: skip
def test_some_types_are_not_taken(declared: str) -> None:
    """What is no type, and pictures, sound and film that cannot be looked into."""
    with pytest.raises(TypeFault):
        types.essence(declared)


def test_the_head_of_a_patch() -> None:
    """Offset and checksum are read; each fault has the status that the protocol gives it."""
    good = {"content-type": tus.CONTENT_TYPE, "upload-offset": "7"}
    assert tus.read_patch(good) == tus.Patch(7, None)
    digest = base64.b64encode(hashlib.sha1(b"x", usedforsecurity=False).digest()).decode()
    checked = tus.read_patch(good | {"upload-checksum": f"sha1 {digest}"}).checksum
    assert checked is not None
    assert checked.digest == hashlib.sha1(b"x", usedforsecurity=False).digest()
    for headers, status in (
        ({"upload-offset": "7"}, 415), (good | {"content-type": "text/plain"}, 415),
        (good | {"upload-offset": "-1"}, 400), (good | {"upload-offset": ""}, 400),
        (good | {"upload-checksum": "crc32 AAAA"}, 400), (good | {"upload-checksum": "sha1 AAAA"}, 400),
        (good | {"upload-checksum": "sha1 !"}, 400),
    ):  # fmt: skip
        with pytest.raises(tus.TusFault) as caught:
            tus.read_patch(headers)
        assert caught.value.status == status
    with pytest.raises(tus.TusFault):
        tus.check_version({"tus-resumable": "0.2.2"})
    assert tus.method_of("POST", {"x-http-method-override": "patch"}) == "PATCH"
    assert tus.method_of("GET", {"x-http-method-override": "PATCH"}) == "GET"
