-- Events of the whole product: the outbox they leave through, and what consumers remember.
--
-- A service writes its event in the transaction that makes it true, by calling events.emit. A relay takes rows
-- in the order of `position`, publishes them to JetStream under their ids, and deletes them once the stream has
-- stored them. So an event exists if and only if what it tells of was committed.
--
-- Order. Events about one thing are published in the order of their positions. Whoever emits holds the lock of
-- what the event is about, as by having updated its row: then positions are in commit order. Between events
-- that no lock orders there is none to keep.

CREATE SCHEMA IF NOT EXISTS events;

-- A UUIDv7 (RFC 9562, section 5.7), which PostgreSQL makes by itself only since 18.
CREATE FUNCTION events.new_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

CREATE TABLE events.outbox (
    position       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id             uuid NOT NULL,
    -- Either where the event goes, or the name of what makes events of this row when it is published.
    stream_subject text CHECK (stream_subject ~ '^(chat|stream|user|messaging)\.events\.[a-z][a-z0-9_]*$'),
    expander       text,
    about          text NOT NULL,
    actor          uuid,
    version        integer NOT NULL,
    data           jsonb NOT NULL,
    trace          text,
    emitted_at     timestamptz NOT NULL,
    CHECK ((stream_subject IS NULL) <> (expander IS NULL))
) WITH (
    -- A queue: rows live for a moment, and what is dead must not pile up at its head.
    autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_analyze_scale_factor = 10
);

-- Writes one event into the outbox, in the caller's transaction; returns its id.
--   stream_subject  such as 'messaging.events.message_sent'; its first word names the stream
--   about           what is ordered: a conversation's, a user's or a medium's id
--   actor           who did it; null for the system
--   trace           a W3C traceparent
--   version         of `data`'s shape
CREATE FUNCTION events.emit(
    stream_subject text, about text, actor uuid, data jsonb,
    trace text DEFAULT NULL, id uuid DEFAULT NULL, version integer DEFAULT 1
) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    event_id uuid := coalesce(emit.id, events.new_id());
BEGIN
    INSERT INTO events.outbox (id, stream_subject, about, actor, version, data, trace, emitted_at)
    VALUES (event_id, emit.stream_subject, emit.about, emit.actor, emit.version, emit.data, emit.trace,
        clock_timestamp());
    RETURN event_id;
END
$$;

-- Writes one row that stands for several events: the expander registered under that name makes them of it when
-- it is published. What they are about may differ; they keep their place in the order all the same.
CREATE FUNCTION events.emit_batch(
    expander text, data jsonb, about text DEFAULT '', actor uuid DEFAULT NULL, trace text DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    row_id uuid := events.new_id();
BEGIN
    INSERT INTO events.outbox (id, expander, about, actor, version, data, trace, emitted_at)
    VALUES (row_id, emit_batch.expander, emit_batch.about, emit_batch.actor, 1, emit_batch.data,
        emit_batch.trace, clock_timestamp());
    RETURN row_id;
END
$$;

-- Which events a consumer's handler has committed the effects of: a repeat finds its row and does nothing.
CREATE TABLE events.handled (
    consumer   text NOT NULL,
    event_id   text NOT NULL,
    handled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);

-- Rows come in the order of their time, so a block range index finds the old ones at hardly any cost.
CREATE INDEX handled_at ON events.handled USING brin (handled_at) WITH (pages_per_range = 32);

-- One row per consumer. One process at a time holds it, for as long as it keeps renewing the lease.
CREATE TABLE events.consumers (
    name        text PRIMARY KEY,
    holder      uuid,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    -- Set to have the consumer start over from the beginning of its streams.
    replay_at   timestamptz
) WITH (fillfactor = 50);

-- How far a consumer has come in a stream. Everything up to `floor` is done, and what `done_above` lists.
CREATE TABLE events.positions (
    consumer    text NOT NULL REFERENCES events.consumers (name) ON DELETE CASCADE,
    stream      text NOT NULL,
    -- When the stream was created: sequence numbers of another incarnation mean nothing.
    incarnation text NOT NULL,
    floor       bigint NOT NULL,
    done_above  bigint[] NOT NULL DEFAULT '{}',
    -- Sequence number → failed attempts, so that a failover does not start counting again.
    attempts    jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (consumer, stream)
) WITH (fillfactor = 50);

-- Events that a consumer gave up on, or (consumer 'relay') that could not be published.
CREATE TABLE events.dead_letters (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer       text NOT NULL,
    event_id       text NOT NULL,
    stream_subject text NOT NULL,
    about          text NOT NULL,
    payload        bytea NOT NULL,
    error          text NOT NULL,
    attempts       integer NOT NULL,
    died_at        timestamptz NOT NULL DEFAULT now(),
    -- Set to have the consumer try it again.
    replay_at      timestamptz,
    UNIQUE (consumer, event_id)
);

CREATE INDEX dead_letters_to_replay ON events.dead_letters (consumer, id) WHERE replay_at IS NOT NULL;
