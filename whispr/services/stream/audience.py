"""Who is listening: admission, and being put out.

    async with audience.listening(stream_id, shown_by(scope), Transport.WHEP, address, user_agent) as listener:
        ...     # cancelled, with the reason, within a second of their access ending; the block then just ends
    if listener.reason: ...

HLS listeners have no connection, but a session that lives while they poll:

    session = await audience.open_session(stream_id, shown_by(scope), address, user_agent)
    ... `session.token` in every URL ...
    listener = audience.seen(stream_id, token) or await audience.resume(stream_id, token, address, user_agent)

Access ends when the stream does, the listener is put out, their invitation is taken back, the sign-in they came with
is ended, or their signed URL expires. That an access token runs out ends nothing, as who listens has no way to show
another one: its sign-in is what counts. A service has none, so its token's time is its listening's. Processes tell
each other at once; and as that may be lost, each looks again every `RECHECK_S`. A listener counts against the
stream's limit over all nodes, in Redis; while that is away, each process counts its own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Final

import msgspec
import structlog
import trio

from whispr.audio.packets import Quality
from whispr.errors import WhisprError, not_found, unauthenticated
from whispr.identity import Identity
from whispr.ids import is_id, new_id
from whispr.services.stream import metrics
from whispr.services.stream.access import Shown
from whispr.services.stream.admission import Admission, mark_of
from whispr.services.stream.analytics import Counting
from whispr.services.stream.domain import (
    Metadata,
    Stream,
    StreamLimits,
    Viewer,
    may_not_know,
    may_not_listen,
    viewer_of,
)
from whispr.services.stream.ledger import Changing, Coming, Going, Ledger
from whispr.services.stream.listener import Listener, Transport, Wish
from whispr.services.stream.livestate import Facts, LiveState
from whispr.services.stream.notices import BARRED, PUT_OUT, RECONSIDER, WISH, Notice, Notices
from whispr.services.stream.places import HlsSession as HlsSession
from whispr.services.stream.places import Place
from whispr.services.stream.presenting import presented
from whispr.services.stream.store import Standing, StreamStore
from whispr.services.stream.urls import ListenUrls
from whispr.tokens import Claims

SESSION_S: Final = 6.0
"""Three target durations: an HLS listener who does not ask for longer has left."""
BEAT_S: Final = 5.0
"""How often Redis is told who listens here."""
SWEEP_S: Final = 1.0
RECHECK_S: Final = 30.0

log = structlog.get_logger("whispr.stream")


class Audience:
    """The listeners that this process serves."""

    def __init__(
        self,
        store: StreamStore,
        live: LiveState,
        ledger: Ledger,
        notices: Notices,
        identity: Identity,
        urls: ListenUrls,
        *,
        limits: StreamLimits,
        country_of: Callable[[str], str],
        on_count: Callable[[str, int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`country_of` knows addresses; `on_count` is told how many listen to a stream when that has changed."""
        self._store = store
        self._live = live
        self._ledger = ledger
        self._notices = notices
        self._identity = identity
        self._urls = urls
        self._limits = limits
        self._country_of = country_of
        self._on_count = on_count
        self._clock = clock
        self.brings: Callable[[str], Awaitable[object]] | None = None
        """Brings the sound of a stream here, for somebody who may hear it; raises when nothing is sent to it."""
        self._counting = Counting(live, clock)
        self._places: dict[str, Place] = {}
        self._by_stream: dict[str, dict[str, Place]] = {}
        self._admission = Admission(live, limits)
        self._sessions: dict[str, str] = {}
        """HLS token → listener id."""
        self._orders = 0
        """How often somebody's access has ended, or may have."""
        self._counts: dict[str, int] = {}
        self._doubtful: set[str] = set()
        """Streams whose listeners are to be checked again."""
        self._check_now = trio.Event()
        notices.on(self._heard)
        identity.on_revoked(self._session_ended)

    def __len__(self) -> int:
        return len(self._places)

    def of(self, stream_id: str) -> list[Listener]:
        """Return who listens to a stream here."""
        return [place.listener for place in self._of(stream_id)]

    def metadata(self, stream_id: str) -> Metadata | None:
        """Return what a stream with listeners here plays, as far as is known; None of others."""
        return next((place.listener.stream.metadata for place in self._of(stream_id)), None)

    async def regard(self, stream_id: str, shown: Shown) -> tuple[Stream, WhisprError | None]:
        """Return a stream that somebody may know of, and why they may not listen to it now, if they may not.

        Raises UNAUTHENTICATED, NOT_FOUND, PERMISSION_DENIED (bad_signature, url_expired).
        """
        if not is_id(stream_id):
            raise not_found("stream", stream_id)
        own = await presented(self._identity, self._urls, stream_id, shown)
        viewer, standing = (
            own.viewer,
            await self._store.standing(stream_id, own.viewer.user_id, own.session_id),
        )
        refused = may_not_know(standing.stream, viewer, invited=standing.invited)
        if refused is not None:
            raise refused
        return standing.stream, self._refused(standing, viewer)

    def _refused(self, standing: Standing, viewer: Viewer) -> WhisprError | None:
        """Return why somebody may not listen: their sign-in has ended, or as `may_not_listen`."""
        if standing.signed_out:
            return unauthenticated("the session has been ended", reason="session_revoked")
        return may_not_listen(
            standing.stream, viewer, invited=standing.invited, removed=standing.removed,
            anonymous=self._limits.anonymous,
        )  # fmt: skip

    # Coming

    @asynccontextmanager
    async def listening(
        self, stream_id: str, shown: Shown, transport: Transport, address: str, user_agent: str
    ) -> AsyncIterator[Listener]:
        """Admit a listener for the length of the block, which is cancelled when their access ends.

        Raises UNAUTHENTICATED, PERMISSION_DENIED (removed, premium_required, bad_signature, url_expired), NOT_FOUND
        (of a private stream too), FAILED_PRECONDITION (not_started, stream_ended, no_source), RESOURCE_EXHAUSTED
        (stream_full, too_many_listeners).
        """
        place = await self._admit(stream_id, shown, transport, address, user_agent)
        with self._served(place):
            yield place.listener

    @asynccontextmanager
    async def listening_as(
        self, stream_id: str, claims: Claims, transport: Transport, quality: Quality | None
    ) -> AsyncIterator[Listener]:
        """Admit somebody whose token has been verified already. As `listening`."""
        place = await self._enter(
            stream_id, viewer_of(claims), transport, "", "",
            wish=Wish(quality), session_id=claims.session_id, ends_at=0.0,
        )  # fmt: skip
        with self._served(place):
            yield place.listener

    @contextmanager
    def _served(self, place: Place) -> Iterator[None]:
        try:
            with trio.CancelScope() as scope:
                place.scope = scope
                if place.listener.ended.is_set():  # put out before they were served
                    scope.cancel(reason=place.listener.reason)
                yield
        finally:
            self._leave(place, "left")

    async def open_session(self, stream_id: str, shown: Shown, address: str, user_agent: str) -> HlsSession:
        """Admit an HLS listener. Raises as `listening`."""
        place = await self._admit(stream_id, shown, Transport.HLS, address, user_agent)
        token = self._urls.hls_token(place.hls_pass())
        self._sessions[token] = place.listener.id
        return HlsSession(place.listener, token)

    def seen(self, stream_id: str, token: str) -> Listener | None:
        """Keep an HLS listener alive; None when this process does not know the session: then `resume`."""
        place = self._places.get(self._sessions.get(token, ""))
        if place is None or place.listener.stream.id != stream_id or place.listener.ended.is_set():
            return None
        place.seen_at = trio.current_time()
        return place.listener

    async def resume(self, stream_id: str, token: str, address: str, user_agent: str) -> Listener:
        """Go on with a session that another process opened, or that fell silent.

        Raises as `listening`, and PERMISSION_DENIED (bad_signature) for a token that is not ours.
        """
        own = self._urls.hls_pass(token, stream_id)
        viewer = Viewer(own.user_id, own.premium, own.trusted, own.let_in)
        wish = Wish(Quality(own.quality) if own.quality else None)
        place = await self._enter(
            stream_id, viewer, Transport.HLS, address, user_agent,
            wish=wish, session_id=own.session_id, ends_at=own.ends_at, known_as=own.listener_id,
        )  # fmt: skip
        self._sessions[token] = place.listener.id
        return place.listener

    async def _admit(
        self, stream_id: str, shown: Shown, transport: Transport, address: str, user_agent: str
    ) -> Place:
        try:
            own = await presented(self._identity, self._urls, stream_id, shown)
            return await self._enter(
                stream_id, own.viewer, transport, address, user_agent,
                wish=Wish(own.quality), session_id=own.session_id, ends_at=own.ends_at,
            )  # fmt: skip
        except WhisprError as error:
            metrics.REFUSED.labels(error.reason).inc()
            raise

    async def _enter(
        self,
        stream_id: str,
        viewer: Viewer,
        transport: Transport,
        address: str,
        user_agent: str,
        *,
        wish: Wish,
        session_id: str,
        ends_at: float,
        known_as: str = "",
    ) -> Place:
        if not is_id(stream_id):
            raise not_found("stream", stream_id)
        orders = self._orders
        stream = await self._entrance(stream_id, viewer, session_id, known_as)
        with ExitStack() as undo:
            self._admission.come(stream_id, address, viewer)
            undo.callback(self._admission.go, address, viewer.user_id)
            if self.brings is not None:  # whoever hears nothing is no listener
                await self.brings(stream_id)
            listener = Listener(
                known_as or new_id(),
                stream,
                user_id=viewer.user_id,
                session_id=session_id,
                transport=transport,
                address=address,
                user_agent=user_agent,
                wish=wish if wish.quality else Wish(stream.default_quality, wish.volume),
                joined_at=self._clock(),
            )
            listener.on_quality = self._prefers
            if known_as:  # what they heard before is a listening of its own
                listener.listening_id = new_id()
            place = Place(listener, viewer, ends_at, seen_at=trio.current_time())
            await self._admission.count_in(place, len(self._by_stream.get(stream_id, ())))
            while orders != self._orders:  # nobody who is on the way in is found by an order
                orders = self._orders
                listener.stream = await self._entrance(stream_id, viewer, session_id, known_as)
            if listener.id not in self._places:  # else another request of the same HLS session was faster
                undo.pop_all()
                self._add(place)
        return self._places[listener.id]

    async def _entrance(self, stream_id: str, viewer: Viewer, session_id: str, known_as: str) -> Stream:
        """Return a stream that somebody may listen to now; raises for others."""
        standing = await self._store.standing(stream_id, viewer.user_id, session_id)
        if session_id and self._identity.is_revoked(session_id):
            raise unauthenticated("the session has been ended", reason="session_revoked")
        self._admission.check_in(known_as)
        refused = self._refused(standing, viewer)
        if refused is not None:
            raise refused
        return standing.stream

    def _add(self, place: Place) -> None:
        listener = place.listener
        self._places[listener.id] = place
        self._by_stream.setdefault(listener.stream.id, {})[listener.id] = place
        metrics.ADMITTED.labels(listener.transport.value).inc()
        metrics.LISTENERS.labels(listener.transport.value).inc()
        country = self._country_of(listener.address)
        self._counting.begin(listener, country)
        self._ledger.came(
            Coming(
                listener.listening_id, listener.id, listener.stream.id, listener.user_id,
                listener.transport.value, country, listener.joined_at,
            )
        )  # fmt: skip
        self._notices.tell(
            Notice(
                listener.stream.id,
                "listener_joined",
                {"listener_id": listener.id, "user_id": listener.user_id},
            )
        )

    # Going

    def _leave(self, place: Place, reason: str) -> None:
        """Count a listener out, for `reason` unless there was another before."""
        listener = place.listener
        if self._places.pop(listener.id, None) is None:
            return
        of_stream = self._by_stream[listener.stream.id]
        del of_stream[listener.id]
        if not of_stream:
            del self._by_stream[listener.stream.id]
        listener.end(reason)
        self._admission.go(listener.address, listener.user_id)
        metrics.LISTENERS.labels(listener.transport.value).dec()
        qualities = self._counting.end(listener)
        self._ledger.went(
            Going(
                listener.listening_id, listener.stream.id, self._clock(), listener.reason, qualities,
                listener.figures.rebuffers, listener.figures.dropped_frames, listener.figures.bytes_sent,
            )
        )  # fmt: skip
        data = {"listener_id": listener.id, "user_id": listener.user_id, "reason": listener.reason}
        self._notices.tell(Notice(listener.stream.id, "listener_left", data))

    def _end(self, place: Place, reason: str) -> None:
        """Put a listener out."""
        place.listener.end(reason)
        metrics.PUT_OUT.labels(reason).inc()
        if place.scope is not None:
            place.scope.cancel(reason=reason)
        else:
            self._admission.put_out(place.listener.id)
            self._leave(place, reason)

    def _session_ended(self, session_id: str, _reason: str) -> None:
        """End the listeners of a sign-in that has been ended."""
        self._orders += 1
        for place in list(self._places.values()):
            if session_id and place.listener.session_id == session_id:
                self._end(place, "session_revoked")

    def _heard(self, notice: Notice) -> None:
        """Do what concerns listeners here."""
        self._orders += notice.kind in (PUT_OUT, RECONSIDER, "stream_stopped")
        if notice.kind == PUT_OUT:
            self._put_out_all(notice)
        elif notice.kind == WISH:
            self._wished(notice)
        elif notice.kind == BARRED:
            self._admission.bar(str(notice.data.get("mark", "")))
        elif notice.kind == RECONSIDER:
            self._doubtful.add(notice.stream_id)
            self._check_now.set()
        elif notice.kind == "metadata_updated":
            self._described(notice)
        elif notice.kind == "stream_stopped":
            for place in self._of(notice.stream_id):
                self._end(place, "stream_ended")

    def _of(self, stream_id: str) -> list[Place]:
        return list(self._by_stream.get(stream_id, {}).values())

    def _described(self, notice: Notice) -> None:
        """Know what is played, for those who are told within the sound."""
        metadata = msgspec.convert(notice.data.get("metadata", {}), Metadata)
        for place in self._of(notice.stream_id):
            place.listener.stream = msgspec.structs.replace(place.listener.stream, metadata=metadata)

    def _put_out_all(self, notice: Notice) -> None:
        reason = str(notice.data.get("reason", "removed"))
        listener_id, user_id = notice.data.get("listener_id"), notice.data.get("user_id")
        if listener_id and reason != "left":
            self._admission.put_out(str(listener_id))
        for place in self._of(notice.stream_id):
            if place.listener.id == listener_id or (user_id and place.listener.user_id == user_id):
                if not place.listener.user_id and place.listener.address:
                    mark = mark_of(notice.stream_id, place.listener.address)
                    self._notices.tell(Notice(notice.stream_id, BARRED, {"mark": mark}))
                self._end(place, reason)

    def _prefers(self, listener: Listener) -> None:
        """Tell of another quality that a listener prefers."""
        quality = listener.quality.name if listener.quality else "AUTO"
        data = {"listener_id": listener.id, "user_id": listener.user_id, "quality": quality}
        self._notices.tell(Notice(listener.stream.id, "quality_changed", data))
        self._ledger.changed(Changing(listener.id, listener.stream.id, listener.user_id, quality))

    def _wished(self, notice: Notice) -> None:
        for place in self._of(notice.stream_id):
            listener = place.listener
            if listener.user_id != notice.data.get("user_id"):
                continue
            quality, volume = listener.wish.quality, listener.wish.volume
            if "quality" in notice.data:
                quality = Quality(notice.data["quality"]) if notice.data["quality"] else None
            listener.wants(Wish(quality, int(notice.data.get("volume", volume))))

    # Background

    async def run(self) -> None:
        """Keep count, and look after who may listen, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat_for_ever)
            nursery.start_soon(self._sweep_for_ever)
            nursery.start_soon(self._recheck_for_ever)

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                await self.beat()
            except WhisprError as error:
                log.info("listeners_not_counted", error=str(error))
            await trio.sleep(BEAT_S)

    async def beat(self) -> None:
        """Tell Redis who listens here. Raises UNAVAILABLE."""
        here: dict[str, list[Facts]] = {stream_id: [] for stream_id in self._counts}
        for place in self._places.values():
            here.setdefault(place.listener.stream.id, []).append(self._counting.facts(place.listener))
        gone = self._counting.take_gone()
        for stream_id in gone:
            here.setdefault(stream_id, [])
        try:
            for stream_id, ids in gone.items():
                await self._live.leave(stream_id, ids)
            counts = await self._live.beat(here)
        except WhisprError:
            self._counting.put_back_gone(gone)
            raise
        for stream_id, count in counts.items():
            if self._counts.get(stream_id) != count:
                self._on_count(stream_id, count)
        await self._counting.flush(counts)
        self._counts = {stream_id: counts[stream_id] for stream_id, facts in here.items() if facts}

    async def _sweep_for_ever(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """End HLS sessions that fell silent, and listeners whose URLs have expired."""
        silent, now = trio.current_time() - SESSION_S, self._clock()
        for place in list(self._places.values()):
            if 0 < place.ends_at <= now:
                self._end(place, "url_expired")
            elif place.scope is None and place.listener.transport is Transport.HLS and place.seen_at < silent:
                self._leave(place, "left")
        if len(self._sessions) > 2 * len(self._places) + 100:
            self._sessions = {token: each for token, each in self._sessions.items() if each in self._places}

    async def _recheck_for_ever(self) -> None:
        all_at = trio.current_time() + RECHECK_S
        while True:
            self._check_now = trio.Event()
            with trio.move_on_at(all_at):
                if not self._doubtful:
                    await self._check_now.wait()
            if trio.current_time() >= all_at:
                self._doubtful |= set(self._by_stream)
                all_at = trio.current_time() + RECHECK_S
            streams, self._doubtful = self._doubtful, set()
            try:
                for stream_id in streams:
                    await self.recheck(stream_id)
            except WhisprError as error:
                self._doubtful |= streams
                log.info("listeners_not_checked", error=str(error))
                await trio.sleep(SWEEP_S)

    async def recheck(self, stream_id: str) -> None:
        """Put out everybody here who may not listen any more. Raises UNAVAILABLE."""
        known: dict[tuple[str, str], Standing] = {}
        for place in self._of(stream_id):
            if place.listener.session_id and self._identity.is_revoked(place.listener.session_id):
                self._end(place, "session_revoked")
                continue
            whose = place.viewer.user_id, place.listener.session_id
            try:
                standing = known[whose] = known.get(whose) or await self._store.standing(stream_id, *whose)
            except WhisprError as error:
                if error.reason != "not_found":
                    raise
                self._end(place, "stream_ended")
                continue
            place.listener.stream = standing.stream
            refused = self._refused(standing, place.viewer)
            if refused is not None:
                self._end(place, "uninvited" if refused.reason == "not_found" else refused.reason)
