-- Devices, preferences, inboxes, and pushes on their way. PostgreSQL 14 or later.
--
-- Reads what others publish: conversations.memberships and auth.people.
--
-- A message reaches people in two steps. The event of it leaves a row in `messages` and a due time in `bursts`;
-- when that has come, one process takes the burst and, in one transaction, writes the inbox entries and the
-- deliveries of all its messages and deletes them. Deliveries are then claimed and sent one by one.

CREATE SCHEMA IF NOT EXISTS notifications;

CREATE TABLE notifications.devices (
    id                uuid PRIMARY KEY,
    user_id           uuid NOT NULL,
    platform          text NOT NULL CHECK (platform IN ('webpush', 'fcm', 'apns', 'webhook')),
    token             text NOT NULL,
    -- Tokens may be longer than an index entry.
    token_sha256      bytea NOT NULL,
    p256dh            bytea,
    auth              bytea,
    -- What a webhook's requests are signed with.
    secret            text,
    name              text NOT NULL DEFAULT '',
    -- The sign-in it was registered in, and ends with; null for a webhook, which is no device of a person's.
    session_id        text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    last_delivered_at timestamptz,
    -- Refusals since the last success; a device that refuses for good is removed.
    refusals          integer NOT NULL DEFAULT 0,
    UNIQUE (platform, token_sha256)
);
CREATE INDEX devices_of_session ON notifications.devices (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX devices_of_user ON notifications.devices (user_id, created_at, id);

CREATE TABLE notifications.preferences (
    user_id     uuid PRIMARY KEY,
    enabled     boolean NOT NULL DEFAULT true,
    previews    boolean NOT NULL DEFAULT true,
    -- {"from": minute of the day, "to": minute, "time_zone": name, "days": [1..7], "also_urgent": bool}
    quiet_hours jsonb,
    types       jsonb NOT NULL DEFAULT '{}',
    updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE notifications.conversation_preferences (
    user_id         uuid NOT NULL,
    conversation_id uuid NOT NULL,
    level           text NOT NULL DEFAULT 'default' CHECK (level IN ('default', 'all', 'mentions', 'none')),
    muted_until     timestamptz,
    PRIMARY KEY (conversation_id, user_id)
);
CREATE INDEX conversation_preferences_of_user ON notifications.conversation_preferences (user_id);

CREATE TABLE notifications.inbox (
    user_id         uuid NOT NULL,
    id              uuid NOT NULL,
    type            text NOT NULL,
    conversation_id uuid,
    actor_id        uuid,
    message_id      uuid,
    seq             bigint,
    title           text NOT NULL,
    body            text NOT NULL,
    data            jsonb NOT NULL DEFAULT '{}',
    priority        smallint NOT NULL,
    count           integer NOT NULL DEFAULT 1,
    at              timestamptz NOT NULL,
    read_at         timestamptz,
    -- Whether later messages of the conversation go into this entry while it is unread.
    gathers         boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_id, id)
);
CREATE INDEX inbox_latest ON notifications.inbox (user_id, at DESC, id DESC);
CREATE INDEX inbox_unread ON notifications.inbox (user_id, conversation_id) WHERE read_at IS NULL;
CREATE UNIQUE INDEX inbox_gathering ON notifications.inbox (user_id, conversation_id)
    WHERE read_at IS NULL AND gathers;
CREATE INDEX inbox_of_message ON notifications.inbox (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX inbox_at ON notifications.inbox (at);

-- A push to a device. It is written before it is sent and claimed ('sending') before the request is made; a
-- process that dies in between leaves 'unknown' behind, which is never sent again: at most once.
CREATE TABLE notifications.deliveries (
    id              uuid PRIMARY KEY,
    device_id       uuid NOT NULL,
    user_id         uuid NOT NULL,
    notification_id uuid NOT NULL,
    -- What is told; told to a device once.
    about           text NOT NULL,
    collapse_key    text NOT NULL,
    push            jsonb NOT NULL,
    state           text NOT NULL CHECK (state IN (
        'pending', 'sending', 'delivered', 'gone', 'refused', 'expired', 'superseded', 'read', 'unknown')),
    attempts        integer NOT NULL DEFAULT 0,
    due_at          timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    lease_until     timestamptz,
    error           text NOT NULL DEFAULT '',
    finished_at     timestamptz,
    UNIQUE (device_id, about)
) WITH (fillfactor = 70);
CREATE INDEX deliveries_due ON notifications.deliveries (due_at) WHERE state = 'pending';
CREATE INDEX deliveries_leased ON notifications.deliveries (lease_until) WHERE state = 'sending';
CREATE INDEX deliveries_of_user ON notifications.deliveries (user_id, notification_id);
CREATE INDEX deliveries_finished ON notifications.deliveries (finished_at) WHERE finished_at IS NOT NULL;

-- Messages that people have not been told of yet.
CREATE TABLE notifications.messages (
    message_id      uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    seq             bigint NOT NULL,
    sender_id       uuid NOT NULL,
    -- What may be shown of it; null when that is nothing.
    preview         text,
    mentions        uuid[] NOT NULL DEFAULT '{}',
    silent          boolean NOT NULL DEFAULT false,
    sent_at         timestamptz NOT NULL
);
CREATE INDEX messages_of_conversation ON notifications.messages (conversation_id, seq);

-- Conversations with such messages, and when people are told. One process at a time has it in hand.
CREATE TABLE notifications.bursts (
    conversation_id uuid PRIMARY KEY,
    kind            text NOT NULL,
    due_at          timestamptz NOT NULL,
    lease_until     timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
CREATE INDEX bursts_due ON notifications.bursts (due_at);
