-- Where sessions are used, tokens revoked one by one, accounts that are closed or deleted, data exports.

-- The address a session was last used from: IPv4, or the /64 of IPv6. Empty for sessions from before.
ALTER TABLE auth.sessions ADD COLUMN address text NOT NULL DEFAULT '';

-- Tokens of services have no session to end. Kept until they would have expired.
CREATE TABLE auth.revoked_tokens (
    token_id   text PRIMARY KEY,
    reason     text NOT NULL DEFAULT '',
    revoked_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

CREATE INDEX revoked_tokens_expiry ON auth.revoked_tokens (expires_at);

-- An account that an administrator closed is inactive and can be opened again. One that its owner deleted is
-- inactive for ever: `deleted_at` is set at once, `erased_at` when its personal data have been overwritten. The
-- row itself stays, for messages of others point to its id.
ALTER TABLE auth.accounts ADD COLUMN closed_reason text;
ALTER TABLE auth.accounts ADD COLUMN deleted_at timestamptz;
ALTER TABLE auth.accounts ADD COLUMN erased_at timestamptz;
ALTER TABLE auth.accounts ADD CHECK (deleted_at IS NULL OR NOT is_active);

CREATE INDEX accounts_to_erase ON auth.accounts (deleted_at) WHERE deleted_at IS NOT NULL AND erased_at IS NULL;
CREATE INDEX accounts_admins ON auth.accounts (id) WHERE role = 'admin';

-- Collections of everything held about a person. One at a time for an account. A worker that takes one says until
-- when it is to be believed; after that another may.
CREATE TABLE auth.exports (
    id              uuid PRIMARY KEY,
    account_id      uuid NOT NULL REFERENCES auth.accounts,
    requested_by    text NOT NULL,
    state           text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed')),
    requested_at    timestamptz NOT NULL DEFAULT now(),
    believed_until  timestamptz,
    attempts        integer NOT NULL DEFAULT 0,
    finished_at     timestamptz,
    expires_at      timestamptz,
    size_bytes      bigint NOT NULL DEFAULT 0,
    part_count      integer NOT NULL DEFAULT 0,
    failed_services text[] NOT NULL DEFAULT '{}',
    error           text NOT NULL DEFAULT ''
);

CREATE UNIQUE INDEX exports_under_way ON auth.exports (account_id) WHERE state IN ('queued', 'running');
CREATE INDEX exports_account ON auth.exports (account_id, requested_at DESC);
CREATE INDEX exports_expiry ON auth.exports (expires_at) WHERE expires_at IS NOT NULL;

-- The archive of an export in pieces, so that any process can give it out.
CREATE TABLE auth.export_parts (
    export_id uuid NOT NULL REFERENCES auth.exports ON DELETE CASCADE,
    part      integer NOT NULL CHECK (part >= 0),
    content   bytea NOT NULL,
    PRIMARY KEY (export_id, part)
);
