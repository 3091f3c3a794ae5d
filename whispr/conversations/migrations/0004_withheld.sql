-- What was kept of a hidden message for its review goes when the message itself does, whoever erases it.
CREATE FUNCTION conversations.forget_withheld() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM conversations.withheld w WHERE w.message_id = NEW.id;
    UPDATE conversations.flags f SET reviewed_at = clock_timestamp(), hidden = false
        WHERE f.message_id = NEW.id AND f.reviewed_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER forget_withheld AFTER UPDATE OF deleted_at ON conversations.messages
    FOR EACH ROW WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL)
    EXECUTE FUNCTION conversations.forget_withheld();
