"""One driver each for the truth (PostgreSQL), the cache (Redis or Valkey) and the bus (NATS), behind Trio."""
