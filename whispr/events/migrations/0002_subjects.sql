-- What a consumer listens to in a stream, so that its lag can be told by those who do not run it.

ALTER TABLE events.positions ADD COLUMN subjects text[] NOT NULL DEFAULT '{}';
