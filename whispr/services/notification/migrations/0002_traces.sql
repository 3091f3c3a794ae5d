-- The trace a message is of, for telling of it to be part of.
ALTER TABLE notifications.messages ADD COLUMN trace text NOT NULL DEFAULT '';
