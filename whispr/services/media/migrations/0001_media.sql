-- Media: what was announced, received, found out and linked. PostgreSQL 14 or later.
--
-- The bytes are in the object store, under <id>/…, and every object there is named by a row here before it is
-- written, or lies under the id of a row that is: so nothing is left behind when a process dies.
--
-- Locks are taken in this order: rows of media by id, then rows of usage by user.

CREATE SCHEMA media;

CREATE TABLE media.media (
    id                uuid PRIMARY KEY,
    owner_id          uuid NOT NULL,
    -- Where its owner said that it is meant for; links say where it is.
    conversation_id   uuid,
    filename          text NOT NULL,
    -- As declared while pending or processing, as found once ready.
    content_type      text NOT NULL,
    kind              text NOT NULL CHECK (kind IN ('image', 'video', 'audio', 'document')),
    status            text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'ready', 'error')),
    error_reason      text,
    error_message     text,
    -- As declared; what the parts must add up to.
    declared_bytes    bigint NOT NULL CHECK (declared_bytes > 0),
    received_bytes    bigint NOT NULL DEFAULT 0 CHECK (received_bytes BETWEEN 0 AND declared_bytes),
    part_count        integer NOT NULL DEFAULT 0,
    -- What it takes of its owner's quota: declared at first, then what is stored. 0 when it has failed.
    reserved_bytes    bigint NOT NULL CHECK (reserved_bytes >= 0),
    width             integer,
    height            integer,
    duration_s        double precision,
    waveform          bytea,
    custom_metadata   jsonb,
    -- When it is ready: [{"name": "original", "key": …, "type": …, "bytes": …, "sha256": …, "width": …, "height": …}]
    variants          jsonb,
    sha256            bytea,
    created_at        timestamptz NOT NULL DEFAULT now(),
    upload_expires_at timestamptz NOT NULL,
    completed_at      timestamptz,
    ready_at          timestamptz,
    -- Since when nothing links to it, null while something does: what is cleaned up goes by it.
    unlinked_at       timestamptz DEFAULT now()
);

CREATE INDEX media_of_owner ON media.media (owner_id, id);
CREATE INDEX media_pending_of_owner ON media.media (owner_id) WHERE status = 'pending';
CREATE INDEX media_pending ON media.media (upload_expires_at) WHERE status = 'pending';
CREATE INDEX media_unlinked ON media.media (unlinked_at) WHERE unlinked_at IS NOT NULL AND status <> 'pending';
CREATE INDEX media_sha256 ON media.media (sha256) WHERE sha256 IS NOT NULL;

-- What has been received, in pieces that are objects of their own. They go when processing is done.
CREATE TABLE media.parts (
    media_id uuid NOT NULL REFERENCES media.media (id) ON DELETE CASCADE,
    start    bigint NOT NULL,
    bytes    bigint NOT NULL CHECK (bytes > 0),
    key      text NOT NULL,
    PRIMARY KEY (media_id, start)
);

-- How much each person's media take: always the sum of their reserved_bytes.
CREATE TABLE media.usage (
    user_id uuid PRIMARY KEY,
    bytes   bigint NOT NULL CHECK (bytes >= 0)
) WITH (fillfactor = 50);

CREATE FUNCTION media.count_usage() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    change bigint := coalesce(new.reserved_bytes, 0) - coalesce(old.reserved_bytes, 0);
BEGIN
    IF change <> 0 THEN
        INSERT INTO media.usage AS u (user_id, bytes)
            VALUES (coalesce(new.owner_id, old.owner_id), greatest(change, 0))
            ON CONFLICT (user_id) DO UPDATE SET bytes = u.bytes + change;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_usage AFTER INSERT OR DELETE OR UPDATE OF reserved_bytes ON media.media
    FOR EACH ROW EXECUTE FUNCTION media.count_usage();

-- What is to be processed. A worker takes one by writing its lease, and keeps it by renewing that; when the
-- worker dies, the lease runs out and the next one takes the job.
CREATE TABLE media.jobs (
    media_id    uuid PRIMARY KEY REFERENCES media.media (id) ON DELETE CASCADE,
    attempts    integer NOT NULL DEFAULT 0,
    -- When it may be tried next.
    run_at      timestamptz NOT NULL DEFAULT now(),
    lease       uuid,
    lease_until timestamptz,
    last_error  text
);
CREATE INDEX jobs_due ON media.jobs (run_at);

CREATE TABLE media.links (
    id              uuid PRIMARY KEY,
    media_id        uuid NOT NULL REFERENCES media.media (id) ON DELETE CASCADE,
    message_id      uuid NOT NULL,
    conversation_id uuid NOT NULL,
    -- Null when they have deleted their account.
    linked_by       uuid,
    linked_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (media_id, message_id)
);
CREATE INDEX links_of_message ON media.links (message_id);
CREATE INDEX links_by_user ON media.links (linked_by, id);

-- Keeps unlinked_at. Whoever links or unlinks has locked the medium's row.
CREATE FUNCTION media.mark_linked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_op = 'INSERT' THEN
        UPDATE media.media m SET unlinked_at = NULL WHERE m.id = new.media_id AND m.unlinked_at IS NOT NULL;
    ELSE
        UPDATE media.media m SET unlinked_at = now() WHERE m.id = old.media_id
            AND NOT EXISTS (SELECT FROM media.links l WHERE l.media_id = old.media_id);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER mark_linked AFTER INSERT OR DELETE ON media.links
    FOR EACH ROW EXECUTE FUNCTION media.mark_linked();

-- Messages that are gone: a link that was on its way when its message was deleted is refused on arrival.
CREATE TABLE media.gone_messages (
    message_id uuid PRIMARY KEY,
    gone_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX gone_messages_at ON media.gone_messages (gone_at);

-- Folders of the object store to be emptied. Each is emptied twice, the second time long after, in case a write
-- was on its way at the first.
CREATE TABLE media.garbage (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    folder text NOT NULL,
    due_at timestamptz NOT NULL DEFAULT now(),
    again  boolean NOT NULL DEFAULT true
);
CREATE INDEX garbage_due ON media.garbage (due_at);

-- Whatever deletes a medium, its objects follow.
CREATE FUNCTION media.discard_objects() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO media.garbage (folder) VALUES (old.id::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER discard_objects AFTER DELETE ON media.media
    FOR EACH ROW EXECUTE FUNCTION media.discard_objects();
