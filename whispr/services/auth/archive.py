"""The archive of a data export: one zip, in it one file of JSON lines for each service.

Each line is `{"kind": …, "data": {…}}`: one thing the service holds about the person, in its own words. `about.json`
says whose it is, when it was made, and how many records each service gave. Records arrive one by one and are
compressed as they come, in a worker thread: memory holds one batch, whatever the size of the archive.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import IO

import msgspec
import structlog
import trio

from whispr.errors import WhisprError, exhausted
from whispr.services.auth.neighbours import Neighbours
from whispr.v1 import common_pb2

BATCH_BYTES = 256 * 1024
ARCHIVE_BYTES_MAX = 1024**3
SERVICE_S = 300.0
"""How long one service may take to give all it has."""

TOO_LARGE = "export_too_large"

log = structlog.get_logger("whispr.auth")


class IncompleteError(Exception):
    """Some services could not be asked; `services` names them, `reasons` says why."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.services = tuple(reasons)


@asynccontextmanager
async def collected(
    neighbours: Neighbours, user_id: str, username: str, *, bytes_max: int = ARCHIVE_BYTES_MAX
) -> AsyncIterator[IO[bytes]]:
    """Collect what every service holds about a person into a temporary file, gone when the block ends.

    All services are asked even when one has failed, so that all that are away are named. Raises IncompleteError,
    RESOURCE_EXHAUSTED (export_too_large).
    """
    with tempfile.TemporaryFile(prefix="whispr-export-") as file:
        archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        try:
            counts = await _all(archive, neighbours, user_id, file, bytes_max)
            about = {
                "user_id": user_id,
                "username": username,
                "made_at": datetime.now(UTC),
                "records": counts,
            }
            archive.writestr("about.json", msgspec.json.format(msgspec.json.encode(about)) + b"\n")
        finally:
            archive.close()
        yield file


async def _all(
    archive: zipfile.ZipFile, neighbours: Neighbours, user_id: str, file: IO[bytes], bytes_max: int
) -> dict[str, int]:
    """Ask every service; return how many records each gave. Raises IncompleteError."""
    failed: dict[str, str] = {}
    counts: dict[str, int] = {}
    for service in neighbours.services:
        try:
            with trio.fail_after(SERVICE_S):
                counts[service] = await _one(archive, neighbours, service, user_id, file, bytes_max)
        except WhisprError as error:
            if error.reason == TOO_LARGE:
                raise
            failed[service] = error.message
        except trio.TooSlowError:
            failed[service] = f"no end within {SERVICE_S:g} s"
        except msgspec.DecodeError as error:
            log.error("export_unreadable", service=service, error=str(error))
            failed[service] = "sent a record that is not JSON"
    if failed:
        raise IncompleteError(failed)
    return counts


async def _one(
    archive: zipfile.ZipFile,
    neighbours: Neighbours,
    service: str,
    user_id: str,
    file: IO[bytes],
    bytes_max: int,
) -> int:
    """Write one service's file; return how many records it has."""
    count, batch, size = 0, [], 0
    with archive.open(f"{service}.jsonl", "w", force_zip64=True) as member:
        async with neighbours.records(service, user_id) as records:
            async for record in records:
                line = _line(record)
                batch.append(line)
                size += len(line)
                count += 1
                if size >= BATCH_BYTES:
                    await _write(member, batch)
                    batch, size = [], 0
                    if file.tell() > bytes_max:
                        raise exhausted(f"the archive is over {bytes_max} bytes", reason=TOO_LARGE)
        await _write(member, batch)
    return count


async def _write(member: IO[bytes], batch: list[bytes]) -> None:
    await trio.to_thread.run_sync(member.write, b"".join(batch))


def _line(record: common_pb2.DataRecord) -> bytes:
    """Put a record on one line. Raises msgspec.DecodeError when it is not JSON."""
    data = msgspec.json.format(record.json, indent=-1)
    return b'{"kind":%b,"data":%b}\n' % (msgspec.json.encode(record.kind), data)
