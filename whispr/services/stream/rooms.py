"""The chat room that goes with a stream: a room of ChatService, made and closed for its streamer.

Whoever listens finds its id in the stream and joins it as any room. Of a private stream it is hidden, and who may
listen is invited when they join the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError
from whispr.events import Consumer, Event
from whispr.services.stream.domain import Stream, Visibility
from whispr.v1 import chat_pb2
from whispr.v1.chat_grpc import ChatServiceStub

CALL_S: Final = 5.0
NAME_CHARS: Final = 100
"""Of a room's name, at most."""

Metadata = Callable[[str], Sequence[tuple[str, str]]]
"""Makes the metadata of a call on behalf of a person."""

log = structlog.get_logger("whispr.stream")


class StreamRooms:
    """Asks ChatService."""

    def __init__(self, db: Postgres, chat: Callable[[], ChatServiceStub], acting_for: Metadata) -> None:
        self._db = db
        self._chat = chat
        self._acting_for = acting_for

    @property
    def consumer(self) -> Consumer:
        """Closes rooms of streams that have ended, however long ChatService is away."""
        return Consumer("stream-rooms", ("stream.events.stream_stopped",), self._stopped)

    async def ensure(self, stream: Stream) -> str:
        """Return the room of a stream, made if there is none; empty when ChatService does not make one now."""
        if stream.room_id:
            await trio.lowlevel.checkpoint()
            return stream.room_id
        try:
            with trio.fail_after(CALL_S):
                room_id = await self._make(stream)
        except (WhisprError, trio.TooSlowError) as error:
            log.warning("room_not_made", stream_id=stream.id, error=str(error) or "no answer")
            return ""
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
            with trio.fail_after(CALL_S):
                await self._chat().InviteUser(request, metadata=self._acting_for(stream.streamer_id))
        except (WhisprError, trio.TooSlowError) as error:
            log.info("not_invited_to_room", stream_id=stream.id, error=str(error) or "no answer")

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
            with trio.fail_after(CALL_S):
                await self._chat().CloseRoom(
                    chat_pb2.CloseRoomRequest(room_id=room_id), metadata=self._acting_for(streamer_id)
                )
        except WhisprError as error:
            if error.code not in (Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION):
                raise
