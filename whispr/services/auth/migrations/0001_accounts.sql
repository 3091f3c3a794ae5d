-- Accounts, their sessions (one per device), and the refresh tokens that keep a session alive.

CREATE SCHEMA auth;

CREATE TABLE auth.accounts (
    id            uuid PRIMARY KEY,
    username      text NOT NULL CHECK (username ~ '^[A-Za-z0-9._-]{3,32}$'),
    email         text,
    display_name  text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 64),
    role          text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'premium', 'moderator', 'admin')),
    is_active     boolean NOT NULL DEFAULT true,
    is_verified   boolean NOT NULL DEFAULT false,
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_login_at timestamptz
);

-- Names are compared without case. text_pattern_ops makes the same index serve LIKE 'prefix%'
-- whatever the database's collation.
CREATE UNIQUE INDEX accounts_username_key ON auth.accounts (lower(username) text_pattern_ops);
CREATE UNIQUE INDEX accounts_email_key ON auth.accounts (lower(email)) WHERE email IS NOT NULL;
CREATE INDEX accounts_display_name_prefix ON auth.accounts (lower(display_name) text_pattern_ops);

CREATE TABLE auth.sessions (
    id             uuid PRIMARY KEY,
    account_id     uuid NOT NULL REFERENCES auth.accounts ON DELETE CASCADE,
    device         text NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL,
    revoked_at     timestamptz,
    revoked_reason text
);

CREATE INDEX sessions_account ON auth.sessions (account_id);
CREATE INDEX sessions_expiry ON auth.sessions (expires_at);
CREATE INDEX sessions_revoked ON auth.sessions (revoked_at) WHERE revoked_at IS NOT NULL;

-- A token is stored as its SHA-256 alone: it has 256 random bits, so no slow hash is needed, and a copy
-- of this table signs nobody in. A used token stays until it would have expired: showing it again is how
-- theft is noticed.
CREATE TABLE auth.refresh_tokens (
    token_sha256 bytea PRIMARY KEY CHECK (length(token_sha256) = 32),
    session_id   uuid NOT NULL REFERENCES auth.sessions ON DELETE CASCADE,
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz
);

CREATE INDEX refresh_tokens_session ON auth.refresh_tokens (session_id);
CREATE INDEX refresh_tokens_expiry ON auth.refresh_tokens (expires_at);

-- What other services may read of an account.
CREATE VIEW auth.people AS
    SELECT id, username, display_name, created_at FROM auth.accounts WHERE is_active;
