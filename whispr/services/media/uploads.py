"""Receives the bytes of uploads: into the object store a part at a time, in step with the client.

While a part is on its way to the store the next one is received; when that is full, too, nothing more is read
from the client, and the network holds it back. A part counts once the database has it. Whatever breaks before
loses those two parts at most, and the next HEAD tells the client where to go on, in whichever process it arrives.
A connection that breaks, and a request that is cancelled, still have the parts they were in written, within
`SAVE_S`.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from whispr.adapters.objects import Objects
from whispr.errors import Code, WhisprError, unavailable
from whispr.nurseries import ungrouped
from whispr.services.media import metrics
from whispr.services.media.domain import PART_BYTES, MediaLimits, Medium
from whispr.services.media.store import MediaStore, Part
from whispr.services.media.tus import CHECKSUM_MISMATCH, Checksum, TusFault

SAVE_S: Final = 5.0
"""How long a part may take to be written when its client has gone."""
BUSY_RETRY_S: Final = 2.0


class Uploads:
    """Takes bytes for one process."""

    def __init__(
        self, store: MediaStore, objects: Objects, limits: MediaLimits, *, part_bytes: int = PART_BYTES
    ) -> None:
        self._store = store
        self._objects = objects
        self._limits = limits
        self._part_bytes = part_bytes
        self._streams: Counter[str] = Counter()

    async def append(
        self, medium: Medium, offset: int, body: AsyncIterator[bytes], checksum: Checksum | None
    ) -> int:
        """Append to an upload what a request brings; return how much there is then.

        With a checksum all of it counts, or nothing. Raises TusFault 409, 413, 460, and UNAVAILABLE.
        """
        if offset != medium.received_bytes:
            raise _conflict(medium.received_bytes)
        with self._one_of(medium.id):
            return await self._received(_Receiving(self, medium, offset, checksum), body)

    async def replace(self, medium: Medium, body: AsyncIterator[bytes]) -> int:
        """Take an upload whole from one request, whatever was received before; return its size.

        Raises TusFault 400 when there is less than was announced, 413 when there is more, UNAVAILABLE.
        """
        with self._one_of(medium.id):
            await self.discard(await self._store.restart(medium.id))
            return await self._received(_Receiving(self, medium, 0, None, whole=True), body)

    async def _received(self, receiving: _Receiving, body: AsyncIterator[bytes]) -> int:
        try:
            with ungrouped():
                async with trio.open_nursery() as nursery:
                    async for piece in body:
                        await receiving.take(piece, nursery)
            return await receiving.finish()
        except BaseException:
            await receiving.wind_up()
            raise

    @contextmanager
    def _one_of(self, media_id: str) -> Iterator[None]:
        """Count the request among those that are served. Raises UNAVAILABLE when there are enough of them."""
        limits = self._limits
        if limits.streams and self._streams.total() >= limits.streams:
            raise unavailable("there are too many uploads going on", BUSY_RETRY_S)
        if limits.streams_per_upload and self._streams[media_id] >= limits.streams_per_upload:
            raise unavailable("this upload is being sent already", BUSY_RETRY_S)
        self._streams[media_id] += 1
        try:
            with metrics.UPLOADING.track_inprogress():
                yield
        finally:
            self._streams[media_id] -= 1
            if not self._streams[media_id]:
                del self._streams[media_id]

    async def put(self, medium: Medium, start: int, data: bytes) -> Part:
        """Write a part under a key of its own: of two requests with the same bytes, either's may be kept."""
        key = f"{medium.id}/parts/{start:012d}-{secrets.token_hex(8)}"
        await self._objects.put(key, data)
        metrics.RECEIVED.inc(len(data))
        return Part(start, len(data), key)

    async def enter(self, medium: Medium, start: int, parts: list[Part]) -> None:
        """Have written parts count. Raises TusFault 409 if they do not continue the upload any more."""
        received = await self._store.receive(medium.id, start, parts)
        if received is not None:
            return
        await self.discard(parts)
        now = await self._store.get(medium.id)
        if now is None:
            raise TusFault(404, "not_found", "the upload is gone")
        if now.received_bytes == start and start + sum(part.bytes for part in parts) <= now.declared_bytes:
            raise TusFault(413, "too_many_parts", "send more bytes in each request")
        raise _conflict(now.received_bytes)

    async def discard(self, parts: list[Part]) -> None:
        """Delete parts that do not count; what cannot be deleted now goes with the upload."""
        try:
            await self._objects.delete([part.key for part in parts])
        except WhisprError as error:
            if error.code is not Code.UNAVAILABLE:
                raise

    @property
    def part_bytes(self) -> int:
        """How large a part is."""
        return self._part_bytes


class _Receiving:
    """One request's bytes on their way."""

    def __init__(
        self, uploads: Uploads, medium: Medium, offset: int, checksum: Checksum | None, *, whole: bool = False
    ) -> None:
        """`whole`: the request brings all there is, or nothing counts."""
        self._uploads = uploads
        self._medium = medium
        self._offset = offset
        """Up to where it counts."""
        self._end = offset
        """Up to where bytes have come."""
        self._written: list[Part] = []
        """What is written and does not count yet."""
        self._writing = b""
        """A part on its way to the store."""
        self._idle = trio.Event()
        """Set while no part is on its way."""
        self._idle.set()
        self._pieces: list[bytes] = []
        self._size = 0
        self._checksum = checksum
        self._hasher: Any = checksum.hasher() if checksum is not None else None
        self._atomic = whole or checksum is not None
        self._whole = whole

    async def take(self, piece: bytes, nursery: trio.Nursery) -> None:
        """Take some bytes. A full part is written meanwhile; while two are there, this waits. Raises TusFault 413."""
        announced = self._medium.declared_bytes
        if self._end + len(piece) > announced:
            raise TusFault(413, "too_large", f"the upload was announced with {announced} bytes")
        if self._hasher is not None:
            self._hasher.update(piece)
        self._pieces.append(piece)
        self._size += len(piece)
        self._end += len(piece)
        if self._size >= self._uploads.part_bytes:
            await self._idle.wait()
            self._hand_over()
            nursery.start_soon(self._write)

    def _hand_over(self) -> None:
        """Make a part of the bytes at hand."""
        self._writing, self._pieces, self._size = b"".join(self._pieces), [], 0
        self._idle = trio.Event()

    async def _write(self) -> None:
        """Write a part, and have it count unless it is to count with all others only."""
        start = self._end - self._size - len(self._writing)
        self._written.append(await self._uploads.put(self._medium, start, self._writing))
        self._writing = b""
        if not self._atomic:
            await self._enter()
        self._idle.set()

    async def _enter(self) -> None:
        parts, self._written = self._written, []
        if parts:
            await self._uploads.enter(self._medium, self._offset, parts)
            self._offset += sum(part.bytes for part in parts)

    async def _write_rest(self) -> None:
        if self._size:
            self._hand_over()
            await self._write()

    async def finish(self) -> int:
        """Write and count the rest; return how much there is. Raises TusFault 400, 409, 460."""
        await self._write_rest()
        if self._checksum is not None and self._hasher.digest() != self._checksum.digest:
            raise TusFault(
                CHECKSUM_MISMATCH, "checksum_mismatch", "the bytes do not add up to Upload-Checksum"
            )
        if self._whole and self._end != self._medium.declared_bytes:
            expected = self._medium.declared_bytes
            raise TusFault(400, "wrong_size", f"there were {self._end} bytes, and {expected} were announced")
        await self._enter()
        return self._offset

    async def wind_up(self) -> None:
        """Keep what has come of a request that ends early, or undo it where all counts or nothing.

        Within bounds: what cannot be kept comes again, what cannot be deleted goes with the upload.
        """
        with trio.move_on_after(SAVE_S, shield=True):
            try:
                if self._atomic:
                    await self._uploads.discard(self._written)
                    return
                if self._writing:
                    await self._write()
                await self._write_rest()
            except (WhisprError, TusFault):
                return


def _conflict(received: int) -> TusFault:
    return TusFault(409, "wrong_offset", f"the upload goes on at {received}")
