-- What waits for review in all conversations, the latest first.
CREATE INDEX flags_open_everywhere ON conversations.flags (flagged_at, message_id) WHERE reviewed_at IS NULL;
