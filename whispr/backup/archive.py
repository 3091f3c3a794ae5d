"""The file: a tar whose first member says what it is, and whose last one that it is whole.

    whispr-backup.json         the manifest: the format's number, who wrote it and when, which migrations
    events/000001.gz …         gzipped SQL, in pieces: what restores the events that were under way
    media/<key> recordings/<key>   objects as they are
    database/000001.gz …       gzipped SQL, in pieces: `tar xO database | gunzip | psql` is a restore by hand
    keys/… media-keys/… stream-keys/… push/vapid.pem
    whispr-backup.end          the digest of all before it

It is written beside its place and moved there once it is on the disk, so a file of that name is a whole backup.
Memory is bounded on both ways: by a piece.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from whispr.errors import WhisprError, conflict

FORMAT = 2
"""The number this code writes; it reads this and all before it."""
MANIFEST, END = "whispr-backup.json", "whispr-backup.end"
PIECE_BYTES = 4 * 1024 * 1024
KEY_KINDS = ("keys", "media-keys", "stream-keys", "push")
"""First parts of the names of members that are keys."""
_GZIP = 31
"""Window bits that mean a gzip header (zlib.h, deflateInit2)."""
_NAME = re.compile(
    r"(events|database)/\d{6}\.gz"
    r"|(media|recordings|keys|media-keys|stream-keys|push)(/(?!\.\.?(/|$))[A-Za-z0-9._-]{1,100}){1,8}"
)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself."""

    format: int
    whispr: str
    """The version that wrote it."""
    made_at: str
    """The moment whose state it holds (ISO 8601)."""
    postgres: str
    migrations: Mapping[str, int]
    """Owner → the last migration applied."""
    media: str
    """`files`, or where they are instead."""
    recordings: str = "the store of their deployment"
    """The same of recordings, which format 1 left where they were."""


def elsewhere(manifest: Manifest) -> list[str]:
    """Say what a backup does not hold."""
    kept = {"media": manifest.media, "recordings": manifest.recordings}
    return [f"  not the {what}: they are in {place}" for what, place in kept.items() if place != "files"]


class Writer:
    """A backup in the making."""

    def __init__(self, draft: IO[bytes], manifest: Manifest) -> None:
        self._tar = tarfile.open(fileobj=draft, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # `finish` closes
        self._digest = hashlib.sha256()
        self.counts: dict[str, int] = {}
        """First part of the names → members."""
        self.add(MANIFEST, msgspec.json.encode(manifest))

    def add(self, name: str, content: bytes) -> None:
        """Write a small member."""
        self._add(name, len(content), io.BytesIO(content))

    def add_file(self, name: str, path: Path) -> None:
        """Write a file. Raises FileNotFoundError when it has gone."""
        with path.open("rb") as file:
            self._add(name, os.fstat(file.fileno()).st_size, file)

    def _add(self, name: str, size: int, content: IO[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._digest.update(f"{name}\0{size}\0".encode())
        self._tar.addfile(member, _Digesting(content, self._digest))
        self._tar.members.clear()  # type: ignore[attr-defined]  # it would remember all of them
        kind = name.partition("/")[0]
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def finish(self) -> None:
        """Say that it is whole."""
        self._tar.addfile(_info(END, digest := self._digest.hexdigest().encode()), io.BytesIO(digest))
        self._tar.close()


def _info(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    return member


class _Digesting(io.RawIOBase):
    """Reads what another file has, and digests it."""

    def __init__(self, file: IO[bytes], digest: hashlib._Hash) -> None:
        self._file, self._digest = file, digest

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data


class Pieces:
    """A gzipped stream of any length, as members of a bounded size."""

    def __init__(self, writer: Writer, folder: str) -> None:
        self._writer, self._folder = writer, folder
        self._zip = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        self._held = bytearray()
        self._count = 0

    def write(self, data: bytes) -> None:
        """Append."""
        self._held += self._zip.compress(data)
        if len(self._held) >= PIECE_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write the rest."""
        self._held += self._zip.flush()
        self._flush()

    def _flush(self) -> None:
        self._count += 1
        self._writer.add(f"{self._folder}/{self._count:06}.gz", bytes(self._held))
        self._held.clear()


@contextlib.contextmanager
def new_archive(path: Path, *, over: bool) -> Iterator[IO[bytes]]:
    """Yield a draft that takes its place once the block has ended well and all of it is on the disk.

    Raises FAILED_PRECONDITION when something is in its place (unless `over`), or it cannot be written.
    """
    if path.is_dir():
        raise conflict(f"{path} is a folder: name a file", "file_unusable")
    if path.exists() and not over:
        raise conflict(f"{path} is there already", "file_exists")
    try:
        # A name that nobody else has, and mode 0600: two backups do not meet, and no file left there is written to.
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise conflict(f"cannot write into {path.parent}: {error.strerror}", "file_unusable") from error
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        about = f"cannot read {error.filename}" if _is_other(error, draft) else f"cannot write {path}"
        raise conflict(f"{about}: {error.strerror or error}", "file_unusable") from error
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_other(error: OSError, draft: Path) -> bool:
    """Whether it is about a file that was to go into the archive."""
    return error.filename not in (None, str(draft))


def members(path: Path, kind: str = "") -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the members whose names begin with `kind` and a slash, or all; each is to be read before the next."""
    try:
        with tarfile.open(path, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember all of them
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise unusable(path, f"{member.name!r} is no file")
                if not kind or member.name.startswith(f"{kind}/"):
                    yield member.name, content
    except OSError as error:
        raise unusable(path, error.strerror or str(error)) from error
    except tarfile.TarError as error:
        raise unusable(path, f"it is no backup of Whispr, or damaged ({error})") from error


def unpacked(path: Path, folder: str) -> Iterator[bytes]:
    """Yield a stream that `Pieces` wrote, a bounded part at a time."""
    unzip = zlib.decompressobj(_GZIP)
    for _, content in members(path, folder):
        left = content.read()
        while left:
            yield unzip.decompress(left, PIECE_BYTES)
            left = unzip.unconsumed_tail
    yield unzip.flush()


def verified(path: Path) -> Manifest:
    """Read all of a backup; return its manifest.

    Raises FAILED_PRECONDITION `backup_unusable` for a file that is none, is cut short, damaged, or newer.
    """
    try:
        return _verified(path)
    except (tarfile.TarError, OSError) as error:
        raise unusable(path, str(error)) from error


def _verified(path: Path) -> Manifest:
    digest = hashlib.sha256()
    manifest: Manifest | None = None
    whole = False
    for name, content in members(path):
        if whole or (manifest is None) is not (name == MANIFEST):
            raise unusable(path, "it is no backup of Whispr")
        if name == END:
            if content.read(100) != digest.hexdigest().encode():
                raise unusable(path, "it is damaged")
            whole = True
        elif name == MANIFEST:
            manifest = _manifest(path, data := content.read(PIECE_BYTES))
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        else:
            _digest_member(path, name, content, digest)
    if manifest is None or not whole:
        raise unusable(path, "it is cut short")
    return manifest


def _digest_member(path: Path, name: str, content: IO[bytes], digest: hashlib._Hash) -> None:
    if not _NAME.fullmatch(name):
        raise unusable(path, f"it holds {name!r}, which no backup does")
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    digest.update(f"{name}\0{size}\0".encode())
    while data := content.read(PIECE_BYTES):
        digest.update(data)


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise unusable(path, f"its manifest cannot be read: {error}") from error
    if manifest.format > FORMAT:
        raise unusable(
            path,
            f"it is of format {manifest.format}, by Whispr {manifest.whispr}; this one reads up to {FORMAT}",
        )
    return manifest


def unusable(path: Path, why: str) -> WhisprError:
    """Say that a file cannot be restored from."""
    return conflict(f"{path} cannot be restored: {why}", "backup_unusable")
