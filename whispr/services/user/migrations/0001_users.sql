-- Who blocked whom. PostgreSQL 14 or later.

CREATE SCHEMA IF NOT EXISTS users;

CREATE TABLE users.blocks (
    user_id    uuid NOT NULL,
    blocked_id uuid NOT NULL,
    blocked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, blocked_id),
    CHECK (user_id <> blocked_id)
);

CREATE INDEX blocks_of_blocked ON users.blocks (blocked_id, user_id);
CREATE INDEX blocks_latest ON users.blocks (user_id, blocked_at DESC, blocked_id DESC);
