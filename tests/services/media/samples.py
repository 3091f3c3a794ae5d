"""Pictures, sound and film, made as they are needed."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from typing import Any

import av
from PIL import Image

ORIENTATION = 0x0112
SECRET = b"51.5007N-secret-place"
"""What a phone writes into its pictures, and nobody should read there."""


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture whose left half is red and whose right half is blue."""
    made = Image.new("RGB", (width, height), (220, 20, 20))
    made.paste((20, 20, 220), (width // 2, 0, width, height))
    return made.convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    """What a phone says beside a picture."""
    made = Image.Exif()
    made[ORIENTATION] = orientation
    made[0x010E] = SECRET.decode()  # ImageDescription
    return made


def photo(kind: str = "JPEG", orientation: int = 1, width: int = 60, height: int = 40) -> bytes:
    """A picture with EXIF in it."""
    return encoded(picture(width, height), kind, exif=exif(orientation))


def animation(kind: str, frames: int = 3) -> bytes:
    """A picture that moves."""
    shades = [Image.new("RGB", (32, 24), (80 * n, 10, 200 - 60 * n)) for n in range(frames)]
    return encoded(shades[0], kind, save_all=True, append_images=shades[1:], duration=90, loop=0)


def tone(
    kind: str = "ogg", codec: str = "libopus", seconds: float = 2.0, rate: int = 48000, loudness: int = 12000
) -> bytes:
    """Sound: silent in its first half, a tone in its second."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        size = 960
        for n in range(int(seconds * rate / size)):
            loud = loudness if n * size >= seconds * rate / 2 else 0
            values = [int(loud * math.sin(2 * math.pi * 440 * (n * size + k) / rate)) for k in range(size)]
            frame = av.AudioFrame(format="s16", layout="mono", samples=size)
            frame.planes[0].update(struct.pack(f"<{size}h", *values))
            frame.rate, frame.pts = rate, n * size
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def film(
    kind: str = "mp4",
    codec: str = "mpeg4",
    seconds: float = 2.0,
    width: int = 96,
    height: int = 64,
    says: Mapping[str, str] | None = None,
) -> bytes:
    """Moving pictures without sound, with what phones say beside them in `says`."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        container.metadata.update(says or {})
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(int(seconds * 10)):
            shade = Image.new("RGB", (width, height), (10 * n % 255, 100, 50))
            frame: Any = av.VideoFrame
            container.mux(stream.encode(frame.from_image(shade)))
        container.mux(stream.encode(None))
    return out.getvalue()
