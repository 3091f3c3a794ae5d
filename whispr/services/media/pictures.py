"""Looks into pictures, in the child process of `examine`: what they say beside the picture goes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whispr.services.media import types
from whispr.services.media.findings import Bounds, Result, check_size
from whispr.services.media.strip import STRIPPERS

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAILS_PX = (160, 640)
_ORIENTATION = 0x0112


def look_at_picture(path: Path, result: Result, bounds: Bounds) -> None:
    """Write a picture without what it says beside the picture, and small ones of it. Raises Refused, Malformed."""
    from PIL import ImageOps

    family = types.family_of(result.content_type)
    with _opened(path, family, bounds) as picture:
        turned = picture.getexif().get(_ORIENTATION, 1) in range(2, 9) and not getattr(
            picture, "is_animated", False
        )
    original = path.with_name("original")
    if family in STRIPPERS and not turned:
        original.write_bytes(STRIPPERS[family](path.read_bytes()))
    elif family == "bmp":
        path.rename(original)  # There is nothing in it beside the picture.
    else:
        with _opened(path, family, bounds) as picture:
            # An AVIF's turn is a property of the picture, which decoding applies; others' is in their EXIF.
            _save(ImageOps.exif_transpose(picture), original, family)
    with _opened(original, family, bounds) as picture:
        result.width, result.height = picture.size
        result.give("original", original, result.content_type, *picture.size)
        if family == "jpeg":
            # Decoded at a fraction of its size; every bit of it is read all the same, so damage is found.
            picture.draft("RGB", (2 * max(THUMBNAILS_PX), 2 * max(THUMBNAILS_PX)))
        thumbnails(picture, result, original.parent)


def _opened(path: Path, family: str, bounds: Bounds) -> Image:
    """Open a picture of that format and no other. Raises Refused before anything large is decoded."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Ours is checked below, and is an error rather than a warning.
    picture = Image.open(path, formats=[family.upper()])
    width, height = picture.size
    check_size("picture", width, height, bounds)
    return picture


def _save(picture: Image, path: Path, family: str) -> None:
    """Write a picture anew, without anything beside it but what its colours mean."""
    options: dict[str, Any] = {"icc_profile": picture.info.get("icc_profile")}
    options |= {
        "jpeg": {"quality": 92, "optimize": True},
        "webp": {"quality": 92, "method": 4},
        "avif": {"quality": 90, "speed": 8, "max_threads": 1},
        "png": {},
    }[family]
    if family in ("avif", "webp") and getattr(picture, "is_animated", False):
        options["save_all"] = True
    picture.info = {
        key: value for key, value in picture.info.items() if key in ("transparency", "duration", "loop")
    }
    picture.save(path, family.upper(), exif=b"", **options)


def thumbnails(picture: Image, result: Result, folder: Path) -> None:
    """Write the picture small, as WebP: each size that is smaller than it is, and the smallest in any case."""
    from PIL.Image import Resampling

    longest = max(result.width, result.height)
    whole = _coloured(picture)
    for size in sorted(THUMBNAILS_PX, reverse=True):
        if size >= longest and size != min(THUMBNAILS_PX):
            continue
        whole.thumbnail((size, size), Resampling.LANCZOS)
        path = folder / f"thumbnail_{size}"
        whole.save(path, "WEBP", quality=80, method=4)
        result.give(path.name, path, "image/webp", *whole.size)
    result.variants[1:] = sorted(result.variants[1:], key=lambda v: v.width * v.height)


def _coloured(picture: Image) -> Image:
    """Decode, to RGB or RGBA, in the colours that every screen knows."""
    from PIL import ImageCms

    picture.load()
    profile = picture.info.get("icc_profile")
    clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    plain = picture.convert("RGBA" if clear else "RGB") if picture.mode != "CMYK" or not profile else picture
    if not profile or plain.mode == "RGBA":
        return plain
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        shown = ImageCms.profileToProfile(plain, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return plain.convert("RGB")  # A profile that nobody can read means nothing.
    return shown if shown is not None else plain.convert("RGB")
