"""The stream service: its parts, put together."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Scope

from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.objects import Objects
from whispr.adapters.postgres import Postgres
from whispr.adapters.signing import Signer, ensure_keys
from whispr.asgi.errors import HttpError
from whispr.errors import Code, WhisprError
from whispr.events import Consumer
from whispr.identity import Identity
from whispr.ids import is_id, parse_id
from whispr.realtime.channel import ChannelFactory
from whispr.services.stream.access import Access
from whispr.services.stream.analytics import Analytics
from whispr.services.stream.audience import Audience
from whispr.services.stream.channel import Members
from whispr.services.stream.control import Announce, Control
from whispr.services.stream.domain import StreamLimits
from whispr.services.stream.engine.icecast import PATH as INGEST_PATH
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import EngineOptions
from whispr.services.stream.engine.recording.download import PATH as RECORDING_PATH
from whispr.services.stream.engine.relay.everywhere import Everywhere
from whispr.services.stream.engine.service import Engine, EngineSetup
from whispr.services.stream.geography import countries_in
from whispr.services.stream.ledger import Ledger
from whispr.services.stream.listening.about import PATH as ABOUT_PATH
from whispr.services.stream.listening.about import About
from whispr.services.stream.listening.hls import PATH as HLS_PATH
from whispr.services.stream.listening.hls import HlsOrigin
from whispr.services.stream.listening.progressive import PATH as LISTEN_PATH
from whispr.services.stream.listening.progressive import Progressive
from whispr.services.stream.listening.recorded import PATH as RECORDED_HLS_PATH
from whispr.services.stream.listening.recorded import RecordedHls
from whispr.services.stream.listening.shelves import Shelves
from whispr.services.stream.livestate import LiveState
from whispr.services.stream.notices import Notices
from whispr.services.stream.on_listening import ListeningHandlers
from whispr.services.stream.on_streams import StreamHandlers
from whispr.services.stream.parts import Limiter, Parts
from whispr.services.stream.personal import PersonalData
from whispr.services.stream.playing import Playing
from whispr.services.stream.recordings import Changed, Recordings
from whispr.services.stream.rooms import Metadata, StreamRooms
from whispr.services.stream.steward import Steward
from whispr.services.stream.store import StreamStore
from whispr.services.stream.subscriptions import Subscriptions
from whispr.services.stream.urls import ListenUrls
from whispr.services.stream.webrtc.service import PATH as WEBRTC_PATH
from whispr.services.stream.webrtc.service import WebRtc, WebRtcSetup
from whispr.v1 import common_pb2
from whispr.v1.chat_grpc import ChatServiceStub
from whispr.v1.stream_grpc import StreamServiceServicer

__all__ = ["MIGRATIONS", "StreamOptions", "StreamService"]

MIGRATIONS: Final = Path(__file__).parent / "migrations"
"""The SQL files of the schema `streams`; they run after those of auth."""
RETENTION_S: Final = 600.0
EXPIRED_AT_ONCE: Final = 100
SOUND_AGAIN_S: Final = 2
"""After which who came before the sound may ask again."""

log = structlog.get_logger("whispr.stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What an operator may choose."""

    key_folder: Path
    """Keys that sign listening URLs; shared by all processes that serve the same streams."""
    work_folder: Path
    """Recordings that are not stored yet."""
    countries_file: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    webrtc: WebRtcSetup = field(default_factory=WebRtcSetup)
    hls_shared_files: bool = False
    """Whether HLS files of streams that anybody may hear have one URL for all."""
    idle_s: float = 3600.0
    """How long a stream lasts that nothing is sent to; 0 for ever."""
    limits: StreamLimits = field(default_factory=StreamLimits)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the service needs of the process."""

    identity: Identity
    limiter: Limiter
    announce: Announce
    """Broadcasts an event on a topic to the sockets of every node."""
    base_url: Callable[[], str]
    """Where clients reach this process's gateway."""
    chat: Callable[[], ChatServiceStub]
    acting_for: Metadata
    address_of: Callable[[Scope, Headers], str]
    """Tells the address of an HTTP client, past the proxies that are trusted."""


@dataclass(frozen=True, slots=True)
class ByteEndpoint:
    """What is served over HTTP under one pattern of paths; it looks after pages of other origins itself."""

    name: str
    path: re.Pattern[str]
    app: ASGIApp


class StreamServicer(StreamHandlers, ListeningHandlers, StreamServiceServicer):
    """StreamService's RPCs: the protos ⇄ what acts on streams. The actor is the verified caller, never a field."""

    def __init__(self, parts: Parts, personal: PersonalData, db: Postgres) -> None:
        super().__init__()
        self._parts = parts
        self._personal = personal
        self._db = db

    async def ExportUserData(
        self, input_message: common_pb2.ExportUserDataRequest
    ) -> AsyncIterator[common_pb2.DataRecord]:
        """Yield everything held about a person."""
        user_id = parse_id(input_message.user_id, "user_id")
        async with aclosing(self._personal.export(user_id)) as records:
            async for kind, packed in records:
                yield common_pb2.DataRecord(source="stream", kind=kind, json=packed)


class StreamService:
    """StreamService of one process: its RPCs, its topics, and who listens here."""

    def __init__(
        self,
        db: Postgres,
        cache: Cache,
        bus: Bus,
        objects: Objects,
        around: Surroundings,
        options: StreamOptions,
    ) -> None:
        """`objects` is where recordings are stored. Raises FAILED_PRECONDITION (keys_unusable, bad_setting)."""
        limits = options.limits
        self.node = secrets.token_hex(8)
        """What this process is called where other nodes read it."""
        self.notices = Notices(bus)
        self.live_state = LiveState(cache)
        self.store = StreamStore(db, limits)
        self.urls = ListenUrls(Signer(ensure_keys(options.key_folder)))
        self.access = Access(self.store, around.identity)
        self._ledger = Ledger(db)
        self.analytics = Analytics(db, self.live_state, self._ledger)
        self.recordings = Recordings(db, keep_s=limits.recording_days * 86_400.0, on_changed=self._recorded)
        self.control = Control(db, self.recordings, self.notices, around.announce)
        self.audience = Audience(
            self.store, self.live_state, self._ledger, self.notices, around.identity, self.urls,
            limits=limits, country_of=countries_in(options.countries_file), on_count=self._counted,
        )  # fmt: skip
        self.steward = Steward(
            self.node, self.store, self.control, self.recordings, self.live_state, self.notices, around.announce,
            idle_s=options.idle_s,
        )  # fmt: skip
        playing = Playing(self.store, self.control)
        self._engine = Engine(
            EngineSetup(recording_folder=options.work_folder, options=options.engine), objects, self.access,
            playing, self.recordings, self.urls, self.steward,
        )  # fmt: skip
        self.lives = self._engine.lives
        self.everywhere = Everywhere(self.lives, bus, self._made_somewhere)
        self.lives.elsewhere = self.everywhere
        self._recorded_hls = RecordedHls(self.recordings, self.urls, objects, options.work_folder)
        self.steward.attend(self.lives, self._engine.recorder)
        self.audience.brings = self._bring
        self.webrtc_port = 0
        """UDP, once it runs."""
        self._shelves = Shelves(self.find)
        self._hls = HlsOrigin(
            self._shelves,
            self.audience,
            self.access.describe,
            around.address_of,
            anonymous=limits.anonymous,
            shared_files=options.hls_shared_files,
        )
        self._progressive = Progressive(self.find, self.audience, around.address_of, self.audience.metadata)
        self._about = About(self.audience, self.live_state)
        self._webrtc = WebRtc(
            self.lives, self.access, self.audience, options.webrtc, around.address_of, bus
        )  # fmt: skip
        self.subscriptions = Subscriptions(
            self.notices, queue_len_max=limits.event_queue, per_user=limits.subscriptions
        )
        around.identity.on_revoked(self.subscriptions.session_ended)
        self._members = Members(
            self.store,
            self.audience,
            self.control,
            self.live_state,
            self.notices,
            self.lives,
            self.access,
            self.find,
        )
        self.channels: Mapping[str, ChannelFactory] = {"stream": self._members.channel}
        rooms = StreamRooms(db, self.store, around.chat, around.acting_for)
        personal = PersonalData(db, self.control, self.notices)
        self.consumers: Sequence[Consumer] = (rooms.consumer, personal.consumer)
        parts = Parts(
            store=self.store, control=self.control, recordings=self.recordings, live_state=self.live_state,
            notices=self.notices, analytics=self.analytics, subscriptions=self.subscriptions, rooms=rooms,
            urls=self.urls, discard=self._engine.recorder.discard, limiter=around.limiter, limits=limits,
            base_url=around.base_url,
        )  # fmt: skip
        self.servicer = StreamServicer(parts, personal, db)

    @property
    def endpoints(self) -> Sequence[ByteEndpoint]:
        """What is served over HTTP, past the API."""
        return (
            ByteEndpoint("hls", HLS_PATH, self._hls),
            ByteEndpoint("webrtc", WEBRTC_PATH, self._webrtc.endpoints),
            ByteEndpoint("listen", LISTEN_PATH, self._progressive),
            ByteEndpoint("about", ABOUT_PATH, self._about),
            ByteEndpoint("ingest", INGEST_PATH, self._engine.icecast),
            ByteEndpoint("recordings", RECORDING_PATH, self._engine.download),
            ByteEndpoint("recordings_hls", RECORDED_HLS_PATH, self._recorded_hls),
        )

    async def find(self, stream_id: str) -> Live | None:
        """Find the sound of a stream, here or on another node; None when nothing is sent to it."""
        return await self.everywhere.find(stream_id)

    async def _made_somewhere(self, stream_id: str) -> bool:
        """Tell whether a node has shown lately that it makes a stream; True, too, when nobody can tell."""
        if not is_id(stream_id):
            await trio.lowlevel.checkpoint()
            return False
        try:
            return await self.live_state.picture(stream_id) is not None
        except WhisprError:
            return True

    async def _bring(self, stream_id: str) -> None:
        """Have the sound of a stream here, for somebody who may hear it. Raises FAILED_PRECONDITION (no_source)."""
        if await self.find(stream_id) is None:
            again = {"retry-after": str(SOUND_AGAIN_S)}
            message = "nothing is sent to the stream now"
            raise HttpError(409, Code.FAILED_PRECONDITION, message, "no_source", again)

    def drain(self) -> None:
        """End what never ends by itself."""
        self.subscriptions.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep count, look after streams and let old recordings go, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.notices.run)
            await nursery.start(self._engine.run)
            await nursery.start(self.everywhere.run)
            await nursery.start(self._shelves.run)
            self.webrtc_port = await nursery.start(self._webrtc.run)
            nursery.start_soon(self._ledger.run)
            nursery.start_soon(self.audience.run)
            nursery.start_soon(self.analytics.run)
            nursery.start_soon(self.steward.run)
            nursery.start_soon(self._let_go_for_ever)
            task_status.started()

    async def _let_go_for_ever(self) -> None:
        while True:
            try:
                await self.let_go()
            except WhisprError as error:
                log.warning("recordings_not_let_go", error=str(error))
            await trio.sleep(RETENTION_S)

    async def let_go(self) -> None:
        """Delete the recordings whose time is over. Raises UNAVAILABLE."""
        while expired := await self.recordings.expired(EXPIRED_AT_ONCE):
            for recording in expired:
                await self.recordings.delete(recording.id)
                await self._engine.recorder.discard(recording)
                log.info("recording_expired", recording_id=recording.id)

    def _counted(self, stream_id: str, count: int) -> None:
        self.control.tell(stream_id, "listener_count", {"count": count})

    def _recorded(self, changed: Changed) -> None:
        self.control.recording_changed(changed)
