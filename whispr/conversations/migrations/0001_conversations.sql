-- Conversations, members, messages. PostgreSQL 14 or later.
--
-- Locks are always taken in this order, so that writers cannot deadlock: rows of conversations by id, then
-- rows of members. Everything that changes who is a member, and every append, locks the conversation first;
-- so an append decides about membership with nobody changing it meanwhile.

CREATE SCHEMA IF NOT EXISTS conversations;

CREATE TABLE conversations.conversations (
    id              uuid PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('direct', 'group', 'room')),
    name            text NOT NULL DEFAULT '',
    created_by      uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    -- The seq of the latest message; the next one gets last_seq + 1.
    last_seq        bigint NOT NULL DEFAULT 0 CHECK (last_seq BETWEEN 0 AND 4294967295),
    last_message_at timestamptz,
    member_count    integer NOT NULL DEFAULT 0 CHECK (member_count >= 0),
    settings        jsonb NOT NULL DEFAULT '{}',
    -- The two people of a direct conversation, sorted: at most one conversation for a pair.
    direct_key      text UNIQUE,
    CHECK ((kind = 'direct') = (direct_key IS NOT NULL))
) WITH (fillfactor = 50);
-- Each append rewrites its conversation's row. No index has a column that changes, and half of each page is
-- free, so these stay heap-only updates.

CREATE TABLE conversations.members (
    conversation_id uuid NOT NULL REFERENCES conversations.conversations (id),
    user_id         uuid NOT NULL,
    role            text NOT NULL CHECK (role IN ('member', 'moderator', 'admin', 'owner')),
    joined_at       timestamptz NOT NULL DEFAULT now(),
    left_at         timestamptz,
    delivered_seq   bigint NOT NULL DEFAULT 0,
    read_seq        bigint NOT NULL DEFAULT 0,
    read_at         timestamptz,
    -- How many messages after read_seq are the member's own. With it the unread count is arithmetic:
    -- last_seq - read_seq - own_after_read, exactly the messages of others after the read watermark.
    own_after_read  bigint NOT NULL DEFAULT 0 CHECK (own_after_read >= 0),
    PRIMARY KEY (conversation_id, user_id)
) WITH (fillfactor = 70);

CREATE INDEX members_of_user ON conversations.members (user_id) WHERE left_at IS NULL;

-- No foreign keys: the only writer, conversations.append below, has just locked and read the rows they would
-- check, and a trigger per message is a tenth of its cost.
CREATE TABLE conversations.messages (
    conversation_id   uuid NOT NULL,
    seq               bigint NOT NULL,
    id                uuid NOT NULL,
    sender_id         uuid NOT NULL,
    message_type      text NOT NULL,
    content           bytea NOT NULL,
    metadata          jsonb,
    client_id         text,
    reply_to_id       uuid,
    signature         bytea,
    sender_public_key bytea,
    sent_at           timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, seq)
);

CREATE UNIQUE INDEX messages_id ON conversations.messages (id);
CREATE UNIQUE INDEX messages_client_id ON conversations.messages (sender_id, client_id)
    WHERE client_id IS NOT NULL;

-- Published to other owners.
CREATE VIEW conversations.memberships AS
    SELECT m.conversation_id, m.user_id, m.role, m.joined_at, m.left_at, c.kind, m.read_at
    FROM conversations.members m
    JOIN conversations.conversations c ON c.id = m.conversation_id;

-- Appends a batch of messages, given as parallel arrays in append order, in one round trip and transaction.
--
-- Answers one row per message, in order:
--   outcome 'stored'   it is new; seq and sent_at are its place.
--   outcome 'found'    the same id is stored already: an earlier attempt had succeeded after all.
--   outcome 'repeated' the sender used the client_id before; `original` is what was stored then.
--   outcome 'not_a_member', 'no_conversation', 'no_reply_target': refused.
--   outcome 'absent'   insertable was false, and it is not stored.
-- The id is looked up only when `again` is true, for a first attempt carries fresh ids. Not inserting is for
-- messages whose sender was already told "unavailable": what remains is to learn how the attempt ended.
--
-- In PL/pgSQL, each statement sees what was committed before it began (READ COMMITTED). The first takes the
-- locks, so the second reads membership, last_seq and repeats as they are under those locks.
--
-- The settings keep a plan that was made while the tables were small from scanning them when they are not.
CREATE FUNCTION conversations.append(
    again boolean, insertable boolean[], ids uuid[], conversation_ids uuid[], sender_ids uuid[],
    client_ids text[], message_types text[], contents bytea[], metadatas text[], reply_to_ids uuid[],
    signatures bytea[], sender_public_keys bytea[]
) RETURNS TABLE (outcome text, seq bigint, sent_at timestamptz, original conversations.messages)
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
        SELECT i.*, c.last_seq, c.last_message_at, known.row AS original,
            CASE
                WHEN known.by_id THEN 'found'
                WHEN NOT known.by_id THEN 'repeated'
                WHEN NOT i.insertable THEN 'absent'
                WHEN c.id IS NULL THEN 'no_conversation'
                WHEN seat.user_id IS NULL THEN 'not_a_member'
                WHEN i.reply_to_id IS NOT NULL AND NOT EXISTS (
                    SELECT FROM conversations.messages r
                    WHERE r.id = i.reply_to_id AND r.conversation_id = i.conversation_id
                ) THEN 'no_reply_target'
                ELSE 'stored'
            END AS outcome
        FROM unnest(
            insertable, ids, conversation_ids, sender_ids, client_ids, message_types, contents,
            metadatas, reply_to_ids, signatures, sender_public_keys
        ) WITH ORDINALITY AS i (
            insertable, id, conversation_id, sender_id, client_id, message_type, content,
            metadata, reply_to_id, signature, sender_public_key, position
        )
        LEFT JOIN LATERAL (
            SELECT true AS by_id, m AS row FROM conversations.messages m WHERE again AND m.id = i.id
            UNION ALL
            SELECT false, m FROM conversations.messages m
                WHERE m.sender_id = i.sender_id AND m.client_id = i.client_id
            LIMIT 1
        ) known ON true
        LEFT JOIN LATERAL (
            SELECT c.id, c.last_seq, c.last_message_at FROM conversations.conversations c
            WHERE c.id = i.conversation_id LIMIT 1
        ) c ON true
        LEFT JOIN LATERAL (
            SELECT m.user_id FROM conversations.members m
            WHERE m.conversation_id = i.conversation_id AND m.user_id = i.sender_id AND m.left_at IS NULL
            LIMIT 1
        ) seat ON true
    ), numbered AS MATERIALIZED (
        SELECT j.*,
            j.last_seq + count(*) FILTER (WHERE j.outcome = 'stored')
                OVER (PARTITION BY j.conversation_id ORDER BY j.position) AS seq,
            -- The clock may step back; the times of a conversation do not.
            greatest(clock.now, j.last_message_at) AS sent_at
        FROM judged j CROSS JOIN (SELECT clock_timestamp() AS now OFFSET 0) clock
    ), stored AS (
        INSERT INTO conversations.messages (
            conversation_id, seq, id, sender_id, message_type, content, metadata, client_id, reply_to_id,
            signature, sender_public_key, sent_at)
        SELECT n.conversation_id, n.seq, n.id, n.sender_id, n.message_type, n.content, n.metadata::jsonb,
            n.client_id, n.reply_to_id, n.signature, n.sender_public_key, n.sent_at
        FROM numbered n WHERE n.outcome = 'stored' ORDER BY n.position
    ), advanced AS (
        UPDATE conversations.conversations c
        SET last_seq = top.seq, last_message_at = top.sent_at
        FROM (
            SELECT n.conversation_id, max(n.seq) AS seq, max(n.sent_at) AS sent_at
            FROM numbered n WHERE n.outcome = 'stored' GROUP BY n.conversation_id
        ) top
        WHERE c.id = top.conversation_id
    ), counted AS (
        UPDATE conversations.members m SET own_after_read = m.own_after_read + own.sent
        FROM (
            SELECT n.conversation_id, n.sender_id, count(*) AS sent
            FROM numbered n WHERE n.outcome = 'stored' GROUP BY n.conversation_id, n.sender_id
        ) own
        WHERE m.conversation_id = own.conversation_id AND m.user_id = own.sender_id
    )
    SELECT n.outcome, n.seq, n.sent_at, n.original FROM numbered n ORDER BY n.position;
END
$$;
