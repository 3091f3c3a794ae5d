-- What other services may read of sessions: those that have ended. Processes remember an ended session only for as
-- long as an access token of it may live; who keeps somebody in for longer, as the stream service does with signed
-- URLs, asks here.
CREATE VIEW auth.ended_sessions AS
    SELECT id FROM auth.sessions WHERE revoked_at IS NOT NULL OR expires_at <= now();
