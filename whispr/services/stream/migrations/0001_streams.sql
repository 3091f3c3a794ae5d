-- Streams, who may listen, who listened, what was recorded. PostgreSQL 14 or later.
--
-- Reads what auth publishes: auth.people. What changes by the second (who listens now, how it sounds) is in Redis;
-- what came of it is rolled up into `hours`.

CREATE SCHEMA streams;

CREATE TABLE streams.streams (
    id              uuid PRIMARY KEY,
    title           text NOT NULL,
    description     text NOT NULL DEFAULT '',
    category        text NOT NULL,
    visibility      text NOT NULL
        CHECK (visibility IN ('PUBLIC_STREAM', 'UNLISTED', 'PRIVATE_STREAM', 'PREMIUM_ONLY')),
    streamer_id     uuid NOT NULL,
    status          text NOT NULL DEFAULT 'CREATED'
        CHECK (status IN ('CREATED', 'LIVE', 'PAUSED', 'ENDED', 'ERROR')),
    -- Null for AUTO.
    default_quality text CHECK (default_quality IN ('low', 'medium', 'high', 'ultra')),
    config          jsonb NOT NULL DEFAULT '{}',
    metadata        jsonb NOT NULL DEFAULT '{}',
    volume          integer NOT NULL DEFAULT 100 CHECK (volume BETWEEN 0 AND 100),
    room_id         uuid,
    -- Of what sources send with; the key itself is nowhere.
    key_sha256      bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    -- When something was last sent to it, to half a minute.
    sourced_at      timestamptz,
    ended_at        timestamptz,
    end_reason      text NOT NULL DEFAULT '',
    CHECK ((status IN ('ENDED', 'ERROR')) = (ended_at IS NOT NULL))
);
CREATE INDEX streams_of_streamer ON streams.streams (streamer_id, id);
CREATE INDEX streams_running ON streams.streams (started_at) WHERE status IN ('LIVE', 'PAUSED');

-- Who may listen to a private stream.
CREATE TABLE streams.invitations (
    stream_id  uuid NOT NULL REFERENCES streams.streams (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL,
    invited_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream_id, user_id)
);
CREATE INDEX invitations_of_user ON streams.invitations (user_id);

-- Who was put out of one, and may not come back.
CREATE TABLE streams.removals (
    stream_id  uuid NOT NULL REFERENCES streams.streams (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream_id, user_id)
);
CREATE INDEX removals_of_user ON streams.removals (user_id);

-- Each listening, from its beginning. `left_at` is null while it goes on.
CREATE TABLE streams.sessions (
    id             uuid PRIMARY KEY,
    stream_id      uuid NOT NULL REFERENCES streams.streams (id) ON DELETE CASCADE,
    -- Null for somebody without an account.
    user_id        uuid,
    transport      text NOT NULL,
    country        text NOT NULL DEFAULT '',
    joined_at      timestamptz NOT NULL,
    left_at        timestamptz,
    reason         text NOT NULL DEFAULT '',
    -- Seconds by quality: {"medium": 61.5}.
    qualities      jsonb NOT NULL DEFAULT '{}',
    rebuffers      integer NOT NULL DEFAULT 0,
    dropped_frames integer NOT NULL DEFAULT 0,
    bytes_sent     bigint NOT NULL DEFAULT 0
);
CREATE INDEX sessions_of_stream ON streams.sessions (stream_id, joined_at);
CREATE INDEX sessions_of_user ON streams.sessions (user_id, joined_at DESC) WHERE user_id IS NOT NULL;
CREATE INDEX sessions_open ON streams.sessions (stream_id) WHERE left_at IS NULL;

-- Counters of one hour, as Redis had them when they were last read. `born` is made with the counters: when Redis
-- loses them, those that begin anew add to these rather than replace them.
CREATE TABLE streams.hours (
    stream_id  uuid NOT NULL REFERENCES streams.streams (id) ON DELETE CASCADE,
    hour       timestamptz NOT NULL,
    born       text NOT NULL,
    peak       integer NOT NULL DEFAULT 0,
    joined     integer NOT NULL DEFAULT 0,
    departed   integer NOT NULL DEFAULT 0,
    listen_ms  bigint NOT NULL DEFAULT 0,
    rebuffers  integer NOT NULL DEFAULT 0,
    bytes_sent bigint NOT NULL DEFAULT 0,
    -- Milliseconds by quality.
    qualities  jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (stream_id, hour, born)
);

CREATE TABLE streams.recordings (
    id          uuid PRIMARY KEY,
    stream_id   uuid NOT NULL REFERENCES streams.streams (id) ON DELETE CASCADE,
    streamer_id uuid NOT NULL,
    title       text NOT NULL,
    status      text NOT NULL DEFAULT 'RECORDING'
        CHECK (status IN ('RECORDING', 'PROCESSING', 'COMPLETED', 'FAILED')),
    quality     text NOT NULL,
    codec       text NOT NULL,
    auto_upload boolean NOT NULL DEFAULT true,
    -- The node whose disk has it while it is recorded; empty before one has begun.
    node        text NOT NULL DEFAULT '',
    -- In the object store, once it is complete.
    object_key  text NOT NULL DEFAULT '',
    bytes       bigint NOT NULL DEFAULT 0,
    duration_s  double precision NOT NULL DEFAULT 0,
    error       text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    expires_at  timestamptz
);
CREATE INDEX recordings_of_streamer ON streams.recordings (streamer_id, id);
CREATE INDEX recordings_of_stream ON streams.recordings (stream_id);
CREATE INDEX recordings_under_way ON streams.recordings (stream_id) WHERE status IN ('RECORDING', 'PROCESSING');
CREATE INDEX recordings_expiring ON streams.recordings (expires_at) WHERE expires_at IS NOT NULL;
