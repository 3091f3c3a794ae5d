-- The trace of a row that stands for several events may come as the transaction's setting `whispr.trace`, past functions
-- that need not know of it. What is in it is between who sets it and the row's expander.

CREATE OR REPLACE FUNCTION events.emit_batch(
    expander text, data jsonb, about text DEFAULT '', actor uuid DEFAULT NULL, trace text DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    row_id uuid := events.new_id();
BEGIN
    INSERT INTO events.outbox (id, expander, about, actor, version, data, trace, emitted_at)
    VALUES (row_id, emit_batch.expander, emit_batch.about, emit_batch.actor, 1, emit_batch.data,
        coalesce(emit_batch.trace, nullif(current_setting('whispr.trace', true), '')), clock_timestamp());
    RETURN row_id;
END
$$;
