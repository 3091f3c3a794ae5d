"""A file as the answer to a request: all of it, a range, or that it has not changed; by sendfile(2).

async def recording(scope, receive, send):
await answer_file(scope, send, folder / name, "audio/ogg")
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import trio
from starlette.datastructures import Headers as GivenHeaders
from starlette.types import Scope, Send

from whispr.asgi.conditions import Plan, http_date, plan

Headers = Iterable[tuple[bytes, bytes]]


async def answer_file(
    scope: Scope, send: Send, path: str | os.PathLike[str], media_type: str, headers: Headers = ()
) -> None:
    """Answer a GET or HEAD with a file, one range of it, or 304, 412, 416 (RFC 9110, sections 13 and 14).

    A file that is replaced, rather than written to, is sent as it was; its tag is of its inode, size and time.
    Raises OSError when it cannot be opened or is no regular file, before anything is sent.
    """
    opened = await trio.to_thread.run_sync(_open, path)
    with opened:
        status = os.fstat(opened.fileno())
        etag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        given = GivenHeaders(scope=scope)
        asked = plan(given, etag, modified, status.st_size)
        said = [
            (b"accept-ranges", b"bytes"),
            (b"etag", etag.encode()),
            (b"last-modified", http_date(modified).encode()),
            *headers,
            *_of_plan(asked, status.st_size, media_type),
        ]
        await send({"type": "http.response.start", "status": asked.status, "headers": said})
        if asked.status in (200, 206):
            size = asked.end - asked.start
            await send(
                {"type": "http.response.zerocopysend", "file": opened, "offset": asked.start, "count": size}
            )
        else:
            await send({"type": "http.response.body", "body": b""})


def _of_plan(asked: Plan, size: int, media_type: str) -> Headers:
    if asked.status == 416:
        yield b"content-range", b"bytes */%d" % size
    if asked.status == 206:
        yield b"content-range", b"bytes %d-%d/%d" % (asked.start, asked.end - 1, size)
    if asked.status in (200, 206):
        yield b"content-type", media_type.encode()
        yield b"content-length", b"%d" % (asked.end - asked.start)


def _open(path: str | os.PathLike[str]) -> Any:
    """Open without waiting for a pipe's other end, which a regular file does not have."""
    opened = open(path, "rb", buffering=0, opener=_opener)  # noqa: SIM115  # the caller closes it
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise IsADirectoryError(f"not a regular file: {os.fspath(path)}")
    return opened


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
