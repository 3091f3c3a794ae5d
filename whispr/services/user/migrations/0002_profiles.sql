-- What people say about themselves and to whom they show it, and whom they know. PostgreSQL 14 or later.

-- Whoever has no row has said nothing: every column's default.
CREATE TABLE users.profiles (
    user_id          uuid PRIMARY KEY,
    bio              text NOT NULL DEFAULT '',
    avatar_media_id  uuid,
    status_text      text NOT NULL DEFAULT '',
    locale           text NOT NULL DEFAULT '',
    time_zone        text NOT NULL DEFAULT '',
    message_privacy  text NOT NULL DEFAULT 'everyone' CHECK (message_privacy IN ('everyone', 'contacts', 'nobody')),
    presence_privacy text NOT NULL DEFAULT 'everyone' CHECK (presence_privacy IN ('everyone', 'contacts', 'nobody')),
    updated_at       timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX profiles_avatar ON users.profiles (avatar_media_id) WHERE avatar_media_id IS NOT NULL;

CREATE TABLE users.contacts (
    user_id    uuid NOT NULL,
    contact_id uuid NOT NULL,
    added_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, contact_id),
    CHECK (user_id <> contact_id)
);

CREATE INDEX contacts_of_contact ON users.contacts (contact_id, user_id);
CREATE INDEX contacts_latest ON users.contacts (user_id, added_at DESC, contact_id DESC);

-- Whether a block stands between two people, in either direction.
CREATE FUNCTION users.blocked(one uuid, other uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM users.blocks b WHERE b.user_id = one AND b.blocked_id = other)
        OR EXISTS (SELECT FROM users.blocks b WHERE b.user_id = other AND b.blocked_id = one)
$$;

-- Whether a person takes direct messages from another, and whether they show them when they are there. Blocks are
-- not looked at here.
CREATE FUNCTION users.admits(person uuid, other uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM users.profiles p WHERE p.user_id = person AND p.message_privacy <> 'everyone' AND (
            p.message_privacy = 'nobody'
            OR NOT EXISTS (SELECT FROM users.contacts c WHERE c.user_id = person AND c.contact_id = other)
        )
    )
$$;
CREATE FUNCTION users.shows(person uuid, other uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM users.profiles p WHERE p.user_id = person AND p.presence_privacy <> 'everyone' AND (
            p.presence_privacy = 'nobody'
            OR NOT EXISTS (SELECT FROM users.contacts c WHERE c.user_id = person AND c.contact_id = other)
        )
    )
$$;

-- Published to other owners: pictures that everybody who sees a profile may see, and where people are.
CREATE VIEW users.avatars AS
    SELECT user_id, avatar_media_id AS media_id FROM users.profiles WHERE avatar_media_id IS NOT NULL;
CREATE VIEW users.places AS SELECT user_id, locale, time_zone FROM users.profiles;
