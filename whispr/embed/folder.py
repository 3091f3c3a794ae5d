"""The data folder: its lock, its version, and where things lie in it.

lock            flock'ed by the one process that uses the folder; holds its pid
VERSION         the layout's number, so that an older Whispr refuses a newer folder
postgres/ redis/ nats/   each server's own data
run/            pid files, sockets, the servers' generated configuration
logs/           what the servers print
secrets/        generated credentials, mode 0600
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from whispr.errors import conflict

VERSION = 1
"""The layout this code writes and reads."""

SOCKET_PATH_MAX = 107
"""Bytes in a Unix socket's path on Linux (unix(7): 108 with the final zero)."""


class DataFolder:
    """A locked data folder of a version we know. Made by `open_folder`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sub(self, name: str) -> Path:
        """A private subfolder, made if missing."""
        path = self.root
        for part in Path(name).parts:
            path = path / part
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def secret(self, name: str) -> str:
        """A random secret that is made once and kept, readable by us alone."""
        path = self.sub("secrets") / name
        with contextlib.suppress(FileNotFoundError):
            if kept := path.read_text().strip():
                return kept
        value = secrets.token_urlsafe(32)
        write_private(path, value + "\n")
        return value

    def socket_dir(self, name: str, longest: str) -> Path:
        """A 0700 folder in which a socket named `longest` has a path that the kernel accepts.

        `run/<name>` when that is short enough, else a folder of our own under the temporary directory,
        remembered in `run/<name>.elsewhere` so that it is used again and not left behind at every crash.
        """
        inside = self.root / "run" / name
        if _fits(inside, longest):
            return self.sub(f"run/{name}")
        note = self.sub("run") / f"{name}.elsewhere"
        with contextlib.suppress(FileNotFoundError):
            kept = Path(note.read_text())
            if kept.is_dir() and kept.stat().st_uid == os.geteuid() and kept.stat().st_mode & 0o077 == 0:
                return kept
        for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes it private
            if _fits(Path(base) / "whispr-12345678", longest):
                made = Path(tempfile.mkdtemp(prefix="whispr-", dir=base))
                write_private(note, str(made))
                return made
        raise conflict(
            f"no folder for sockets: {inside} and the temporary directory are too deep", "too_deep"
        )


def write_private(path: Path, text: str) -> None:
    """Write a file that is complete or absent, and readable by us alone."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _fits(folder: Path, name: str) -> bool:
    return len(os.fsencode(folder / name)) <= SOCKET_PATH_MAX


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[DataFolder]:
    """Make, lock and check the data folder; hold the lock for the length of the block.

    Raises FAILED_PRECONDITION: `data_dir_in_use` naming the pid, `data_dir_newer` naming both versions,
    `data_dir_unusable` when it cannot be made or written.
    """
    root = path.resolve()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise conflict(f"cannot use data folder {root}: {error.strerror}", "data_dir_unusable") from error
    try:
        _lock(lock, root)
        _check_version(root)
        yield DataFolder(root)
    finally:
        os.close(lock)


def check_owner(folder: Path) -> None:
    """Raise FAILED_PRECONDITION (data_dir_not_ours) when we are root and the folder is somebody else's.

    Root could, and what it made there its owner could not use afterwards.
    """
    with contextlib.suppress(OSError):
        owner = folder.stat().st_uid
        if os.geteuid() == 0 != owner:
            told = f"data folder {folder} belongs to the user with uid {owner}: run this as that user, not as root"
            raise conflict(told, "data_dir_not_ours")


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        pid = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
        raise conflict(f"data folder {root} is in use by pid {pid}", "data_dir_in_use") from taken
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _check_version(root: Path) -> None:
    file = root / "VERSION"
    try:
        found = file.read_text().strip()
    except FileNotFoundError:
        file.write_text(f"{VERSION}\n")
        return
    if not found.isdigit() or int(found) > VERSION:
        raise conflict(
            f"data folder {root} has version {found!r}; this Whispr reads up to version {VERSION}",
            "data_dir_newer",
        )
