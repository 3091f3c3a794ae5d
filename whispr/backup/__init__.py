"""Backups: everything that cannot be derived, in one file, and back.

What is in it, and why it is enough:

* PostgreSQL, as of one moment (an exported snapshot), as the SQL that pg_dump writes. It is the truth: accounts,
  conversations, messages, the outbox, what consumers have derived and how far they have come.
* The events that had left the outbox at that moment and that some consumer had still to handle, read from
  JetStream. At a restore they go back into the outbox, ahead of what is in it; for consumers that were done with one
  it is marked as handled. So NATS starts empty, and no effect is skipped or happens twice.
* The media and the recordings in local folders. In S3 they are that service's to keep.
* The keys that sign tokens and URLs, and the one that push services know. So the file is a secret: mode 0600.

Nothing of Valkey: limits and presence are of the moment, and ended sessions are told again from PostgreSQL.
"""

from __future__ import annotations
