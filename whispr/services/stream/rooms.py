"""The chat room that goes with a stream: a room of ChatService, made and closed for its streamer.

Whoever listens finds its id in the stream and joins it as any room. Of a private stream it is hidden, and who may
listen is invited when they join the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError, unavailable
from whispr.events import Consumer, Event
from whispr.services.stream.domain import Stream, Visibility
from whispr.services.stream.store import StreamStore
from whispr.v1 import chat_pb2
from whispr.v1.chat_grpc import ChatServiceStub

CALL_S: Final = 5.0
ATTEMPTS_MAX: Final = 1000
"""To make or close a room: with a minute between two, most of a day."""
NAME_CHARS: Final = 100
"""Of a room's name, at most."""

Metadata = Callable[[str], Sequence[tuple[str, str]]]
"""Makes the metadata of a call on behalf of a person."""

log = structlog.get_logger("whispr.stream")


@contextmanager
def _answered() -> Iterator[None]:
    """Raise UNAVAILABLE when ChatService does not answer in `CALL_S`."""
    try:
        with trio.fail_after(CALL_S):
            yield
    except trio.TooSlowError:
        raise unavailable("ChatService does not answer") from None


class StreamRooms:
    """Asks ChatService."""

    def __init__(
        self, db: Postgres, store: StreamStore, chat: Callable[[], ChatServiceStub], acting_for: Metadata
    ) -> None:
        self._db = db
        self._store = store
        self._chat = chat
        self._acting_for = acting_for

    @property
    def consumer(self) -> Consumer:
        """Makes the rooms that streams lack, and closes those of streams that have ended.

        However long ChatService is away: an event that cannot be done with comes again.
        """
        kinds = ("stream.events.stream_started", "stream.events.stream_stopped")
        return Consumer("stream-rooms", kinds, self._changed, attempts_max=ATTEMPTS_MAX)

    async def ensure(self, stream: Stream) -> str:
        """Return the room of a stream, made if there is none; empty when ChatService does not make one now."""
        if stream.room_id:
            await trio.lowlevel.checkpoint()
            return stream.room_id
        try:
            return await self._made(stream)
        except WhisprError as error:
            log.warning("room_not_made", stream_id=stream.id, error=str(error))
            return ""

    async def _made(self, stream: Stream) -> str:
        """Make a room of a stream, unless somebody else does first; return the one there is then."""
        with _answered():
            room_id = await self._make(stream)
        kept = await self._db.fetchval(
            "UPDATE streams.streams SET room_id = coalesce(room_id, $2) WHERE id = $1 RETURNING room_id",
            stream.id, room_id,
        )  # fmt: skip
        if kept is not None and str(kept) != room_id:  # somebody else was first
            await self._close(room_id, stream.streamer_id)
        return str(kept or "")

    async def _make(self, stream: Stream) -> str:
        hidden = stream.visibility is Visibility.PRIVATE_STREAM
        premium = stream.visibility is Visibility.PREMIUM_ONLY
        request = chat_pb2.CreateRoomRequest(
            name=stream.title[:NAME_CHARS].strip(),
            type=chat_pb2.Room.PREMIUM if premium else chat_pb2.Room.PUBLIC,
            visibility=chat_pb2.Room.HIDDEN if hidden else chat_pb2.Room.OPEN,
        )
        reply = await self._chat().CreateRoom(request, metadata=self._acting_for(stream.streamer_id))
        return str(reply.room.id)

    async def let_in(self, stream: Stream, user_id: str) -> None:
        """Invite a listener of a private stream into its room, as far as ChatService is there."""
        invited = stream.visibility is Visibility.PRIVATE_STREAM and user_id != stream.streamer_id
        if not stream.room_id or not invited:
            await trio.lowlevel.checkpoint()
            return
        request = chat_pb2.InviteUserRequest(room_id=stream.room_id, user_id=user_id)
        try:
            with _answered():
                await self._chat().InviteUser(request, metadata=self._acting_for(stream.streamer_id))
        except WhisprError as error:
            log.info("not_invited_to_room", stream_id=stream.id, error=str(error))

    async def _changed(self, event: Event) -> None:
        if event.type == "stream_stopped":
            await self._stopped(event)
        else:
            await self._started(event)

    async def _started(self, event: Event) -> None:
        """Make the room that StartStream could not make."""
        try:
            stream = await self._store.find(event.subject)
        except WhisprError as error:
            if error.code is Code.NOT_FOUND:
                return
            raise
        if stream.config.enable_chat and not stream.room_id and stream.status.runs:
            await self._made(stream)

    async def _stopped(self, event: Event) -> None:
        room_id = str(event.data.get("room_id", ""))
        row = await self._db.fetchrow(
            "SELECT streamer_id, room_id FROM streams.streams WHERE id = $1", event.subject
        )
        room_id = room_id or (str(row["room_id"]) if row and row["room_id"] else "")
        if row is not None and room_id:
            await self._close(room_id, str(row["streamer_id"]))

    async def _close(self, room_id: str, streamer_id: str) -> None:
        try:
            with _answered():
                await self._chat().CloseRoom(
                    chat_pb2.CloseRoomRequest(room_id=room_id), metadata=self._acting_for(streamer_id)
                )
        except WhisprError as error:
            if error.code not in (Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION):
                raise
