-- Hidden messages that are one's own, or were erased before one hid them, were never added to `uncounted` for being
-- hidden; reading past them took them off all the same. Unread counts that are too high for that are right again
-- once everything has been read.
CREATE OR REPLACE FUNCTION conversations.mark_read(in_conversation uuid, in_user uuid, in_seq bigint)
RETURNS TABLE (read_seq bigint, moved boolean, read_at timestamptz, unread_count bigint, conversation_kind text)
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    seat conversations.members;
    talk conversations.conversations;
    target bigint;
    advanced boolean;
BEGIN
    SELECT * INTO seat FROM conversations.members m
        WHERE m.conversation_id = in_conversation AND m.user_id = in_user AND m.left_at IS NULL FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO talk FROM conversations.conversations c WHERE c.id = in_conversation;
    target := least(CASE WHEN in_seq = 0 THEN talk.last_seq ELSE in_seq END, talk.last_seq);
    advanced := target > seat.read_seq;
    IF advanced THEN
        UPDATE conversations.members m SET
            read_seq = target,
            delivered_seq = greatest(m.delivered_seq, target),
            read_at = clock_timestamp(),
            changed_at = clock_timestamp(),
            uncounted = CASE WHEN m.uncounted = 0 OR target = talk.last_seq THEN 0 ELSE m.uncounted - (
                SELECT count(*) FROM conversations.messages own
                WHERE own.conversation_id = in_conversation AND own.sender_id = in_user
                    AND own.deleted_at IS NULL AND own.seq > seat.read_seq AND own.seq <= target
            ) - (
                SELECT count(*) FROM conversations.hidden h
                JOIN conversations.messages other ON other.conversation_id = h.conversation_id AND other.seq = h.seq
                WHERE h.conversation_id = in_conversation AND h.user_id = in_user
                    AND h.seq > seat.read_seq AND h.seq <= target
                    AND other.sender_id <> in_user AND other.deleted_at IS NULL
            ) END
        WHERE m.conversation_id = in_conversation AND m.user_id = in_user
        RETURNING * INTO seat;
        PERFORM events.emit(
            conversations.subject(talk.kind, 'read'), in_conversation::text, in_user,
            jsonb_build_object('conversation_id', in_conversation, 'conversation_kind', talk.kind,
                'user_id', in_user, 'seq', seat.read_seq, 'read_at', seat.read_at));
    END IF;
    RETURN QUERY SELECT seat.read_seq, advanced, seat.read_at,
        talk.last_seq - seat.read_seq - seat.uncounted
            - CASE WHEN talk.tombstone_count = 0 OR seat.read_seq = talk.last_seq THEN 0
                ELSE conversations.erased_after(in_conversation, seat.read_seq) END,
        talk.kind;
END
$$;
