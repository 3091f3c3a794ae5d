"""MessagingService's RPCs about what is the caller's own: watermarks, drafts, archive, mute, catching up."""

from __future__ import annotations

from datetime import UTC, datetime

from whispr.conversations.protobuf import draft_pb
from whispr.conversations.sync_json import sync_pb
from whispr.errors import invalid
from whispr.ids import parse_id
from whispr.services.messaging.callers import Servicer, acting, conversation_of, whose
from whispr.v1 import messaging_pb2 as pb

MUTE_S_MAX = 10 * 366 * 24 * 3600
METRICS = ("message_count", "unread_count", "last_activity")


class OnOwnState(Servicer):
    """What a person keeps, and what they have read and missed."""

    async def MarkDelivered(self, input_message: pb.MarkDeliveredRequest) -> pb.MarkDeliveredResponse:
        """Move the delivered watermark."""
        conversation_id = conversation_of(input_message.conversation_id)
        mark = await self._operations.mark_delivered(conversation_id, acting(), input_message.seq)
        return pb.MarkDeliveredResponse(delivered_seq=mark.seq)

    async def MarkRead(self, input_message: pb.MarkReadRequest) -> pb.MarkReadResponse:
        """Move the read watermark."""
        conversation_id = conversation_of(input_message.conversation_id)
        mark = await self._operations.mark_read(conversation_id, acting(), input_message.seq)
        return pb.MarkReadResponse(read_seq=mark.seq, unread_count=mark.unread_count)

    async def MarkAllRead(self, input_message: pb.MarkAllReadRequest) -> pb.MarkAllReadResponse:
        """Read several conversations to their ends."""
        ids = [parse_id(each, "conversation_ids") for each in input_message.conversation_ids]
        return pb.MarkAllReadResponse(marked_count=await self._operations.mark_all_read(acting(), ids))

    async def Sync(self, input_message: pb.SyncRequest) -> pb.SyncResponse:
        """Return what changed since a cursor."""
        return sync_pb(
            await self._operations.sync.since(acting(), input_message.since, input_message.page_size)
        )

    async def SaveDraft(self, input_message: pb.SaveDraftRequest) -> pb.SaveDraftResponse:
        """Keep what the caller is writing."""
        reply_to = input_message.reply_to_id
        draft = await self._operations.personal.save_draft(
            conversation_of(input_message.conversation_id),
            acting(),
            input_message.content,
            parse_id(reply_to, "reply_to_id") if reply_to else "",
        )
        return pb.SaveDraftResponse(draft=draft_pb(draft) if draft is not None else None)

    async def GetDraft(self, input_message: pb.GetDraftRequest) -> pb.GetDraftResponse:
        """Return the caller's draft."""
        conversation_id = conversation_of(input_message.conversation_id)
        draft = await self._operations.personal.draft(conversation_id, acting())
        return pb.GetDraftResponse(draft=draft_pb(draft) if draft is not None else None)

    async def ArchiveConversation(
        self, input_message: pb.ArchiveConversationRequest
    ) -> pb.ArchiveConversationResponse:
        """Put a conversation aside, or take it back."""
        conversation_id = conversation_of(input_message.conversation_id)
        await self._operations.personal.archive(conversation_id, acting(), archived=input_message.archived)
        return pb.ArchiveConversationResponse()

    async def MuteConversation(
        self, input_message: pb.MuteConversationRequest
    ) -> pb.MuteConversationResponse:
        """Stop notifications, or start them."""
        if input_message.duration_s > MUTE_S_MAX:
            raise invalid({"duration_s": f"at most {MUTE_S_MAX}; 0 is for good"})
        until = await self._operations.personal.mute(
            conversation_of(input_message.conversation_id),
            acting(),
            muted=input_message.muted,
            duration_s=input_message.duration_s,
        )
        return pb.MuteConversationResponse(muted_until=until)

    async def GetConversationStats(
        self, input_message: pb.GetConversationStatsRequest
    ) -> pb.GetConversationStatsResponse:
        """Return the counters asked for; to a service that names nobody, those that are nobody's."""
        conversation_id = conversation_of(input_message.conversation_id)
        wanted = set(input_message.metrics) or set(METRICS)
        if unknown := wanted.difference(METRICS):
            raise invalid({"metrics": f"{sorted(unknown)[0]!r} is not one of {', '.join(METRICS)}"})
        counters = await self._store.counters(conversation_id, whose(input_message.user_id))
        stats = {"message_count": counters.message_count}
        stats["last_activity"] = int(counters.last_activity.timestamp())
        if counters.unread_count is not None:
            stats["unread_count"] = counters.unread_count
        return pb.GetConversationStatsResponse(
            stats={name: value for name, value in stats.items() if name in wanted},
            last_updated=datetime.now(UTC),
        )
