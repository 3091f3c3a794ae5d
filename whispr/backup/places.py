"""Where in a deployment the things lie that a backup holds beside the database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from whispr import limits
from whispr.config import Settings
from whispr.credentials import key_folder


def media_folder(settings: Settings) -> Path | None:
    """The folder of the media, or None when they are in S3."""
    return _folder_at(settings.media.store_url, settings.data_dir / "media" / "objects")


def recordings_folder(settings: Settings) -> Path | None:
    """The folder of the recordings, or None when they are in S3."""
    return _folder_at(settings.stream.store_url, settings.data_dir / "streams" / "objects")


def _folder_at(store_url: str, usual: Path) -> Path | None:
    url = urlsplit(store_url)
    if url.scheme == "s3":
        return None
    return Path(url.path) if url.scheme == "file" else usual


def key_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield the keys that were made for this deployment: name in a backup, file."""
    for prefix, folder in _key_folders(settings):
        for path in _files(folder):
            yield f"{prefix}/{path.relative_to(folder)}", path
    vapid = limits.pushes(settings).vapid_key_file
    if vapid.exists():
        yield "push/vapid.pem", vapid


def key_place(settings: Settings, name: str) -> Path:
    """Where a key of that name belongs."""
    if name == "push/vapid.pem":
        return limits.pushes(settings).vapid_key_file
    prefix, _, rest = name.partition("/")
    keys = key_folder(settings)
    usual = {"media-keys": keys / "media", "stream-keys": keys / "streams"}
    return (usual | dict(_key_folders(settings)))[prefix] / rest


def _key_folders(settings: Settings) -> list[tuple[str, Path]]:
    """Keys of media and of streams have folders of their own only where these are set."""
    folders = [("keys", key_folder(settings))]
    if settings.media.key_dir is not None:
        folders.append(("media-keys", settings.media.key_dir))
    if settings.stream.key_dir is not None:
        folders.append(("stream-keys", settings.stream.key_dir))
    return folders


def objects_of(folder: Path, medium: str) -> Iterator[tuple[str, Path]]:
    """Yield a medium's objects: key, file. Drafts of writes under way are none."""
    for path in _files(folder / medium):
        if not path.name.startswith(".") and "#" not in path.name:
            yield str(path.relative_to(folder)), path


def _files(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            if (path := Path(where) / name).is_file() and not path.is_symlink():
                yield path
