"""What a medium is, and the rules about it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from whispr.errors import WhisprError, conflict, exhausted
from whispr.services.media.types import TypeFault, clean_filename, essence, kind_of

CUSTOM_KEYS_MAX = 16
CUSTOM_KEY_CHARS_MAX = 64
CUSTOM_VALUE_CHARS_MAX = 1024
PART_BYTES = 2 * 1024 * 1024
"""What is received is kept in pieces of this size; a dying process loses two at most, and each upload that is
received holds two in memory."""
PARTS_MAX = 10_000
"""Pieces of one upload: a client that sends a byte at a time is told to send more."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What an operator may set; 0 lifts a limit of bytes or of counts."""

    file_bytes: int = 100 * 1024 * 1024
    user_bytes: int = 1024 * 1024 * 1024
    pending_uploads: int = 100
    """A person's, at a time."""
    uploads_per_min: int = 60
    streams: int = 64
    """Requests with bytes of uploads that one process serves at a time: each holds two parts in memory."""
    streams_per_upload: int = 2
    """Of one upload: a second one for a client whose first has gone without our noticing yet."""
    pixels: int = 50_000_000
    page_size: int = 50
    page_size_max: int = 100
    upload_url_s: float = 24 * 3600.0
    """How long an upload may take."""
    download_url_s: float = 3600.0
    unlinked_s: float = 24 * 3600.0
    """How long a medium that no message links to is kept."""


class Status(enum.StrEnum):
    """Where a medium is on its way."""

    PENDING = "pending"
    PROCESSING = "processing"
    READY = "ready"
    ERROR = "error"


class Stored(msgspec.Struct, frozen=True):
    """A file that is given out, as it is in the object store."""

    name: str
    key: str
    type: str
    bytes: int
    sha256: str
    width: int = 0
    height: int = 0


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """A medium, as the database has it."""

    id: str
    owner_id: str
    conversation_id: str | None
    filename: str
    content_type: str
    kind: str
    status: Status
    error_reason: str = ""
    error_message: str = ""
    declared_bytes: int
    received_bytes: int
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    waveform: bytes = b""
    custom_metadata: Mapping[str, str] = {}
    variants: Sequence[Stored] = ()
    created_at: datetime
    upload_expires_at: datetime
    ready_at: datetime | None = None
    unlinked_at: datetime | None = None

    def variant(self, name: str) -> Stored | None:
        """Return the file of that name, if there is one."""
        return next((each for each in self.variants if each.name == name), None)


class Access(msgspec.Struct, frozen=True):
    """A medium in somebody's eyes."""

    medium: Medium
    is_owner: bool
    through_link: bool
    """Whether they are a member of a conversation where it is linked, or it is somebody's face."""

    @property
    def may_read(self) -> bool:
        """Whether they may see it."""
        return self.is_owner or self.through_link


@dataclass(frozen=True, slots=True)
class Announced:
    """A file as its uploader describes it, cleaned."""

    filename: str
    content_type: str
    file_size: int
    custom_metadata: Mapping[str, str]

    @property
    def kind(self) -> str:
        """What it is to people."""
        return kind_of(self.content_type).value


def announced(
    filename: str, content_type: str, file_size: int, custom: Mapping[str, str], limits: MediaLimits
) -> tuple[Announced, dict[str, str]]:
    """Return the file as it would be taken, and what is wrong with it by field: nothing when that is empty."""
    faults: dict[str, str] = {}

    def cleaned(field: str, value: str) -> str:
        try:
            return clean_filename(value) if field == "filename" else essence(value)
        except TypeFault as fault:
            faults[field] = str(fault)
            return ""

    taken = Announced(
        cleaned("filename", filename), cleaned("content_type", content_type), file_size, dict(custom)
    )
    if file_size < 1:
        faults["file_size"] = "must be the size of the file in bytes, at least 1"
    if why := _bad_custom(custom):
        faults["custom_metadata"] = why
    return taken, faults


def _bad_custom(custom: Mapping[str, str]) -> str:
    if len(custom) > CUSTOM_KEYS_MAX:
        return f"at most {CUSTOM_KEYS_MAX} entries"
    if any(not 0 < len(key) <= CUSTOM_KEY_CHARS_MAX for key in custom):
        return f"keys have 1 to {CUSTOM_KEY_CHARS_MAX} characters"
    if any(len(value) > CUSTOM_VALUE_CHARS_MAX for value in custom.values()):
        return f"values have at most {CUSTOM_VALUE_CHARS_MAX} characters"
    if any("\0" in text for pair in custom.items() for text in pair):
        return "there are NULs in it"
    return ""


def too_large(file_bytes: int) -> WhisprError:
    """RESOURCE_EXHAUSTED: over the limit of one file."""
    return exhausted(f"files may have at most {file_bytes} bytes", reason="file_too_large")


def not_there_yet(medium: Medium) -> WhisprError | None:
    """FAILED_PRECONDITION for a medium whose content cannot be given out, None for one that can."""
    if medium.status is Status.READY:
        return None
    if medium.status is Status.ERROR:
        facts = {"error_reason": medium.error_reason}
        return conflict(f"the medium cannot be given out: {medium.error_message}", "failed", facts)
    return conflict(f"the medium is still {medium.status.value}", "not_ready")
