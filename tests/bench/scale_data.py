"""A database of a large installation, made by SQL: people, rooms, groups, and millions of messages."""

from __future__ import annotations

from whispr.adapters.postgres import Postgres
from whispr.conversations.search import HASH, STRETCH_BITS

PEOPLE = 10_000
ROOMS = 1_000
GROUPS = 5_000
ROOM_MEMBERS = 200
GROUP_MEMBERS = 10
BIG_SHARE = 0.1
"""The share of all messages that is in one conversation, the one that is asked about."""
CHUNK = 500_000
"""Messages made by one statement."""

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards", "brew",
          "strong", "coffee", "before")  # fmt: skip


async def fill(db: Postgres, messages: int) -> None:
    """Fill a migrated, empty database. Indexes of messages are made after them, which is several times faster."""
    await _people(db)
    await _conversations(db)
    await _members(db)
    await _messages(db, messages)
    await _watermarks(db)
    await _derived(db)
    await db.execute("VACUUM (ANALYZE)")


async def _people(db: Postgres) -> None:
    await db.execute(
        "INSERT INTO auth.accounts (id, username, display_name, password_hash)"
        " SELECT gen_random_uuid(), 'user' || n, 'User ' || n, 'x' FROM generate_series(1, $1::int) n",
        PEOPLE,
    )


async def _conversations(db: Postgres) -> None:
    await db.execute(
        "INSERT INTO conversations.conversations (id, kind, name, created_by)"
        " SELECT gen_random_uuid(), CASE WHEN n <= $1 THEN 'room' ELSE 'group' END, 'conversation ' || n,"
        " (SELECT id FROM auth.accounts LIMIT 1) FROM generate_series(1, $1::int + $2::int) n",
        ROOMS,
        GROUPS,
    )
    await db.execute(
        "INSERT INTO conversations.rooms (id, type, visibility, name_key)"
        " SELECT id, 'PUBLIC', 'OPEN', lower(name) FROM conversations.conversations WHERE kind = 'room'"
    )


async def _members(db: Postgres) -> None:
    await db.execute(
        "WITH people AS MATERIALIZED (SELECT id, row_number() OVER () - 1 AS n FROM auth.accounts),"
        " places AS MATERIALIZED ("
        "  SELECT c.id, (random() * $1::int)::int AS first,"
        "  CASE kind WHEN 'room' THEN $2::int ELSE $3::int END AS size"
        "  FROM conversations.conversations c)"
        " INSERT INTO conversations.members (conversation_id, user_id, role)"
        " SELECT p.id, people.id, CASE WHEN k = 0 THEN 'owner' ELSE 'member' END"
        " FROM places p CROSS JOIN LATERAL generate_series(0, p.size - 1) k"
        " JOIN people ON people.n = (p.first + k * 7) % $1::int",
        PEOPLE,
        ROOM_MEMBERS,
        GROUP_MEMBERS,
    )
    await db.execute(
        "UPDATE conversations.conversations c SET member_count ="
        " (SELECT count(*) FROM conversations.members m WHERE m.conversation_id = c.id)"
    )


async def _messages(db: Postgres, total: int) -> None:
    """Share the messages out: one conversation has `BIG_SHARE` of them, the others what Zipf gives them."""
    indexes = await db.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'conversations' AND tablename = 'messages'"
        " AND indexname NOT LIKE '%pkey'"
    )
    for index in indexes:
        await db.execute(f'DROP INDEX conversations."{index["indexname"]}"')
    shares = await db.fetch(
        "SELECT c.id, row_number() OVER (ORDER BY kind DESC, c.id) AS rank,"
        " array(SELECT user_id FROM conversations.members m WHERE m.conversation_id = c.id LIMIT 20) AS people"
        " FROM conversations.conversations c"
    )
    harmonic = sum(1 / (row["rank"] + 1) for row in shares)
    batch: list[tuple[object, int, object]] = []
    waiting = 0
    for row in shares:
        share = BIG_SHARE if row["rank"] == 1 else (1 - BIG_SHARE) / (row["rank"] + 1) / harmonic
        count = max(1, int(total * share))
        batch.append((row["id"], count, row["people"]))
        waiting += count
        if waiting >= CHUNK:
            await _insert(db, batch)
            batch, waiting = [], 0
    await _insert(db, batch)
    for index in indexes:
        await db.execute(index["indexdef"])


async def _insert(db: Postgres, batch: list[tuple[object, int, object]]) -> None:
    for conversation, count, people in batch:
        await db.execute(
            "INSERT INTO conversations.messages"
            " (conversation_id, seq, id, sender_id, message_type, content, client_id, sent_at)"
            " SELECT $1::uuid, n, gen_random_uuid(), ($3::uuid[])[1 + n % array_length($3::uuid[], 1)], 'text',"
            " convert_to(($4::text[])[1 + n % 15] || ' ' || ($4::text[])[1 + n / 15 % 15] || ' message number ' || n,"
            " 'UTF8'), CASE WHEN n % 2 = 0 THEN 'c' || n || $1::uuid END, now() - ($2::int - n) * interval '1 second'"
            " FROM generate_series(1, $2::int) n",
            conversation,
            count,
            people,
            _WORDS,
        )


async def _watermarks(db: Postgres) -> None:
    """Everybody has read all but the last fifty messages or so."""
    await db.execute(
        "UPDATE conversations.conversations c SET (last_seq, last_message_at) ="
        " (SELECT max(seq), max(sent_at) FROM conversations.messages m WHERE m.conversation_id = c.id)"
    )
    await db.execute(
        "UPDATE conversations.members m SET read_seq = greatest(c.last_seq - 50, 0),"
        " uncounted = (SELECT count(*) FROM conversations.messages x WHERE x.conversation_id = c.id"
        "  AND x.seq > greatest(c.last_seq - 50, 0) AND x.sender_id = m.user_id)"
        " FROM conversations.conversations c WHERE c.id = m.conversation_id"
    )


async def _derived(db: Postgres) -> None:
    """What consumers would have derived by now: counts of who wrote, and a search index of the two largest."""
    await db.execute(
        "INSERT INTO conversations.search_progress (conversation_id, indexed_seq)"
        " SELECT id, last_seq FROM conversations.conversations WHERE last_seq > 0"
    )
    await db.execute(
        "INSERT INTO conversations.counted (conversation_id, seq)"
        " SELECT id, last_seq FROM conversations.conversations WHERE last_seq > 0"
    )
    await db.execute(
        "INSERT INTO conversations.sent_counts (user_id, messages_sent, last_message_at)"
        " SELECT sender_id, count(*), max(sent_at) FROM conversations.messages GROUP BY sender_id"
    )
    token = HASH.format(conversation="m.conversation_id", stretch=f"(m.seq >> {STRETCH_BITS})")
    await db.execute(
        "INSERT INTO conversations.search (conversation_id, seq, tokens)"  # noqa: S608  # constants of ours
        f" SELECT m.conversation_id, m.seq, (SELECT array_agg({token}) FROM"
        " unnest(tsvector_to_array(to_tsvector('simple', convert_from(m.content, 'UTF8')))) AS lexeme)"
        " FROM conversations.messages m WHERE m.conversation_id IN ("
        "  SELECT DISTINCT ON (kind) id FROM conversations.conversations ORDER BY kind, last_seq DESC)"
    )
