"""What Sync tells, as channels carry it and as the messages of the protos."""

from __future__ import annotations

import msgspec

from whispr.conversations.changes import Change
from whispr.conversations.protobuf import conversation_pb, message_pb
from whispr.conversations.sync import Receipt, Synced, Told
from whispr.conversations.wire import conversation_json, message_json
from whispr.v1 import messaging_pb2 as pb

_encode = msgspec.json.Encoder().encode


def sync_json(synced: Synced) -> dict[str, object]:
    """Build the reply to `sync`; a change looks like its broadcast, with `event` and `at` beside."""
    return {
        "conversations": [_told_json(each) for each in synced.conversations],
        "left_conversation_ids": synced.left_ids,
        "cursor": synced.cursor,
        "has_more": synced.has_more,
    }


def _told_json(told: Told) -> dict[str, object]:
    return {
        "conversation": conversation_json(told.conversation),
        "messages": [message_json(message) for message in told.messages],
        "changes": [{"event": each.kind, "at": each.at, **each.payload()} for each in told.changes],
        "changed_messages": [message_json(message) for message in told.changed_messages],
        "receipts": told.receipts,
        "hidden_seqs": told.hidden_seqs,
        "truncated": told.truncated,
        "read_seq": told.read_seq,
        "delivered_seq": told.delivered_seq,
    }


def sync_pb(synced: Synced) -> pb.SyncResponse:
    """Build `whispr.v1.SyncResponse`."""
    return pb.SyncResponse(
        conversations=[_told_pb(each) for each in synced.conversations],
        left_conversation_ids=synced.left_ids,
        cursor=synced.cursor,
        has_more=synced.has_more,
    )


def _told_pb(told: Told) -> pb.ConversationChanges:
    return pb.ConversationChanges(
        conversation=conversation_pb(told.conversation),
        messages=[message_pb(message) for message in told.messages],
        changes=[_change_pb(change) for change in told.changes],
        changed_messages=[message_pb(message) for message in told.changed_messages],
        receipts=[_receipt_pb(receipt) for receipt in told.receipts],
        hidden_seqs=told.hidden_seqs,
        truncated=told.truncated,
        read_seq=told.read_seq,
        delivered_seq=told.delivered_seq,
    )


def _change_pb(change: Change) -> pb.Change:
    return pb.Change(
        change=change.change,
        kind=change.kind,
        seq=change.seq or 0,
        actor_id=change.actor_id or "",
        at=change.at,
        data=_encode(change.data).decode(),
    )


def _receipt_pb(receipt: Receipt) -> pb.Receipt:
    return pb.Receipt(
        user_id=receipt.user_id,
        delivered_seq=receipt.delivered_seq,
        read_seq=receipt.read_seq,
        read_at=receipt.read_at,
    )
