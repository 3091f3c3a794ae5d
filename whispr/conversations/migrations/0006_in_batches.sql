-- Statements that run for every message are planned once, and counting takes many conversations at a time.

-- Planning `append` costs PostgreSQL 0.8 ms, three times what running it for one message does, and as its arrays look
-- cheap to it PostgreSQL planned it anew for every call. All that it reads is found by index, whatever the arrays hold.
ALTER FUNCTION conversations.append(
    boolean, boolean[], uuid[], uuid[], uuid[], text[], text[], bytea[], text[], uuid[], bytea[], bytea[], integer[]
) SET plan_cache_mode = force_generic_plan;

-- Counts what was sent in some conversations since each was last counted, at most 5,000 messages of each; answers how
-- far each has been counted now. Counting twice changes nothing, for the mark and the counts move together.
CREATE FUNCTION conversations.count_sent_in(in_conversations uuid[])
RETURNS TABLE (conversation_id uuid, seq bigint)
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO conversations.counted (conversation_id, seq)
        SELECT DISTINCT id, 0 FROM unnest(in_conversations) AS id ORDER BY id
        ON CONFLICT (conversation_id) DO NOTHING;
    -- Locks are taken in the order of conversations, then of people, so that those who count side by side do not
    -- deadlock.
    PERFORM FROM conversations.counted k WHERE k.conversation_id = ANY (in_conversations)
        ORDER BY k.conversation_id FOR NO KEY UPDATE;
    RETURN QUERY
    WITH uncounted AS MATERIALIZED (
        SELECT k.conversation_id, k.seq AS done, least(c.last_seq, k.seq + 5000) AS target
        FROM conversations.counted k JOIN conversations.conversations c ON c.id = k.conversation_id
        WHERE k.conversation_id = ANY (in_conversations) AND c.last_seq > k.seq
    ), counts AS (
        INSERT INTO conversations.sent_counts AS s (user_id, messages_sent, last_message_at)
        SELECT m.sender_id, count(*), max(m.sent_at) FROM uncounted u
        CROSS JOIN LATERAL (
            SELECT g.sender_id, g.sent_at FROM conversations.messages g
            WHERE g.conversation_id = u.conversation_id AND g.seq > u.done AND g.seq <= u.target
        ) m
        GROUP BY m.sender_id ORDER BY m.sender_id
        ON CONFLICT (user_id) DO UPDATE SET
            messages_sent = s.messages_sent + excluded.messages_sent,
            last_message_at = greatest(s.last_message_at, excluded.last_message_at)
    ), marked AS (
        UPDATE conversations.counted k SET seq = u.target FROM uncounted u
        WHERE k.conversation_id = u.conversation_id
    )
    SELECT k.conversation_id, coalesce(u.target, k.seq)
    FROM conversations.counted k LEFT JOIN uncounted u ON u.conversation_id = k.conversation_id
    WHERE k.conversation_id = ANY (in_conversations);
END
$$;

-- One conversation, for nodes of the version before that still run while others are replaced.
CREATE OR REPLACE FUNCTION conversations.count_sent(in_conversation uuid) RETURNS bigint
LANGUAGE sql AS $$
    SELECT seq FROM conversations.count_sent_in(ARRAY[in_conversation])
$$;
