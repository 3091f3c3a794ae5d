"""Objects in a folder or in S3, through obstore on the bridge.

Keys are paths of plain characters (`0190…/original`), chosen by us and never by a client. A write is atomic:
whoever reads a key finds all of an object or none. In a folder it is also on the disk when the call returns,
as far as the operating system can promise; in S3 that is the service's promise.

Time is the caller's: a cancelled call cancels the request behind it. Short faults of an S3 service are obstore's to
retry, part by part, for `RETRY_S`; after that UNAVAILABLE is raised, and a service that keeps failing is left alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import obstore
import trio
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from whispr.bridge import Bridge
from whispr.errors import WhisprError, conflict, unavailable
from whispr.resilience.retry import RetryRules
from whispr.resilience.target import CallRules, Target

CHUNK_BYTES: Final = 256 * 1024
S3_CHUNK_BYTES: Final = 1024 * 1024
"""How much of an object is read at a time, and so held for each slow reader."""
S3_PART_BYTES: Final = 8 * 1024 * 1024
"""The parts of a large object on its way to S3."""
S3_PARTS_AT_ONCE: Final = 4
COPY_BYTES: Final = 4 * 1024 * 1024
RETRY_S: Final = 20
CONNECT_S: Final = 5
READ_GAP_S: Final = 15
DELETE_AT_ONCE: Final = 500

T = TypeVar("T")

_REQUEST = CallRules(deadline_s=inf, retry=RetryRules(attempts=1))
"""Large objects take as long as they take, and obstore tries again by itself."""


class MissingObjectError(WhisprError):
    """The object is not there."""

    by_peer = True

    def __init__(self, key: str) -> None:
        error = unavailable(f"an object is not in the store: {key}")
        super().__init__(error.code, error.message, error.details)
        self.key = key


@dataclass(frozen=True, slots=True)
class S3Options:
    """What an S3 service is reached with. Credentials come the usual ways (`AWS_…` variables, instance roles)."""

    endpoint: str = ""
    """Of a service that is not Amazon's, such as `http://127.0.0.1:9000`."""
    region: str = "us-east-1"


class Objects:
    """One store. Made by `objects_at`. All methods raise UNAVAILABLE when the store is away."""

    def __init__(
        self, bridge: Bridge, store: LocalStore | S3Store, root: Path | None, target: Target | None = None
    ) -> None:
        """`target` is what requests go through; a folder needs none."""
        self._target = target
        self._bridge = bridge
        self._store = store
        self._root = root

    def path_of(self, key: str) -> Path | None:
        """Return the file that holds an object, if it lies in a folder; it need not exist."""
        return None if self._root is None else self._root / key

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object; one of the same key is replaced."""
        await self._call(key, lambda: obstore.put_async(self._store, key, data, use_multipart=False))
        await self._to_disk(key)

    async def put_file(self, key: str, path: Path) -> None:
        """Write an object of any size from a file, in parts where that is better.

        Into a folder of the same file system it is linked rather than copied: nobody may write to it any more.
        """
        if (target := self.path_of(key)) is not None and await trio.to_thread.run_sync(_link, path, target):
            return

        def put() -> Awaitable[Any]:
            return obstore.put_async(
                self._store, key, path, chunk_size=S3_PART_BYTES, max_concurrency=S3_PARTS_AT_ONCE
            )

        await self._call(key, put)
        await self._to_disk(key)

    async def read(
        self, key: str, start: int = 0, end: int | None = None, chunk_bytes: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """Yield an object's bytes from `start` up to `end`, or to its end, as they are taken.

        Each piece is a request of its own, so a slow reader keeps nothing open. Raises MissingObjectError.
        """
        size = chunk_bytes or (S3_CHUNK_BYTES if self._root is None else CHUNK_BYTES)
        if end is None:
            end = (await self._call(key, lambda: obstore.head_async(self._store, key)))["size"]
        while start < end:
            until = min(end, start + size)
            yield await self._read(key, start, until)
            start = until

    async def _read(self, key: str, start: int, end: int) -> bytes:
        async def get() -> bytes:
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))

        return await self._call(key, get)

    async def copy_into(self, key: str, size: int, descriptor: int) -> int:
        """Append the first `size` bytes of an object to an open file; return how many there were.

        Raises MissingObjectError.
        """
        if (path := self.path_of(key)) is not None:
            try:
                return await trio.to_thread.run_sync(_copy, path, size, descriptor)
            except FileNotFoundError:
                raise MissingObjectError(key) from None
        copied = 0
        async for piece in self.read(key, 0, size, COPY_BYTES):
            copied += await trio.to_thread.run_sync(_write, descriptor, piece)
        return copied

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""
        if self._root is None:
            for at in range(0, len(keys), DELETE_AT_ONCE):
                some = list(keys[at : at + DELETE_AT_ONCE])
                await self._call("", lambda some=some: obstore.delete_async(self._store, some))  # type: ignore[misc]  # bound now
            return
        for key in keys:
            try:
                await self._call(key, lambda key=key: obstore.delete_async(self._store, key))  # type: ignore[misc]  # bound now
            except MissingObjectError:
                continue

    async def delete_under(self, folder: str) -> int:
        """Delete every object whose key begins with `folder` and a slash; return how many there were."""
        keys = [found async for found in self.list(folder)]
        await self.delete(keys)
        return len(keys)

    async def list(self, folder: str) -> AsyncGenerator[str, None]:
        """Yield the keys that begin with `folder` and a slash."""
        pages = obstore.list(self._store, folder, chunk_size=1000)
        while (page := await self._call(folder, lambda: _next(pages))) is not None:
            for found in page:
                yield found["path"]

    async def _call(self, key: str, start: Callable[[], Awaitable[T]]) -> T:
        if self._target is None:
            return await self._call_once(key, start)
        return await self._target.run(lambda: self._call_once(key, start), _REQUEST)

    async def _call_once(self, key: str, start: Callable[[], Awaitable[T]]) -> T:
        """Await what obstore does, on the bridge: its awaitables belong to the asyncio loop they were made in."""

        async def run() -> T:
            return await start()

        try:
            return await self._bridge.call(run)
        except FileNotFoundError:
            raise MissingObjectError(key) from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            # Its messages go on for lines, with the request's address and the whole answer.
            said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise unavailable(f"the object store failed: {said}") from error

    async def _to_disk(self, key: str) -> None:
        if (path := self.path_of(key)) is not None:
            await trio.to_thread.run_sync(_fsync, path)


async def _next(pages: Any) -> Any:
    """Return the next page; None at the end."""
    try:
        return await anext(pages)
    except StopAsyncIteration:
        return None


def _link(source: Path, target: Path) -> bool:
    """Have a file at another place, too, and on the disk; False when that is in another file system."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    try:
        os.link(source, draft)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise unavailable(f"the object store failed: {error.strerror}") from error
    os.replace(draft, target)
    _fsync(target)
    return True


def _copy(path: Path, size: int, descriptor: int) -> int:
    """Append the beginning of a file to an open one, without its bytes passing through us (sendfile(2))."""
    copied = 0
    with path.open("rb") as source:
        while copied < size:
            count = os.sendfile(descriptor, source.fileno(), copied, size - copied)
            if not count:
                break
            copied += count
    return copied


def _write(descriptor: int, data: bytes) -> int:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return len(data)


def _fsync(path: Path) -> None:
    """Have a file and its name in the folder written out."""
    for each, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(each, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def objects_at(
    bridge: Bridge,
    url: str,
    folder: Path,
    s3: S3Options | None = None,
    target: Target | None = None,
    *,
    setting: str = "WHISPR_MEDIA_STORE_URL",
) -> Objects:
    """Return the store at `url`: `s3://bucket/prefix`, `file:///folder`, or `folder` when it is empty.

    Nothing is asked of it yet; requests to S3 go through `target`.
    Raises FAILED_PRECONDITION (bad_setting) for any other URL, naming the `setting`, and for a folder that cannot be.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return Objects(bridge, _s3(parts.netloc, parts.path.strip("/"), s3 or S3Options()), None, target)
    if parts.scheme == "file" and parts.path not in ("", "/") and not parts.netloc:
        folder = Path(parts.path)
    elif url:
        raise conflict(f"{setting}: {url!r} is neither s3://bucket/prefix nor file:///folder", "bad_setting")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise conflict(f"{setting}: cannot make {folder}: {error.strerror}", "bad_setting") from error
    root = folder.resolve()
    # Empty folders go with their last object. A folder that vanishes under a write is made again by the write.
    return Objects(bridge, LocalStore(root, automatic_cleanup=True), root)


def _s3(bucket: str, prefix: str, options: S3Options) -> S3Store:
    config: Any = {"region": options.region}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        client_options={
            "allow_http": options.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=READ_GAP_S),
            # The whole request, by default 30 s, which a slow reader of a large object would need more than.
            "timeout": timedelta(hours=1),
        },
        retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=RETRY_S)},
    )
