"""The resumable upload protocol tus 1.0.0 (https://tus.io/protocols/resumable-upload). Pure.

The core protocol, and of its extensions expiration, checksum and termination. Creation is CreateUpload's
matter: a client is given the URL of an upload that is there, and begins with HEAD or PATCH.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = "1.0.0"
CONTENT_TYPE = "application/offset+octet-stream"
EXTENSIONS = "expiration,checksum,termination"
ALGORITHMS: Mapping[str, str] = {"sha1": "sha1", "sha256": "sha256", "md5": "md5"}
CHECKSUM_MISMATCH = 460
"""The status that the checksum extension chose."""

_NUMBER = re.compile(r"\d{1,18}")


class TusFault(Exception):  # noqa: N818  # the client's fault, not ours
    """A request is not as the protocol demands; `status` says what it demands to be told."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the client says that the bytes of its request add up to."""

    algorithm: str
    digest: bytes

    def hasher(self) -> Any:
        """Return an object to feed the bytes to."""
        # It guards against accidents on the way, which is all that the old algorithms are good for.
        return hashlib.new(self.algorithm, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Patch:
    """The head of a PATCH."""

    offset: int
    checksum: Checksum | None


def method_of(method: str, headers: Mapping[str, str]) -> str:
    """Return the method meant: clients that cannot send PATCH or DELETE say so in a header."""
    return headers.get("x-http-method-override", method).upper() if method == "POST" else method


def check_version(headers: Mapping[str, str]) -> None:
    """Raises TusFault 412 for a client that speaks another version, or none."""
    if headers.get("tus-resumable") != VERSION:
        raise TusFault(412, "tus_version", f"send Tus-Resumable: {VERSION}")


def read_patch(headers: Mapping[str, str]) -> Patch:
    """Read the head of a PATCH. Raises TusFault."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise TusFault(415, "unsupported_media_type", f"send Content-Type: {CONTENT_TYPE}")
    offset = headers.get("upload-offset", "")
    if _NUMBER.fullmatch(offset) is None:
        raise TusFault(400, "bad_offset", "Upload-Offset must say, in bytes, where the body belongs")
    return Patch(int(offset), read_checksum(headers.get("upload-checksum", "")))


def read_checksum(value: str) -> Checksum | None:
    """Read Upload-Checksum: the algorithm and the digest in base64. Raises TusFault."""
    if not value:
        return None
    algorithm, _, encoded = value.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise TusFault(400, "bad_checksum", f"Upload-Checksum must use one of {', '.join(ALGORITHMS)}")
    checksum = Checksum(ALGORITHMS[algorithm], _decoded(encoded))
    if len(checksum.digest) != checksum.hasher().digest_size:
        raise TusFault(400, "bad_checksum", f"Upload-Checksum is no {algorithm} in base64")
    return checksum


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        return b""
