"""What a stream plays, as its source says it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from whispr.errors import WhisprError
from whispr.services.stream.control import Changes, Control
from whispr.services.stream.domain import METADATA_CHARS_MAX
from whispr.services.stream.store import StreamStore

_FIELDS = {"title": "current_track", "artist": "artist", "album": "album", "genre": "genre"}
"""What sources say, and what it is called here."""


class Playing:
    """Keeps a stream's metadata as its source says it; what a source does not say of a track is nothing any more."""

    def __init__(self, store: StreamStore, control: Control) -> None:
        self._store = store
        self._control = control

    async def describe(self, stream_id: str, facts: Mapping[str, str]) -> None:
        """Take what is played now. Raises NOT_FOUND; of a stream that has ended nothing is changed."""
        stream = await self._store.find(stream_id)
        # PostgreSQL keeps no NUL, and tags of files have them.
        said = {
            ours: facts.get(theirs, "").replace("\0", "")[:METADATA_CHARS_MAX]
            for theirs, ours in _FIELDS.items()
        }
        metadata = msgspec.structs.replace(stream.metadata, **said)
        if metadata == stream.metadata or stream.ended_at is not None:
            return
        try:
            await self._control.update(stream_id, stream.streamer_id, Changes(metadata=metadata))
        except WhisprError as error:
            if error.reason != "stream_ended":
                raise
