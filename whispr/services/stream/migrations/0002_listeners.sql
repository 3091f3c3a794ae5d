-- A listener whose HLS session goes on after silence has more than one listening: each is a row, of the same listener.

ALTER TABLE streams.sessions ADD COLUMN listener_id uuid;
UPDATE streams.sessions SET listener_id = id;
ALTER TABLE streams.sessions ALTER COLUMN listener_id SET NOT NULL;
