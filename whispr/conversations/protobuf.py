"""The domain's values as the messages of the protos."""

from __future__ import annotations

from whispr.conversations.domain import Attachment, Conversation, DraftText, Member, Message
from whispr.conversations.schedule import Scheduled
from whispr.v1 import messaging_pb2 as pb


def message_pb(message: Message) -> pb.Message:
    """Build `whispr.v1.Message`."""
    return pb.Message(
        id=message.id,
        conversation_id=message.conversation_id,
        seq=message.seq,
        sender_id=message.sender_id,
        message_type=message.message_type,
        content=message.content,
        metadata=message.metadata,
        client_id=message.client_id,
        reply_to_id=message.reply_to_id,
        signature=message.signature,
        sender_public_key=message.sender_public_key,
        sent_at=message.sent_at,
        reactions=[pb.Reaction(emoji=r.emoji, user_ids=r.user_ids, count=r.count) for r in message.reactions],
        attachments=[attachment_pb(each) for each in message.attachments],
        edited_at=message.edited_at,
        deleted_at=message.deleted_at,
        expires_at=message.expires_at,
    )


def attachment_pb(attachment: Attachment) -> pb.Attachment:
    """Build `whispr.v1.Attachment`."""
    return pb.Attachment(
        link_id=attachment.link_id,
        media_id=attachment.media_id,
        media_type=attachment.media_type,
        metadata=attachment.metadata,
        state=attachment.state,
    )


def draft_pb(draft: DraftText) -> pb.Draft:
    """Build `whispr.v1.Draft`."""
    return pb.Draft(content=draft.content, reply_to_id=draft.reply_to_id, updated_at=draft.updated_at)


def member_pb(member: Member) -> pb.Member:
    """Build `whispr.v1.Member`."""
    return pb.Member(
        user_id=member.user_id,
        username=member.username,
        display_name=member.display_name,
        role=member.role.value,
        joined_at=member.joined_at,
        delivered_seq=member.delivered_seq,
        read_seq=member.read_seq,
    )


def conversation_pb(conversation: Conversation) -> pb.Conversation:
    """Build `whispr.v1.Conversation`."""
    last, peer = conversation.last_message, conversation.peer
    return pb.Conversation(
        id=conversation.id,
        kind=conversation.kind.value,
        name=conversation.name,
        members=[member_pb(member) for member in conversation.members],
        member_count=conversation.member_count,
        created_by=conversation.created_by,
        created_at=conversation.created_at,
        last_seq=conversation.last_seq,
        unread_count=conversation.unread_count,
        last_message=message_pb(last) if last is not None else None,
        settings=conversation.settings,
        peer=member_pb(peer) if peer is not None else None,
        archived=conversation.archived,
        muted_until=conversation.muted_until,
        draft=draft_pb(conversation.draft) if conversation.draft is not None else None,
        last_change=conversation.last_change,
        is_active=conversation.is_active,
    )


def scheduled_pb(scheduled: Scheduled) -> pb.ScheduledMessage:
    """Build `whispr.v1.ScheduledMessage`."""
    draft = scheduled.draft
    return pb.ScheduledMessage(
        id=scheduled.id,
        conversation_id=draft.conversation_id,
        content=draft.content,
        message_type=draft.message_type,
        client_id=draft.client_id,
        reply_to_id=draft.reply_to_id,
        metadata=draft.metadata,
        expire_after_s=draft.expire_after_s,
        send_at=scheduled.send_at,
        created_at=scheduled.created_at,
        failed_at=scheduled.failed_at,
        failure=scheduled.failure,
    )
