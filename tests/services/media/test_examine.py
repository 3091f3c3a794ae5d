"""What is found in files, and what is taken out of them."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.services.media.samples import (
    SECRET,
    animation,
    encoded,
    exif,
    film,
    photo,
    picture,
    tone,
)
from whispr.services.media import recordings
from whispr.services.media.examine import INPUT, examine
from whispr.services.media.findings import Bounds, Refused, Result
from whispr.services.media.recordings import PEAKS
from whispr.services.media.strip import STRIPPERS, Malformed, blank_film

BOUNDS = Bounds()

pytestmark = pytest.mark.filterwarnings("ignore")  # Decoders warn of oddities, which these files are full of.


def examined(folder: Path, content: bytes, declared: str, bounds: Bounds = BOUNDS) -> Result:
    (folder / INPUT).write_bytes(content)
    return examine(folder, declared, bounds)


def original(folder: Path, result: Result) -> bytes:
    variant = result.variants[0]
    assert variant.name == "original"
    content = (folder / variant.file).read_bytes()
    assert variant.bytes == len(content)
    assert variant.sha256 == hashlib.sha256(content).hexdigest()
    return content


def pixels(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").tobytes()


@pytest.mark.parametrize(("kind", "declared"), [
    ("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp"), ("AVIF", "image/avif"),
])  # fmt: skip
def test_a_picture_loses_what_it_says_beside_the_picture(tmp_path: Path, kind: str, declared: str) -> None:
    """EXIF is gone; the picture is the same, bit for bit where its format can be taken apart."""
    content = photo(kind)
    assert SECRET in content
    result = examined(tmp_path, content, declared)
    kept = original(tmp_path, result)
    assert SECRET not in kept
    assert len(Image.open(io.BytesIO(kept)).getexif()) == 0
    if kind != "AVIF":
        assert pixels(kept) == pixels(content)
    assert (result.kind, result.content_type, result.width, result.height) == ("image", declared, 60, 40)


def test_everything_else_a_jpeg_can_carry_goes_too(tmp_path: Path) -> None:
    """XMP, IPTC, comments, embedded previews, and whatever follows the end; colours keep their meaning."""
    plain = encoded(picture(), "JPEG", exif=exif(), comment=SECRET, icc_profile=b"not really a profile")
    extra = b"".join(
        b"\xff" + bytes((marker,)) + struct.pack(">H", 2 + len(body)) + body
        for marker, body in (
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET), (0xED, b"Photoshop 3.0\0" + SECRET),
            (0xE2, b"MPF\0" + SECRET), (0xEA, SECRET), (0xFE, SECRET),
        )
    )  # fmt: skip
    content = plain[:2] + extra + plain[2:] + b"\0\0" + SECRET + plain
    kept = original(tmp_path, examined(tmp_path, content, "image/jpeg"))
    assert SECRET not in kept
    assert b"not really a profile" in kept
    assert kept.endswith(b"\xff\xd9")
    assert pixels(kept) == pixels(content)


def test_progressive_jpegs_survive(tmp_path: Path) -> None:
    """A picture of several scans is walked to its end."""
    content = encoded(picture(300, 200), "JPEG", progressive=True, exif=exif(), restart_marker_blocks=4)
    kept = original(tmp_path, examined(tmp_path, content, "image/jpeg"))
    assert pixels(kept) == pixels(content)


@pytest.mark.parametrize(
    ("kind", "declared"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")]
)
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_turned_picture_is_turned(tmp_path: Path, kind: str, declared: str, orientation: int) -> None:
    """What EXIF said of the picture's orientation is done to the picture, since EXIF goes."""
    result = examined(tmp_path, photo(kind, orientation), declared)
    kept = original(tmp_path, result)
    turned = orientation in (6, 8)
    assert (result.width, result.height) == ((40, 60) if turned else (60, 40))
    assert SECRET not in kept
    with Image.open(io.BytesIO(kept)) as image:
        assert image.size == (result.width, result.height)
        corner = image.convert("RGB").getpixel((3, 3))
        assert isinstance(corner, tuple)
        red = corner[0] > corner[2]
    # The red half was left: mirrored or upside down it is right, by a quarter it is on top, or below.
    assert red == (orientation == 6)


@pytest.mark.parametrize(
    ("kind", "declared"), [("GIF", "image/gif"), ("WEBP", "image/webp"), ("PNG", "image/png")]
)
def test_animations_keep_moving(tmp_path: Path, kind: str, declared: str) -> None:
    """Every frame, its time and the repetition survive; the thumbnail is of the first."""
    content = animation(kind)
    kept = original(tmp_path, examined(tmp_path, content, declared))
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(kept)) as after:
        assert getattr(after, "n_frames", 1) == getattr(before, "n_frames", 1) == 3
        for n in range(3):
            before.seek(n)
            after.seek(n)
            assert after.convert("RGB").tobytes() == before.convert("RGB").tobytes()
            assert after.info.get("duration") == before.info.get("duration")
        assert after.info.get("loop") == before.info.get("loop")


def test_a_gif_loses_comments_and_foreign_blocks(tmp_path: Path) -> None:
    """XMP and comments go, wherever they stand."""
    content = animation("GIF")
    head = 13 + 3 * 2 ** ((content[10] & 7) + 1) if content[10] & 0x80 else 13
    comment = b"\x21\xfe" + bytes((len(SECRET),)) + SECRET + b"\0"
    xmp = b"\x21\xff\x0bXMP DataXMP" + bytes((len(SECRET),)) + SECRET + b"\0"
    kept = original(
        tmp_path, examined(tmp_path, content[:head] + comment + xmp + content[head:], "image/gif")
    )
    assert SECRET not in kept
    assert b"NETSCAPE2.0" in kept


def test_a_png_loses_its_texts(tmp_path: Path) -> None:
    """Text of every sort, times and unknown chunks go; transparency stays."""
    content = encoded(picture(mode="RGBA"), "PNG")
    chunks = b""
    for name, body in (
        (b"tEXt", b"Comment\0" + SECRET),
        (b"iTXt", b"XML\0\0\0\0\0" + SECRET),
        (b"teSt", SECRET),
    ):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    kept = original(tmp_path, examined(tmp_path, content[:33] + chunks + content[33:] + SECRET, "image/png"))
    assert SECRET not in kept
    assert pixels(kept) == pixels(content)


def test_thumbnails_have_their_sizes(tmp_path: Path) -> None:
    """A large picture gets both, smallest first, in its own proportions; a small one is never enlarged."""
    result = examined(tmp_path, photo(width=1600, height=800), "image/jpeg")
    small, large = result.variants[1:]
    assert (small.name, small.width, small.height) == ("thumbnail_160", 160, 80)
    assert (large.name, large.width, large.height) == ("thumbnail_640", 640, 320)
    for variant in (small, large):
        with Image.open(tmp_path / variant.file) as image:
            assert image.format == "WEBP"
            assert image.size == (variant.width, variant.height)
    result = examined(tmp_path, photo(width=20, height=10), "image/jpeg")
    assert [(v.name, v.width) for v in result.variants[1:]] == [("thumbnail_160", 20)]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "RGBA", "1", "I;16"])
def test_pictures_of_every_mode_get_thumbnails(tmp_path: Path, mode: str) -> None:
    """Grey, paletted, transparent or made for print."""
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = Image.new(mode, (200, 100)) if mode == "I;16" else picture(200, 100, mode)
    result = examined(tmp_path, encoded(image, kind), f"image/{kind.lower()}")
    assert result.variants[1].width == 160


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    """More pixels than allowed are refused by what the head says: at the limit is fine, over it is not."""
    content = encoded(Image.new("1", (100, 100)), "PNG")
    assert examined(tmp_path, content, "image/png", Bounds(pixels=10_000)).width == 100
    with pytest.raises(Refused) as caught:
        examined(tmp_path, content, "image/png", Bounds(pixels=9_999))
    assert caught.value.reason == "too_large"
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
    bomb = content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]
    with pytest.raises(Refused) as caught:
        examined(tmp_path, bomb, "image/png")
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(("content", "declared"), [
    (photo("PNG"), "image/jpeg"), (photo("JPEG"), "image/png"), (b"plain text", "image/png"),
    (photo("PNG"), "application/pdf"), (photo("JPEG"), "text/plain"), (b"%PDF-1.7\n", "text/plain"),
    (b"text with a \0 in it", "text/plain"), (b"no archive", "application/zip"), (b"MZ" + bytes(60), "text/csv"),
    (tone("mp3", "mp3"), "audio/ogg"), (film(), "audio/mp4"),
], ids=str)  # fmt: skip
def test_bytes_that_are_not_what_they_are_said_to_be(tmp_path: Path, content: bytes, declared: str) -> None:
    """The mismatch is refused, and both types are named where both are known."""
    with pytest.raises(Refused) as caught:
        examined(tmp_path, content, declared)
    assert caught.value.reason == "content_type_mismatch"
    assert declared in caught.value.message


@pytest.mark.parametrize(("content", "declared"), [
    (b"%PDF-1.7\n", "application/pdf"), (b"a,b\n\xe9,2\n", "text/csv"), (b"{}", "application/json"),
    ("täxt".encode("utf-16"), "text/plain"), (b"anything", "application/x-something"),
    (b"PK\x03\x04" + bytes(60), "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    (photo("JPEG"), "application/octet-stream"), (b"<html>", "text/html"),
], ids=str)  # fmt: skip
def test_documents_are_kept_as_they_are(tmp_path: Path, content: bytes, declared: str) -> None:
    """Nothing is taken out of a document, and nothing out of what is declared opaque."""
    result = examined(tmp_path, content, declared)
    assert original(tmp_path, result) == content
    assert (result.kind, result.content_type) == ("document", declared)


@pytest.mark.parametrize(("kind", "codec", "declared"), [
    ("ogg", "libopus", "audio/ogg"), ("mp3", "mp3", "audio/mpeg"), ("wav", "pcm_s16le", "audio/wav"),
    ("mp4", "aac", "audio/mp4"), ("webm", "libopus", "audio/webm"), ("flac", "flac", "audio/flac"),
])  # fmt: skip
def test_sound_has_a_length_and_a_shape(tmp_path: Path, kind: str, codec: str, declared: str) -> None:
    """The first half of the sample is silent and the second loud, and so is its shape."""
    result = examined(tmp_path, tone(kind, codec), declared)
    assert result.kind == "audio"
    assert result.duration_s == pytest.approx(2.0, abs=0.1)
    assert len(result.waveform) == PEAKS
    assert max(result.waveform) == 100
    assert max(result.waveform[: PEAKS // 2 - 4]) <= 5 < 60 <= min(result.waveform[PEAKS // 2 + 4 : -4])


def test_long_sound_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is too long to be listened to all through, enough is heard to know where it is loud."""
    monkeypatch.setattr(recordings, "LISTEN_S_MAX", 1.0)
    heard = examined(tmp_path, tone(seconds=4.0), "audio/ogg").waveform
    assert len(heard) == PEAKS
    assert max(heard[: PEAKS // 2 - 4]) <= 5 < 60 <= min(heard[PEAKS // 2 + 4 :])


def test_silence_has_a_shape_too(tmp_path: Path) -> None:
    """All of it is nought, and nothing is divided by it."""
    silent = tone("wav", "pcm_s16le", loudness=0)
    assert set(examined(tmp_path, silent, "audio/wav").waveform) == {0}


def test_sound_declared_as_film_is_sound(tmp_path: Path) -> None:
    """Recorders of browsers say video/webm of sound, too."""
    result = examined(tmp_path, tone("webm", "libopus"), "video/webm")
    assert (result.kind, result.content_type) == ("audio", "audio/webm")


@pytest.mark.parametrize(("kind", "codec", "declared"), [
    ("mp4", "mpeg4", "video/mp4"), ("webm", "libvpx", "video/webm"),
])  # fmt: skip
def test_film_has_a_size_a_length_and_a_poster(tmp_path: Path, kind: str, codec: str, declared: str) -> None:
    """All three are of the film as it is shown."""
    result = examined(tmp_path, film(kind, codec), declared)
    assert (result.kind, result.width, result.height) == ("video", 96, 64)
    assert result.duration_s == pytest.approx(2.0, abs=0.15)
    assert [(v.name, v.width, v.height) for v in result.variants[1:]] == [("thumbnail_160", 96, 64)]


_STRIPPED = {
    "jpeg": photo("JPEG"), "png": photo("PNG"), "gif": animation("GIF"), "webp": animation("WEBP"),
}  # fmt: skip


@given(family=st.sampled_from(sorted(_STRIPPED)), data=st.data())
def test_no_damage_breaks_the_walk(family: str, data: st.DataObject) -> None:
    """Whatever is wrong with a picture, it is walked to an end, or malformed; what comes out is never larger."""
    content = bytearray(_STRIPPED[family])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        stripped = STRIPPERS[family](bytes(content))
    except Malformed:
        return
    assert len(stripped) <= len(content) + 1


def test_a_film_loses_where_it_was_made(tmp_path: Path) -> None:
    """What phones say beside a film is gone; the film is where it was, bit for bit."""
    says = {"comment": SECRET.decode(), "location": "+51.5007-000.1246/", "title": SECRET.decode()}
    content = film(says=says)
    assert content.count(SECRET) >= 2
    assert b"loci" in content
    result = examined(tmp_path, content, "video/mp4")
    kept = original(tmp_path, result)
    assert SECRET not in kept
    assert b"loci" not in kept
    assert len(kept) == len(content)
    assert (result.width, result.height) == (96, 64)
    beside = content.index(b"udta")
    assert kept[:beside] == content[:beside]


_FILM = film(says={"comment": "here"})


@given(data=st.data())
def test_no_damage_breaks_the_walk_of_a_film(data: st.DataObject) -> None:
    """Boxes of any size and kind are walked to an end, or malformed; nothing moves."""
    content = bytearray(_FILM)
    start = content.index(b"moov") - 4
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(start, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    size = len(content)
    try:
        blank_film(content)
    except Malformed:
        return
    assert len(content) == size


@pytest.mark.parametrize("size", [20, 60, 200, 0.5, 0.9])
@pytest.mark.parametrize("sample", [
    (photo("JPEG", width=300), "image/jpeg"), (photo("PNG", width=300), "image/png"), (animation("GIF"), "image/gif"),
    (photo("WEBP", width=300), "image/webp"), (tone(), "audio/ogg"), (film(), "video/mp4"),
], ids=lambda s: s[1])  # fmt: skip
def test_what_is_cut_off_is_refused_or_read(tmp_path: Path, sample: tuple[bytes, str], size: float) -> None:
    """A file that ends early is never a failure of ours: it is refused with a reason, or what there is is read."""
    content, declared = sample
    end = int(size * len(content)) if size < 1 else int(size)
    try:
        assert examined(tmp_path, content[:end], declared).variants
    except Refused as refused:
        reason = refused.reason
    else:
        return
    assert reason in ("unreadable", "content_type_mismatch")
