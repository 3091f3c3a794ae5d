-- What happens to conversations and messages after they are made: edits, deletes, reactions, pins, expiry,
-- mutes, drafts, attachments, scheduled messages; and the log of changes from which clients catch up.
--
-- Locks are taken as 0001 says: rows of conversations by id first, then rows of members.

ALTER TABLE conversations.conversations
    -- The number of the latest change; the next one gets last_change + 1 (see conversations.changes).
    ADD COLUMN last_change     bigint NOT NULL DEFAULT 0,
    ADD COLUMN changed_at      timestamptz,
    -- Seconds that a member (not a moderator or above) waits between two messages; 0 is no wait.
    ADD COLUMN slow_mode_s     integer NOT NULL DEFAULT 0 CHECK (slow_mode_s >= 0),
    -- Seconds after which new messages expire; 0 is never.
    ADD COLUMN message_ttl_s   integer NOT NULL DEFAULT 0 CHECK (message_ttl_s >= 0),
    -- A closed conversation takes no new messages.
    ADD COLUMN is_active       boolean NOT NULL DEFAULT true,
    -- How many of its messages are erased: 0 saves the reads that would count them.
    ADD COLUMN tombstone_count bigint NOT NULL DEFAULT 0;

-- What the column counts is now wider: messages after read_seq that do not count as unread for this member
-- though they are not erased: the member's own, and those of others that the member has hidden. Unread is
-- last_seq - read_seq - uncounted - (erased messages after read_seq).
ALTER TABLE conversations.members RENAME COLUMN own_after_read TO uncounted;
ALTER TABLE conversations.members
    -- Until when the member may not write; 'infinity' is for ever.
    ADD COLUMN muted_until        timestamptz,
    -- Kept in conversations with a slow mode only.
    ADD COLUMN last_sent_at       timestamptz,
    ADD COLUMN archived_at        timestamptz,
    -- Until when the member wants no notifications; 'infinity' is for ever.
    ADD COLUMN notify_muted_until timestamptz,
    -- When the member's own state last changed: watermarks, archive, mute, draft.
    ADD COLUMN changed_at         timestamptz;

CREATE INDEX members_who_left ON conversations.members (user_id, left_at) WHERE left_at IS NOT NULL;

ALTER TABLE conversations.messages
    ADD COLUMN edited_at  timestamptz,
    -- An erased message keeps its place, sender and times; content, metadata and keys are gone.
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN deleted_by uuid,
    ADD COLUMN expires_at timestamptz;

CREATE INDEX messages_expiring ON conversations.messages (expires_at)
    WHERE expires_at IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX messages_erased ON conversations.messages (conversation_id, seq) WHERE deleted_at IS NOT NULL;

-- Everything that changes but is no new message, numbered without gaps in each conversation. `kind` is the
-- name of the broadcast and of the event; `data` never holds a message's content, which may be erased later.
CREATE TABLE conversations.changes (
    conversation_id uuid NOT NULL,
    change          bigint NOT NULL,
    kind            text NOT NULL,
    seq             bigint,
    actor_id        uuid,
    data            jsonb NOT NULL,
    at              timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, change)
);

-- Erased messages by stretches of 4,096 seqs, so that those after any seq are counted without reading them.
CREATE TABLE conversations.tombstones (
    conversation_id uuid NOT NULL,
    bucket          bigint NOT NULL,
    erased          integer NOT NULL,
    PRIMARY KEY (conversation_id, bucket)
) WITH (fillfactor = 50);

-- Messages that a member has deleted for themselves.
CREATE TABLE conversations.hidden (
    conversation_id uuid NOT NULL,
    user_id         uuid NOT NULL,
    seq             bigint NOT NULL,
    hidden_at       timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, user_id, seq)
);
CREATE INDEX hidden_of_message ON conversations.hidden (conversation_id, seq);

CREATE TABLE conversations.reactions (
    conversation_id uuid NOT NULL,
    seq             bigint NOT NULL,
    emoji           text NOT NULL,
    user_id         uuid NOT NULL,
    reacted_at      timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, seq, emoji, user_id)
);
CREATE INDEX reactions_of_user ON conversations.reactions (user_id);

CREATE TABLE conversations.pins (
    conversation_id uuid NOT NULL,
    seq             bigint NOT NULL,
    pinned_by       uuid NOT NULL,
    pinned_at       timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, seq)
);

-- Media linked to messages. A link is pending until the media service has confirmed it.
CREATE TABLE conversations.attachments (
    id              uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    seq             bigint NOT NULL,
    media_id        uuid NOT NULL,
    media_type      text NOT NULL CHECK (media_type IN ('image', 'video', 'audio', 'document')),
    metadata        jsonb,
    state           text NOT NULL CHECK (state IN ('pending', 'linked')),
    linked_by       uuid NOT NULL,
    created_at      timestamptz NOT NULL,
    linked_at       timestamptz,
    -- When a pending link is tried again, and how often that was done.
    retry_at        timestamptz,
    attempts        integer NOT NULL DEFAULT 0,
    UNIQUE (conversation_id, seq, media_id)
);
CREATE INDEX attachments_of_media ON conversations.attachments (media_id);
CREATE INDEX attachments_pending ON conversations.attachments (retry_at) WHERE state = 'pending';

CREATE TABLE conversations.drafts (
    user_id         uuid NOT NULL,
    conversation_id uuid NOT NULL,
    content         bytea NOT NULL,
    reply_to_id     uuid,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (user_id, conversation_id)
);

-- Messages to be sent later. Their client_id makes the sending happen once, however often it is tried.
CREATE TABLE conversations.scheduled (
    id                uuid PRIMARY KEY,
    conversation_id   uuid NOT NULL,
    sender_id         uuid NOT NULL,
    client_id         text NOT NULL,
    message_type      text NOT NULL,
    content           bytea NOT NULL,
    metadata          jsonb,
    reply_to_id       uuid,
    signature         bytea,
    sender_public_key bytea,
    expire_after_s    integer NOT NULL DEFAULT 0,
    send_at           timestamptz NOT NULL,
    created_at        timestamptz NOT NULL,
    -- Until when one process has it in hand; another may take it after that.
    claimed_until     timestamptz,
    failed_at         timestamptz,
    failure           text,
    UNIQUE (sender_id, client_id)
);
CREATE INDEX scheduled_due ON conversations.scheduled (send_at) WHERE failed_at IS NULL;
CREATE INDEX scheduled_of_sender ON conversations.scheduled (sender_id, send_at, id);

-- The search index. A token is a hash of a word, its conversation and a stretch of 16,384 seqs: so a word's
-- entries are those of one conversation, and a search reads the newest stretch first. Found rows are checked
-- against the message itself, so that a collision or a stale row shows nothing.
CREATE TABLE conversations.search (
    conversation_id uuid NOT NULL,
    seq             bigint NOT NULL,
    tokens          bigint[] NOT NULL,
    PRIMARY KEY (conversation_id, seq)
);
CREATE INDEX search_tokens ON conversations.search USING gin (tokens);

CREATE TABLE conversations.search_progress (
    conversation_id uuid PRIMARY KEY,
    indexed_seq     bigint NOT NULL
) WITH (fillfactor = 50);

-- Published to other owners.
CREATE OR REPLACE VIEW conversations.memberships AS
    SELECT m.conversation_id, m.user_id, m.role, m.joined_at, m.left_at, c.kind, m.read_at,
        m.read_seq, m.muted_until, m.archived_at, m.notify_muted_until
    FROM conversations.members m
    JOIN conversations.conversations c ON c.id = m.conversation_id;

-- Names the stream of events of a kind of conversation.
CREATE FUNCTION conversations.subject(conversation_kind text, event text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE conversation_kind WHEN 'room' THEN 'chat' ELSE 'messaging' END || '.events.' || event $$;

-- Numbers and logs a change of a conversation, and emits it as an event. Takes the conversation's lock;
-- whoever also locks members has taken it before.
CREATE FUNCTION conversations.change(
    in_conversation uuid, in_kind text, in_seq bigint, in_actor uuid, in_data jsonb,
    in_trace text DEFAULT NULL, in_event uuid DEFAULT NULL
) RETURNS TABLE (change bigint, at timestamptz, conversation_kind text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    numbered bigint;
    moment timestamptz;
    sort text;
BEGIN
    UPDATE conversations.conversations c
        SET last_change = c.last_change + 1, changed_at = greatest(clock_timestamp(), c.changed_at)
        WHERE c.id = in_conversation
        RETURNING c.last_change, c.changed_at, c.kind INTO numbered, moment, sort;
    INSERT INTO conversations.changes (conversation_id, change, kind, seq, actor_id, data, at)
        VALUES (in_conversation, numbered, in_kind, in_seq, in_actor, in_data, moment);
    PERFORM events.emit(
        conversations.subject(sort, in_kind), in_conversation::text, in_actor,
        in_data || jsonb_strip_nulls(jsonb_build_object(
            'conversation_id', in_conversation, 'conversation_kind', sort, 'change', numbered, 'seq', in_seq)),
        in_trace, in_event);
    RETURN QUERY SELECT numbered, moment, sort;
END
$$;

-- Counts the erased messages after a seq.
CREATE FUNCTION conversations.erased_after(in_conversation uuid, in_seq bigint) RETURNS bigint
LANGUAGE sql STABLE
SET enable_seqscan = off
AS $$
    SELECT coalesce((
        SELECT sum(t.erased) FROM conversations.tombstones t
        WHERE t.conversation_id = in_conversation AND t.bucket > in_seq >> 12
    ), 0)::bigint + (
        SELECT count(*) FROM conversations.messages m
        WHERE m.conversation_id = in_conversation AND m.deleted_at IS NOT NULL
            AND m.seq > in_seq AND m.seq < ((in_seq >> 12) + 1) << 12
    )
$$;

-- Erases messages of one conversation: what they said and all that hangs on it; seq, sender and times stay.
-- Returns those it erased now. The caller holds the conversation's lock, and logs the changes.
CREATE FUNCTION conversations.erase(in_conversation uuid, in_seqs bigint[], in_actor uuid)
RETURNS TABLE (id uuid, seq bigint, sender_id uuid, deleted_at timestamptz, media_ids jsonb)
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    gone bigint[];
    media jsonb;
BEGIN
    WITH erased AS (
        UPDATE conversations.messages m SET content = '', metadata = NULL, signature = NULL,
            sender_public_key = NULL, deleted_at = clock_timestamp(), deleted_by = in_actor
        WHERE m.conversation_id = in_conversation AND m.seq = ANY (in_seqs) AND m.deleted_at IS NULL
        RETURNING m.seq
    ) SELECT array_agg(e.seq) INTO gone FROM erased e;
    IF gone IS NULL THEN
        RETURN;
    END IF;

    -- Those for whom they were uncounted already: they are counted as erased from now on.
    UPDATE conversations.members s SET uncounted = s.uncounted - (
        SELECT count(*) FROM unnest(gone) AS g (seq)
        WHERE g.seq > s.read_seq AND (
            EXISTS (SELECT FROM conversations.messages m
                WHERE m.conversation_id = in_conversation AND m.seq = g.seq AND m.sender_id = s.user_id)
            OR EXISTS (SELECT FROM conversations.hidden h
                WHERE h.conversation_id = in_conversation AND h.seq = g.seq AND h.user_id = s.user_id))
    )
    WHERE s.conversation_id = in_conversation AND s.uncounted > 0 AND s.user_id IN (
        SELECT m.sender_id FROM conversations.messages m
            WHERE m.conversation_id = in_conversation AND m.seq = ANY (gone)
        UNION SELECT h.user_id FROM conversations.hidden h
            WHERE h.conversation_id = in_conversation AND h.seq = ANY (gone)
    );

    INSERT INTO conversations.tombstones AS t (conversation_id, bucket, erased)
        SELECT in_conversation, g.seq >> 12, count(*) FROM unnest(gone) AS g (seq) GROUP BY 2
        ON CONFLICT (conversation_id, bucket) DO UPDATE SET erased = t.erased + excluded.erased;
    UPDATE conversations.conversations c SET tombstone_count = c.tombstone_count + cardinality(gone)
        WHERE c.id = in_conversation;
    DELETE FROM conversations.hidden h WHERE h.conversation_id = in_conversation AND h.seq = ANY (gone);
    DELETE FROM conversations.reactions r WHERE r.conversation_id = in_conversation AND r.seq = ANY (gone);
    DELETE FROM conversations.pins p WHERE p.conversation_id = in_conversation AND p.seq = ANY (gone);
    WITH unlinked AS (
        DELETE FROM conversations.attachments a WHERE a.conversation_id = in_conversation AND a.seq = ANY (gone)
        RETURNING a.seq, a.media_id
    ) SELECT jsonb_object_agg(per.seq, per.ids) INTO media
        FROM (SELECT u.seq, jsonb_agg(u.media_id) AS ids FROM unlinked u GROUP BY u.seq) per;
    DELETE FROM conversations.search s WHERE s.conversation_id = in_conversation AND s.seq = ANY (gone);
    RETURN QUERY SELECT m.id, m.seq, m.sender_id, m.deleted_at, coalesce(media -> m.seq::text, '[]') FROM conversations.messages m
        WHERE m.conversation_id = in_conversation AND m.seq = ANY (gone) ORDER BY m.seq;
END
$$;

-- Moves a member's read watermark up to in_seq, to the end when 0, never back; emits `read` when it moved.
-- Answers with a row for a member, with none for anybody else.
--
-- The member's row is locked first and read after that, so what is counted agrees with it: an erasure or a
-- hiding that is under way either has adjusted the row before, or will find read_seq past the message.
CREATE FUNCTION conversations.mark_read(in_conversation uuid, in_user uuid, in_seq bigint)
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
                WHERE h.conversation_id = in_conversation AND h.user_id = in_user
                    AND h.seq > seat.read_seq AND h.seq <= target
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

-- Appends a batch of messages, given as parallel arrays in append order, in one round trip and transaction.
--
-- Answers one row per message, in order:
--   outcome 'stored'   it is new; seq, sent_at and expires_at are its place and its end.
--   outcome 'found'    the same id is stored already: an earlier attempt had succeeded after all.
--   outcome 'repeated' the sender used the client_id before; `original` is what was stored then.
--   outcome 'not_a_member', 'no_conversation', 'no_reply_target', 'inactive': refused.
--   outcome 'muted', 'slow_mode': refused until `until`.
--   outcome 'absent'   insertable was false, and it is not stored.
-- The id is looked up only when `again` is true, for a first attempt carries fresh ids. Not inserting is for
-- messages whose sender was already told "unavailable": what remains is to learn how the attempt ended.
--
-- In PL/pgSQL, each statement sees what was committed before it began (READ COMMITTED). The first takes the
-- locks, so the second reads membership, last_seq and repeats as they are under those locks.
--
-- One row of the outbox stands for all new messages of the statement: {"messages": [[conversation, kind, first
-- seq, last seq], …]}; the expander 'conversations.messages' makes an event per message of it.
--
-- The settings keep a plan that was made while the tables were small from scanning them when they are not.
DROP FUNCTION conversations.append(
    boolean, boolean[], uuid[], uuid[], uuid[], text[], text[], bytea[], text[], uuid[], bytea[], bytea[]);
CREATE FUNCTION conversations.append(
    again boolean, insertable boolean[], ids uuid[], conversation_ids uuid[], sender_ids uuid[],
    client_ids text[], message_types text[], contents bytea[], metadatas text[], reply_to_ids uuid[],
    signatures bytea[], sender_public_keys bytea[], expire_after_s integer[]
) RETURNS TABLE (
    outcome text, seq bigint, sent_at timestamptz, expires_at timestamptz, until timestamptz, kind text,
    original conversations.messages)
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM conversations.conversations c
        WHERE c.id = ANY (conversation_ids) ORDER BY c.id FOR NO KEY UPDATE;

    RETURN QUERY
    WITH judged AS MATERIALIZED (
        SELECT i.*, c.last_seq, c.last_message_at, c.message_ttl_s, c.kind, known.row AS original, clock.now,
            CASE WHEN c.slow_mode_s > 0 AND seat.role = 'member' AND i.message_type <> 'system'
                THEN make_interval(secs => c.slow_mode_s) END AS pause,
            CASE WHEN seat.muted_until > clock.now THEN seat.muted_until
                ELSE seat.last_sent_at + make_interval(secs => c.slow_mode_s) END AS until,
            CASE
                WHEN known.by_id THEN 'found'
                WHEN NOT known.by_id THEN 'repeated'
                WHEN NOT i.insertable THEN 'absent'
                WHEN c.id IS NULL THEN 'no_conversation'
                WHEN seat.user_id IS NULL THEN 'not_a_member'
                WHEN NOT c.is_active THEN 'inactive'
                WHEN seat.muted_until > clock.now AND i.message_type <> 'system' THEN 'muted'
                WHEN i.reply_to_id IS NOT NULL AND NOT EXISTS (
                    SELECT FROM conversations.messages r
                    WHERE r.id = i.reply_to_id AND r.conversation_id = i.conversation_id
                        AND r.deleted_at IS NULL
                ) THEN 'no_reply_target'
                WHEN c.slow_mode_s > 0 AND seat.role = 'member' AND i.message_type <> 'system'
                    AND seat.last_sent_at + make_interval(secs => c.slow_mode_s) > clock.now THEN 'slow_mode'
                ELSE 'stored'
            END AS outcome
        FROM unnest(
            insertable, ids, conversation_ids, sender_ids, client_ids, message_types, contents,
            metadatas, reply_to_ids, signatures, sender_public_keys, expire_after_s
        ) WITH ORDINALITY AS i (
            insertable, id, conversation_id, sender_id, client_id, message_type, content,
            metadata, reply_to_id, signature, sender_public_key, expire_after_s, position
        )
        CROSS JOIN (SELECT clock_timestamp() AS now OFFSET 0) clock
        LEFT JOIN LATERAL (
            SELECT true AS by_id, m AS row FROM conversations.messages m WHERE again AND m.id = i.id
            UNION ALL
            SELECT false, m FROM conversations.messages m
                WHERE m.sender_id = i.sender_id AND m.client_id = i.client_id
            LIMIT 1
        ) known ON true
        LEFT JOIN LATERAL (
            SELECT c.id, c.last_seq, c.last_message_at, c.kind, c.is_active, c.slow_mode_s, c.message_ttl_s
            FROM conversations.conversations c WHERE c.id = i.conversation_id LIMIT 1
        ) c ON true
        LEFT JOIN LATERAL (
            SELECT m.user_id, m.role, m.muted_until, m.last_sent_at FROM conversations.members m
            WHERE m.conversation_id = i.conversation_id AND m.user_id = i.sender_id AND m.left_at IS NULL
            LIMIT 1
        ) seat ON true
    ), paced AS (
        -- Of several messages of one sender in one batch, a slow mode lets the first pass.
        SELECT j.*, 1 AS turn FROM judged j WHERE j.pause IS NULL OR j.outcome <> 'stored'
        UNION ALL
        SELECT j.*, row_number() OVER (PARTITION BY j.conversation_id, j.sender_id ORDER BY j.position)
        FROM judged j WHERE j.pause IS NOT NULL AND j.outcome = 'stored'
    ), numbered AS MATERIALIZED (
        SELECT p.*, p.turn = 1 AND p.outcome = 'stored' AS storable,
            p.last_seq + count(*) FILTER (WHERE p.turn = 1 AND p.outcome = 'stored')
                OVER (PARTITION BY p.conversation_id ORDER BY p.position) AS seq,
            -- The clock may step back; the times of a conversation do not.
            greatest(p.now, p.last_message_at) AS sent_at,
            coalesce(nullif(p.expire_after_s, 0), nullif(p.message_ttl_s, 0)) AS lives_s
        FROM paced p
    ), stored AS (
        INSERT INTO conversations.messages (
            conversation_id, seq, id, sender_id, message_type, content, metadata, client_id, reply_to_id,
            signature, sender_public_key, sent_at, expires_at)
        SELECT n.conversation_id, n.seq, n.id, n.sender_id, n.message_type, n.content, n.metadata::jsonb,
            n.client_id, n.reply_to_id, n.signature, n.sender_public_key, n.sent_at,
            n.sent_at + make_interval(secs => n.lives_s)
        FROM numbered n WHERE n.storable ORDER BY n.position
    ), ranges AS MATERIALIZED (
        SELECT n.conversation_id, n.kind, min(n.seq) AS first_seq, max(n.seq) AS last_seq,
            max(n.sent_at) AS sent_at
        FROM numbered n WHERE n.storable GROUP BY n.conversation_id, n.kind
    ), advanced AS (
        UPDATE conversations.conversations c SET last_seq = top.last_seq, last_message_at = top.sent_at
        FROM ranges top WHERE c.id = top.conversation_id
    ), counted AS (
        UPDATE conversations.members m SET
            uncounted = m.uncounted + own.sent,
            last_sent_at = CASE WHEN own.paced THEN own.sent_at ELSE m.last_sent_at END
        FROM (
            SELECT n.conversation_id, n.sender_id, count(*) AS sent, max(n.sent_at) AS sent_at,
                bool_or(n.pause IS NOT NULL) AS paced
            FROM numbered n WHERE n.storable GROUP BY n.conversation_id, n.sender_id
        ) own
        WHERE m.conversation_id = own.conversation_id AND m.user_id = own.sender_id
    ), emitted AS MATERIALIZED (
        SELECT events.emit_batch('conversations.messages', jsonb_build_object('messages', jsonb_agg(
            jsonb_build_array(r.conversation_id, r.kind, r.first_seq, r.last_seq))))
        FROM ranges r HAVING count(*) > 0
    )
    SELECT CASE WHEN n.outcome = 'stored' AND NOT n.storable THEN 'slow_mode' ELSE n.outcome END,
        n.seq, n.sent_at, n.sent_at + make_interval(secs => n.lives_s),
        CASE WHEN n.outcome = 'stored' AND NOT n.storable THEN n.now + n.pause ELSE n.until END,
        n.kind, n.original
    FROM numbered n, (SELECT count(*) FROM emitted) AS told ORDER BY n.position;
END
$$;
