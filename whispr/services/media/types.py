"""Content types: which are taken, what kind each is, and whether bytes are what they are said to be. Pure.

A type is known by its family: names for one and the same format, as sniffed by `filetype` and as declared by
clients. Pictures, sound and film are taken in formats that can be looked into, for what is found there is shown
and what should not be there is removed; documents are taken in any, and given out to be saved, never shown.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Mapping

import filetype

HEAD_BYTES = 8192
"""How much of a file says what it is."""

OPAQUE = "application/octet-stream"
"""Stored as it is, unseen: what is encrypted end to end looks like nothing, or like anything."""

FILENAME_CHARS_MAX = 255


class Kind(enum.StrEnum):
    """What a medium is to people."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    DOCUMENT = "document"


_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "jpeg": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "png": ("image/png", "image/apng"),
    "gif": ("image/gif",),
    "webp": ("image/webp",),
    "avif": ("image/avif",),
    "bmp": ("image/bmp", "image/x-ms-bmp"),
    "mov": (
        "video/mp4", "audio/mp4", "video/quicktime", "video/x-m4v", "audio/x-m4a", "audio/m4a", "video/3gpp",
        "audio/3gpp",
    ),
    "matroska": ("video/webm", "audio/webm", "video/x-matroska", "audio/x-matroska"),
    "ogg": ("audio/ogg", "video/ogg", "audio/opus", "application/ogg"),
    "mp3": ("audio/mpeg", "audio/mp3"),
    "wav": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "flac": ("audio/flac", "audio/x-flac"),
    "aac": ("audio/aac", "audio/aacp", "audio/x-aac"),
    "aiff": ("audio/aiff", "audio/x-aiff"),
    "amr": ("audio/amr",),
    "avi": ("video/x-msvideo", "video/avi"),
    "mpeg": ("video/mpeg",),
    "pdf": ("application/pdf",),
    "rtf": ("application/rtf", "text/rtf"),
    "gzip": ("application/gzip", "application/x-gzip"),
    "bzip2": ("application/x-bzip2",),
    "xz": ("application/x-xz",),
    "7z": ("application/x-7z-compressed",),
    "rar": ("application/x-rar-compressed", "application/vnd.rar", "application/x-rar"),
    "tar": ("application/x-tar",),
    "zip": ("application/zip", "application/x-zip-compressed", "application/java-archive"),
    "ole": ("application/msword", "application/vnd.ms-excel", "application/vnd.ms-powerpoint"),
}  # fmt: skip
_FAMILY_OF = {name: family for family, names in _FAMILIES.items() for name in names}
_ZIPPED = (
    "application/vnd.openxmlformats-officedocument.", "application/vnd.oasis.opendocument.",
    "application/epub+zip", "application/vnd.android.package-archive",
)  # fmt: skip
"""Formats that are ZIP archives inside, and that are sniffed as that or as themselves."""
_CANONICAL = {
    "image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-ms-bmp": "image/bmp",
    "audio/mp3": "audio/mpeg", "audio/x-m4a": "audio/mp4", "audio/m4a": "audio/mp4", "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav", "audio/vnd.wave": "audio/wav", "audio/x-flac": "audio/flac",
    "audio/aacp": "audio/aac", "audio/x-aac": "audio/aac", "video/avi": "video/x-msvideo",
}  # fmt: skip
_CONTAINER_OF_BOTH = frozenset({"mov", "matroska", "ogg"})
"""Families that hold sound alone as well as film, which the first bytes do not tell."""

_TYPE = re.compile(r"([a-z]+)/([a-z0-9][a-z0-9!#$&^_.+-]{0,126})")
_TREES = frozenset({"application", "text", "image", "audio", "video", "font", "model"})
_TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|yaml|x-ndjson|javascript)")

SHOWN = frozenset(
    {
        "image/jpeg", "image/png", "image/apng", "image/gif", "image/webp", "image/avif", "image/bmp",
        "video/mp4", "video/webm", "video/quicktime", "video/ogg", "video/x-m4v", "video/3gpp",
        "video/x-matroska", "audio/mp4", "audio/webm", "audio/ogg", "audio/opus", "audio/mpeg", "audio/wav",
        "audio/flac", "audio/aac", "audio/aiff", "audio/3gpp", "audio/amr",
    }
)  # fmt: skip
"""What browsers may show in place; anything else they are told to save."""

_EXTENSIONS = {
    "jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp",
    "avif": "image/avif", "bmp": "image/bmp", "mp4": "video/mp4", "m4v": "video/x-m4v", "mov": "video/quicktime",
    "webm": "video/webm", "mkv": "video/x-matroska", "avi": "video/x-msvideo", "mp3": "audio/mpeg",
    "m4a": "audio/mp4", "ogg": "audio/ogg", "oga": "audio/ogg", "opus": "audio/opus", "wav": "audio/wav",
    "flac": "audio/flac", "aac": "audio/aac", "pdf": "application/pdf", "txt": "text/plain",
    "csv": "text/csv", "json": "application/json", "zip": "application/zip", "gz": "application/gzip",
    "doc": "application/msword", "md": "text/markdown",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
}  # fmt: skip


class TypeFault(Exception):  # noqa: N818  # said of a file, not of us
    """A content type cannot be taken, or is not what the bytes are; the message says why."""


def family_of(content_type: str) -> str:
    """Return the family of a type, or the type itself when it has none."""
    if content_type.startswith(_ZIPPED):
        return "zip"
    return _FAMILY_OF.get(content_type, content_type)


def essence(declared: str) -> str:
    """Return a declared type in lower case, canonical, without parameters. Raises TypeFault."""
    bare = declared.partition(";")[0].strip().lower()
    match = _TYPE.fullmatch(bare)
    if match is None or match[1] not in _TREES:
        raise TypeFault("must be a media type such as image/png or application/pdf")
    canonical = _CANONICAL.get(bare, bare)
    if match[1] in ("image", "audio", "video") and canonical not in _FAMILY_OF:
        known = sorted({_CANONICAL.get(name, name) for name in _FAMILY_OF if name.startswith(match[1] + "/")})
        raise TypeFault(
            f"{bare} cannot be processed; send {', '.join(known)}, or {OPAQUE} to have it kept unseen"
        )
    return canonical


def kind_of(content_type: str) -> Kind:
    """Return what a type is to people."""
    tree = content_type.partition("/")[0]
    return Kind(tree) if tree in ("image", "audio", "video") else Kind.DOCUMENT


def is_text(content_type: str) -> bool:
    """Whether a type is of text, in which there are no NULs."""
    return _TEXT.fullmatch(content_type) is not None and family_of(content_type) != "rtf"


def sniff(head: bytes) -> str:
    """Return the type that the first `HEAD_BYTES` of a file show, empty when they show none."""
    found = filetype.guess_mime(head)
    return str(found) if found else ""


def check(content_type: str, sniffed: str) -> None:
    """Check that what was declared agrees with what the bytes show. Raises TypeFault."""
    if content_type == OPAQUE:
        return
    shown = sniffed or "nothing known"
    mismatch = TypeFault(f"declared as {content_type}, but its bytes show {shown}")
    if kind_of(content_type) is not Kind.DOCUMENT:
        if not sniffed or family_of(content_type) != family_of(sniffed):
            raise mismatch
        return
    if sniffed and (kind_of(sniffed) is not Kind.DOCUMENT or is_text(content_type)):
        raise mismatch
    known = content_type in _FAMILY_OF or family_of(content_type) == "zip"
    if known and (not sniffed or family_of(content_type) != family_of(sniffed)):
        raise mismatch


def settled(content_type: str, *, has_picture: bool) -> str:
    """Return the type of a film or sound once it is known whether it has moving pictures. Raises TypeFault."""
    kind = kind_of(content_type)
    if family_of(content_type) not in _CONTAINER_OF_BOTH or (kind is Kind.VIDEO) == has_picture:
        if kind is Kind.AUDIO and has_picture:
            raise TypeFault(f"declared as {content_type}, but there are moving pictures in it")
        return content_type
    if kind is Kind.AUDIO:
        raise TypeFault(f"declared as {content_type}, but there are moving pictures in it")
    if content_type in ("video/quicktime", "video/x-m4v"):
        return "audio/mp4"
    return content_type.replace("video/", "audio/")


def clean_filename(name: str) -> str:
    """Return a name fit to be shown and saved under: no folders, no control characters. Raises TypeFault."""
    bare = re.split(r"[/\\]", name)[-1]
    # Cc control, Cf format (among them the marks that turn text around), Cs surrogates, Zl/Zp line separators.
    bad = ("Cc", "Cf", "Cs", "Zl", "Zp")
    kept = "".join(c for c in unicodedata.normalize("NFC", bare) if unicodedata.category(c) not in bad)
    kept = kept.strip().strip(".").strip()
    if not kept:
        raise TypeFault("must name a file")
    if len(kept) > FILENAME_CHARS_MAX:
        raise TypeFault(f"at most {FILENAME_CHARS_MAX} characters")
    return kept


def type_by_name(filename: str) -> str:
    """Return the type that a file's ending suggests, empty when it suggests none."""
    return _EXTENSIONS.get(filename.rpartition(".")[2].lower(), "")
