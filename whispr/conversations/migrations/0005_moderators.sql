-- Who moderates a conversation, without reading all its members.
CREATE INDEX members_who_moderate ON conversations.members (conversation_id, user_id)
    WHERE left_at IS NULL AND role <> 'member';
