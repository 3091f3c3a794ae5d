-- Rooms: what a conversation of kind room has besides, who is kept out of it and who is let in, what members
-- reported and moderators did, and figures derived from messages.
--
-- Locks are taken as 0001 says: the conversation's row first. Everything below that decides about one room is
-- changed under that lock.

CREATE TABLE conversations.rooms (
    id           uuid PRIMARY KEY REFERENCES conversations.conversations (id),
    type         text NOT NULL CHECK (type IN ('PUBLIC', 'PRIVATE', 'PREMIUM')),
    visibility   text NOT NULL CHECK (visibility IN ('OPEN', 'INVITE_ONLY', 'HIDDEN')),
    description  text NOT NULL DEFAULT '',
    -- The room's own limit, below the operator's; 0 is none.
    member_limit integer NOT NULL DEFAULT 0 CHECK (member_limit >= 0),
    antispam     boolean NOT NULL DEFAULT true,
    -- The conversation's name in lower case, for search; kept by a trigger.
    name_key     text NOT NULL,
    closed_at    timestamptz
);

CREATE INDEX rooms_listed ON conversations.rooms (id) WHERE closed_at IS NULL AND visibility <> 'HIDDEN';
CREATE INDEX rooms_listed_by_visibility ON conversations.rooms (visibility, id) WHERE closed_at IS NULL;
CREATE INDEX rooms_by_name ON conversations.rooms (name_key text_pattern_ops, id)
    WHERE closed_at IS NULL AND visibility <> 'HIDDEN';

-- How many rooms are listed, so that a list can say its total without counting them.
CREATE TABLE conversations.room_counts (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    open        bigint NOT NULL DEFAULT 0,
    invite_only bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);
INSERT INTO conversations.room_counts DEFAULT VALUES;

CREATE FUNCTION conversations.count_room() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was text := CASE WHEN TG_OP = 'UPDATE' AND OLD.closed_at IS NULL THEN OLD.visibility END;
    now_is text := CASE WHEN NEW.closed_at IS NULL THEN NEW.visibility END;
BEGIN
    IF was IS DISTINCT FROM now_is THEN
        UPDATE conversations.room_counts SET
            open = open + (coalesce(now_is, '') = 'OPEN')::int - (coalesce(was, '') = 'OPEN')::int,
            invite_only = invite_only
                + (coalesce(now_is, '') = 'INVITE_ONLY')::int - (coalesce(was, '') = 'INVITE_ONLY')::int;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_room AFTER INSERT OR UPDATE OF visibility, closed_at ON conversations.rooms
    FOR EACH ROW EXECUTE FUNCTION conversations.count_room();

CREATE FUNCTION conversations.room_renamed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE conversations.rooms r SET name_key = lower(NEW.name) WHERE r.id = NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER room_renamed AFTER UPDATE OF name ON conversations.conversations
    FOR EACH ROW WHEN (NEW.kind = 'room' AND NEW.name <> OLD.name) EXECUTE FUNCTION conversations.room_renamed();

-- Who is kept out. A ban that has run out is as good as none; the next one replaces it.
CREATE TABLE conversations.bans (
    conversation_id uuid NOT NULL,
    user_id         uuid NOT NULL,
    until           timestamptz NOT NULL,
    reason          text NOT NULL,
    -- Null for the machine.
    banned_by       uuid,
    banned_at       timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, user_id)
);
CREATE INDEX bans_of_room ON conversations.bans (conversation_id, banned_at, user_id);
CREATE INDEX bans_of_user ON conversations.bans (user_id);

-- Whatever gives somebody a seat, a banned person does not get one.
CREATE FUNCTION conversations.refuse_banned() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM conversations.bans b
        WHERE b.conversation_id = NEW.conversation_id AND b.user_id = NEW.user_id AND b.until > clock_timestamp()
    ) THEN
        RAISE EXCEPTION '% is banned from %', NEW.user_id, NEW.conversation_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'members_not_banned';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER refuse_banned BEFORE INSERT OR UPDATE OF left_at ON conversations.members
    FOR EACH ROW WHEN (NEW.left_at IS NULL) EXECUTE FUNCTION conversations.refuse_banned();

-- Who is let in: a person, once, or whoever shows the code. What is used up, taken back or out of time is
-- removed when somebody comes across it.
CREATE TABLE conversations.invitations (
    id              uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    user_id         uuid,
    code            text UNIQUE,
    created_by      uuid NOT NULL,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    -- 0 is no limit.
    uses_max        integer NOT NULL CHECK (uses_max >= 0),
    uses            integer NOT NULL DEFAULT 0,
    CHECK ((user_id IS NULL) <> (code IS NULL)),
    CONSTRAINT invitations_uses CHECK (uses_max = 0 OR uses <= uses_max)
);
CREATE UNIQUE INDEX invitations_of_person ON conversations.invitations (conversation_id, user_id)
    WHERE user_id IS NOT NULL;
CREATE INDEX invitations_of_room ON conversations.invitations (conversation_id, id);
CREATE INDEX invitations_of_user ON conversations.invitations (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX invitations_by ON conversations.invitations (created_by);
CREATE INDEX invitations_expiring ON conversations.invitations (expires_at);

-- Who reported which message, and why.
CREATE TABLE conversations.reports (
    message_id      uuid NOT NULL,
    reporter_id     uuid NOT NULL,
    conversation_id uuid NOT NULL,
    reason          text NOT NULL,
    reported_at     timestamptz NOT NULL,
    PRIMARY KEY (message_id, reporter_id)
);
CREATE INDEX reports_of_user ON conversations.reports (reporter_id);

-- Messages that were reported or flagged. Once reviewed they are in no list; a new report opens them again.
CREATE TABLE conversations.flags (
    message_id      uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    seq             bigint NOT NULL,
    reports         integer NOT NULL DEFAULT 0,
    flagged         boolean NOT NULL DEFAULT false,
    hidden          boolean NOT NULL DEFAULT false,
    flagged_at      timestamptz NOT NULL,
    reviewed_at     timestamptz
);
CREATE INDEX flags_open ON conversations.flags (conversation_id, flagged_at, message_id) WHERE reviewed_at IS NULL;

-- What a hidden message said, for its review: only moderators see it, and it can be put back.
CREATE TABLE conversations.withheld (
    message_id        uuid PRIMARY KEY,
    conversation_id   uuid NOT NULL,
    seq               bigint NOT NULL,
    sender_id         uuid NOT NULL,
    content           bytea NOT NULL,
    metadata          jsonb,
    signature         bytea,
    sender_public_key bytea,
    edited_at         timestamptz,
    withheld_at       timestamptz NOT NULL
);
CREATE INDEX withheld_of_sender ON conversations.withheld (sender_id);

-- What was done by way of moderation. Rows are added and never touched again.
CREATE TABLE conversations.audit (
    conversation_id uuid NOT NULL,
    position        bigint GENERATED ALWAYS AS IDENTITY,
    id              uuid NOT NULL DEFAULT events.new_id(),
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Null for the machine.
    actor_id        uuid,
    action          text NOT NULL,
    target_id       uuid,
    message_id      uuid,
    reason          text NOT NULL DEFAULT '',
    details         jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (conversation_id, position)
);
CREATE INDEX audit_of_target ON conversations.audit (conversation_id, target_id, position);
CREATE INDEX audit_by_target ON conversations.audit (target_id);
CREATE INDEX audit_by_actor ON conversations.audit (actor_id);

CREATE FUNCTION conversations.refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only ever added to'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'audit_append_only';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON conversations.audit
    FOR EACH STATEMENT EXECUTE FUNCTION conversations.refuse_rewriting();

-- How much each person has sent, derived from the messages, and how far each conversation has been counted.
CREATE TABLE conversations.sent_counts (
    user_id         uuid PRIMARY KEY,
    messages_sent   bigint NOT NULL,
    last_message_at timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE conversations.counted (
    conversation_id uuid PRIMARY KEY,
    seq             bigint NOT NULL
) WITH (fillfactor = 50);

-- Counts what was sent in a conversation since it was last counted, at most 5,000 messages of it; returns how
-- far it has been counted now. Counting twice changes nothing, for the mark and the counts move together.
CREATE FUNCTION conversations.count_sent(in_conversation uuid) RETURNS bigint
LANGUAGE plpgsql
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    done bigint;
    target bigint;
BEGIN
    INSERT INTO conversations.counted (conversation_id, seq) VALUES (in_conversation, 0)
        ON CONFLICT (conversation_id) DO NOTHING;
    SELECT c.seq INTO done FROM conversations.counted c WHERE c.conversation_id = in_conversation
        FOR NO KEY UPDATE;
    SELECT least(c.last_seq, done + 5000) INTO target FROM conversations.conversations c
        WHERE c.id = in_conversation;
    IF target IS NULL OR target <= done THEN
        RETURN done;
    END IF;
    -- In the order of people, so that conversations counted side by side do not deadlock.
    INSERT INTO conversations.sent_counts AS s (user_id, messages_sent, last_message_at)
        SELECT m.sender_id, count(*), max(m.sent_at) FROM conversations.messages m
        WHERE m.conversation_id = in_conversation AND m.seq > done AND m.seq <= target
        GROUP BY m.sender_id ORDER BY m.sender_id
        ON CONFLICT (user_id) DO UPDATE SET
            messages_sent = s.messages_sent + excluded.messages_sent,
            last_message_at = greatest(s.last_message_at, excluded.last_message_at);
    UPDATE conversations.counted c SET seq = target WHERE c.conversation_id = in_conversation;
    RETURN target;
END
$$;

-- The seq of the last message of a conversation that was sent before a moment, 0 for none: seqs and times grow
-- together, so some twenty look-ups find it among millions.
CREATE FUNCTION conversations.seq_before(in_conversation uuid, in_last bigint, in_moment timestamptz)
RETURNS bigint
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
AS $$
DECLARE
    low bigint := 0;
    high bigint := in_last;
    middle bigint;
    at timestamptz;
BEGIN
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        SELECT m.sent_at INTO at FROM conversations.messages m
            WHERE m.conversation_id = in_conversation AND m.seq = middle;
        IF at < in_moment THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    RETURN low;
END
$$;
