"""RPCs of streamers: making streams, starting and ending them, what is recorded, what came of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from whispr.conversations.paging import from_token, to_token
from whispr.errors import WhisprError, invalid
from whispr.identity import current_actor
from whispr.ids import UUID_PATTERN, parse_id
from whispr.services.stream import wire
from whispr.services.stream.analytics import HOURS_MAX, Report
from whispr.services.stream.control import Changes
from whispr.services.stream.domain import TITLE_CHARS_MAX, WRITE, Category, Stream, Visibility
from whispr.services.stream.notices import PUT_OUT, RECONSIDER, Notice
from whispr.services.stream.parts import Parts, check_own, ended, known, own, page_of, person
from whispr.services.stream.recordings import Recording
from whispr.v1 import stream_pb2 as pb

REASON_CHARS_MAX = 200

_Id = Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)]


class StreamHandlers:
    """Half of StreamService; the other half is `ListeningHandlers`."""

    _parts: Parts

    async def CreateStream(self, input_message: pb.CreateStreamRequest) -> pb.CreateStreamResponse:
        """Make a stream of the caller's."""
        parts, user_id = self._parts, person(WRITE)
        quality = wire.quality_of(input_message.default_quality, "default_quality")
        title, description = (
            wire.title_of(input_message.title),
            wire.description_of(input_message.description),
        )
        category = wire.category_of(input_message.category) or Category.OTHER
        visibility = wire.visibility_of(input_message.visibility) or Visibility.PUBLIC_STREAM
        if parts.limits.user_streams_per_hour:
            await parts.limiter.take(f"streams:{user_id}", parts.limits.user_streams_per_hour, 3600)
        stream, key = await parts.store.create(
            user_id, title, description, category, visibility, quality.value if quality else None
        )
        return pb.CreateStreamResponse(
            stream=wire.stream_pb(stream), stream_key=key, ingest=self._ingest(stream.id)
        )

    async def StartStream(self, input_message: pb.StartStreamRequest) -> pb.StartStreamResponse:
        """Let a stream be sent to and heard."""
        parts, user_id = self._parts, person(WRITE)
        config = wire.config_of(input_message.config)
        stream = await own(parts, input_message.stream_id)
        stream = await parts.control.start(stream.id, user_id, config)
        if stream.config.enable_chat and not stream.room_id:
            stream = msgspec.structs.replace(stream, room_id=await parts.rooms.ensure(stream) or None)
        base = parts.base_url()
        return pb.StartStreamResponse(
            stream=wire.stream_pb(stream),
            stream_url=f"{base}/listen/{stream.id}",
            hls_urls=[f"{base}/hls/{stream.id}/master.m3u8"],
            ingest=self._ingest(stream.id),
        )

    async def StopStream(self, input_message: pb.StopStreamRequest) -> pb.StopStreamResponse:
        """End a stream for good."""
        parts = self._parts
        reason = input_message.reason.strip()
        if len(reason) > REASON_CHARS_MAX or not reason.isprintable():
            raise invalid({"reason": f"at most {REASON_CHARS_MAX} printable characters"})
        stream = await own(parts, input_message.stream_id, moderated=True)
        by_streamer = stream.streamer_id == current_actor().user_id
        told = reason or ("stopped" if by_streamer else "moderated")
        stream = await parts.control.stop(stream.id, current_actor().user_id, told)
        return pb.StopStreamResponse(summary=wire.summary_pb(await self._summed_up(stream), stream))

    async def _summed_up(self, stream: Stream) -> Report:
        start = stream.started_at or stream.created_at
        return await self._parts.analytics.report(stream.id, start, stream.ended_at or datetime.now(UTC))

    async def PauseStream(self, input_message: pb.PauseStreamRequest) -> pb.PauseStreamResponse:
        """Have silence sent."""
        stream = await own(self._parts, input_message.stream_id)
        stream = await self._parts.control.pause(stream.id, person())
        return pb.PauseStreamResponse(stream=await self.shown(stream))

    async def ResumeStream(self, input_message: pb.ResumeStreamRequest) -> pb.ResumeStreamResponse:
        """Go on after a pause."""
        stream = await own(self._parts, input_message.stream_id)
        stream = await self._parts.control.resume(stream.id, person())
        return pb.ResumeStreamResponse(stream=await self.shown(stream))

    async def UpdateStream(self, input_message: pb.UpdateStreamRequest) -> pb.UpdateStreamResponse:
        """Change what is given of a stream."""
        asked = input_message
        if asked.HasField("max_listeners") and asked.max_listeners < 0:
            raise invalid({"max_listeners": "must not be negative"})
        category = wire.category_of(asked.category)
        changes = Changes(
            title=wire.title_of(asked.title) if asked.HasField("title") else None,
            description=wire.description_of(asked.description) if asked.HasField("description") else None,
            category=category.value if category else None,
            visibility=wire.visibility_of(asked.visibility),
            default_quality=wire.quality_of(asked.default_quality, "default_quality"),
            sets_quality=asked.HasField("default_quality"),
            metadata=wire.metadata_of(asked.metadata) if asked.HasField("metadata") else None,
            max_listeners=asked.max_listeners if asked.HasField("max_listeners") else None,
        )
        stream = await own(self._parts, asked.stream_id)
        stream = await self._parts.control.update(stream.id, person(), changes)
        return pb.UpdateStreamResponse(stream=await self.shown(stream))

    async def RotateStreamKey(self, input_message: pb.RotateStreamKeyRequest) -> pb.RotateStreamKeyResponse:
        """Give a stream another key."""
        stream = await own(self._parts, input_message.stream_id)
        if stream.ended_at is not None:
            raise ended()
        return pb.RotateStreamKeyResponse(stream_key=await self._parts.store.rotate_key(stream.id))

    async def GetStreamInfo(self, input_message: pb.GetStreamInfoRequest) -> pb.GetStreamInfoResponse:
        """Return a stream to whoever may know of it."""
        stream = (await known(self._parts, input_message.stream_id)).stream
        return pb.GetStreamInfoResponse(stream=await self.shown(stream))

    async def ListActiveStreams(
        self, input_message: pb.ListActiveStreamsRequest
    ) -> pb.ListActiveStreamsResponse:
        """Return a page of the streams that run and are listed."""
        parts = self._parts
        category = wire.category_of(input_message.category)
        sorts = pb.ListActiveStreamsRequest.SortBy
        if input_message.sort_by not in sorts.values():
            raise invalid({"sort_by": f"must be one of {', '.join(sorts.keys())}"})
        offset, size = page_of(parts.limits, input_message.page, input_message.limit)
        counts = {}
        try:
            counts = dict(await parts.live_state.all_counts())
        except WhisprError:  # the list is worth having without
            counts = {}
        sort = sorts.Name(input_message.sort_by)
        streams, total = await parts.store.listed(category, sort, counts, offset, size)
        sourced = await self._with_source([stream.id for stream in streams])
        shown = [wire.stream_pb(s, counts.get(s.id, 0), has_source=s.id in sourced) for s in streams]
        return pb.ListActiveStreamsResponse(streams=shown, total=total)

    async def ListOwnStreams(self, input_message: pb.ListOwnStreamsRequest) -> pb.ListOwnStreamsResponse:
        """Return a page of the caller's streams, the newest first."""
        parts, user_id = self._parts, person()
        if input_message.page_size < 0:
            raise invalid({"page_size": "must not be negative"})
        size = min(input_message.page_size or parts.limits.page_size, parts.limits.page_size_max)
        found = await parts.store.own(user_id, from_token(input_message.page_token, _Id), size + 1)
        page = found[:size]
        return pb.ListOwnStreamsResponse(
            streams=[wire.stream_pb(stream) for stream in page],
            next_page_token=to_token(page[-1].id) if len(found) > size else "",
        )

    # Who may listen

    async def InviteListener(self, input_message: pb.InviteListenerRequest) -> pb.InviteListenerResponse:
        """Let a person listen."""
        user_id = parse_id(input_message.user_id, "user_id")
        stream = await own(self._parts, input_message.stream_id)
        await self._parts.store.invite(stream.id, user_id)
        return pb.InviteListenerResponse()

    async def UninviteListener(
        self, input_message: pb.UninviteListenerRequest
    ) -> pb.UninviteListenerResponse:
        """Take an invitation back."""
        user_id = parse_id(input_message.user_id, "user_id")
        stream = await own(self._parts, input_message.stream_id)
        await self._parts.store.uninvite(stream.id, user_id)
        self._parts.notices.tell(Notice(stream.id, RECONSIDER))
        return pb.UninviteListenerResponse()

    async def RemoveListener(self, input_message: pb.RemoveListenerRequest) -> pb.RemoveListenerResponse:
        """Put a listener out, or a person for good."""
        asked = input_message
        if bool(asked.listener_id) == bool(asked.user_id):
            raise invalid({"listener_id": "name a listener, or a person by user_id"})
        data = {"reason": "removed"}
        if asked.listener_id:
            data["listener_id"] = parse_id(asked.listener_id, "listener_id")
        else:
            data["user_id"] = parse_id(asked.user_id, "user_id")
        stream = await own(self._parts, asked.stream_id, moderated=True)
        if data.get("user_id") == stream.streamer_id:
            raise invalid({"user_id": "nobody is put out of their own stream"})
        if "user_id" in data:
            await self._parts.store.remove(stream.id, data["user_id"])
        self._parts.notices.tell(Notice(stream.id, PUT_OUT, data))
        return pb.RemoveListenerResponse()

    # Recordings

    async def StartRecording(self, input_message: pb.StartRecordingRequest) -> pb.StartRecordingResponse:
        """Record from now on."""
        config, faults = input_message.config, dict[str, str]()
        quality = wire.quality_of(config.quality, "config.quality")
        codec = wire.codec_of(config.codec, "config.codec", faults) if config.codec else None
        if len(config.title) > TITLE_CHARS_MAX or not config.title.isprintable():
            faults["config.title"] = f"at most {TITLE_CHARS_MAX} printable characters"
        if faults:
            raise invalid(faults)
        stream = await own(self._parts, input_message.stream_id)
        upload = config.auto_upload or not input_message.HasField("config")
        recording = await self._parts.control.record(
            stream.id, config.title.strip(), quality, codec, auto_upload=upload
        )
        return pb.StartRecordingResponse(recording_id=recording.id, recording=self._recording(recording))

    async def StopRecording(self, input_message: pb.StopRecordingRequest) -> pb.StopRecordingResponse:
        """End a recording."""
        recording = await self._own_recording(input_message.recording_id)
        recording = await self._parts.control.end_recording(recording)
        return pb.StopRecordingResponse(recording=self._recording(recording))

    async def GetRecordings(self, input_message: pb.GetRecordingsRequest) -> pb.GetRecordingsResponse:
        """Return a page of somebody's recordings."""
        parts, user_id = self._parts, person()
        streamer_id = user_id
        if input_message.streamer_id:
            streamer_id = parse_id(input_message.streamer_id, "streamer_id")
        offset, size = page_of(parts.limits, input_message.page, input_message.limit)
        found, total = await parts.recordings.page(streamer_id, offset, size, own=streamer_id == user_id)
        return pb.GetRecordingsResponse(recordings=[self._recording(each) for each in found], total=total)

    async def DeleteRecording(self, input_message: pb.DeleteRecordingRequest) -> pb.DeleteRecordingResponse:
        """Delete a recording for good."""
        recording = await self._own_recording(input_message.recording_id, moderated=True)
        await self._parts.recordings.delete(recording.id)
        await self._parts.discard(recording)
        return pb.DeleteRecordingResponse()

    async def _own_recording(self, recording_id: str, *, moderated: bool = False) -> Recording:
        recording = await self._parts.recordings.find(parse_id(recording_id, "recording_id"))
        check_own(recording.streamer_id, moderated=moderated)
        return recording

    def _recording(self, recording: Recording) -> pb.Recording:
        parts = self._parts
        token = parts.urls.recording_token(recording.id, parts.urls.until(parts.limits.listen_url_s))
        base = parts.base_url()
        return wire.recording_pb(
            recording,
            f"{base}/recordings/{recording.id}/{token}/audio.{recording.extension}",
            f"{base}/recordings/{recording.id}/{token}/master.m3u8",
        )

    # What came of it

    async def GetStreamAnalytics(self, input_message: pb.GetStreamAnalyticsRequest) -> pb.StreamAnalytics:
        """Return what came of a stream, by the hour."""
        asked = input_message
        stream = await own(self._parts, asked.stream_id, moderated=True)
        start, end = stream.started_at or stream.created_at, stream.ended_at or datetime.now(UTC)
        if asked.HasField("start_time"):
            start = wire.time_of(asked.start_time, "start_time")
        if asked.HasField("end_time"):
            end = wire.time_of(asked.end_time, "end_time")
        if end < start:
            raise invalid({"end_time": "is before start_time"})
        if end - start > timedelta(hours=HOURS_MAX):
            raise invalid({"end_time": f"at most {HOURS_MAX} hours after start_time"})
        return wire.analytics_pb(stream.id, await self._parts.analytics.report(stream.id, start, end))

    # How streams are shown

    async def shown(self, stream: Stream) -> pb.Stream:
        """Return a stream as it is now, as far as Redis is there to say."""
        try:
            counts = await self._parts.live_state.counts([stream.id])
        except WhisprError:  # a stream is worth seeing without
            counts = {}
        sourced = await self._with_source([stream.id])
        return wire.stream_pb(stream, counts.get(stream.id, 0), has_source=stream.id in sourced)

    async def _with_source(self, stream_ids: list[str]) -> set[str]:
        try:
            return await self._parts.live_state.with_source(stream_ids)
        except WhisprError:  # as above
            return set()

    def _ingest(self, stream_id: str) -> pb.IngestUrls:
        base = self._parts.base_url()
        bare = base.partition("://")[2]
        return pb.IngestUrls(
            whip=f"{base}/whip/{stream_id}",
            icecast=f"icecast://{bare}/ingest/{stream_id}",
            topic=f"stream:{stream_id}",
        )
