"""Finding messages by their words.

The index (`conversations.search`, kept by `search_index`) maps hashes of a word, its conversation and a stretch
of seqs to messages. A search asks it for one conversation after another and in each for the newest stretch
first, so it reads little however common a word is. What it finds are candidates: PostgreSQL's own full text
search then judges the message as it is now, which also takes care of phrases, of words that must not be there,
and of rows that are out of date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from whispr.conversations import seats
from whispr.conversations.database import Database
from whispr.conversations.domain import Limits, Message, clamp_page
from whispr.conversations.history import NOT_HIDDEN
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import EXTRA_COLUMNS, MESSAGE_COLUMNS, Row, message_of
from whispr.errors import invalid

QUERY_CHARS_MAX = 200
WORDS_MAX = 16
ROUNDS_MAX = 8
"""How often one call asks for candidates; a page that is short by then says where to go on."""
STRETCH_BITS = 14
"""A stretch of the index is 2 ** 14 seqs."""

HASH = "hashtextextended(lexeme || ' ' || {conversation} || ' ' || {stretch}, 0)"
"""One token of the index; `search_index` makes the same."""

_HEADLINE = "StartSel=\x02, StopSel=\x03, MaxFragments=2, MaxWords=20, MinWords=8, FragmentDelimiter=' … '"

_LEXEMES = "SELECT tsvector_to_array(to_tsvector($1::text::regconfig, $2))"
# The stretches are asked for in order, and no further than needed: a nested loop keeps its outer side's order,
# and nothing else can join a lateral.
_CANDIDATES = f"""
    SELECT found.*, seat.kind FROM (
        SELECT s.conversation_id, c.kind, c.last_seq
        FROM conversations.members s JOIN conversations.conversations c ON c.id = s.conversation_id
        WHERE s.user_id = $1 AND s.left_at IS NULL AND ($2::uuid IS NULL OR s.conversation_id = $2)
            AND c.last_seq > 0
    ) seat
    CROSS JOIN LATERAL (
        SELECT {MESSAGE_COLUMNS}, {EXTRA_COLUMNS}
        FROM generate_series(seat.last_seq >> {STRETCH_BITS}, 0, -1) AS stretch
        CROSS JOIN LATERAL (
            SELECT m.* FROM conversations.search i
            JOIN conversations.messages m ON m.conversation_id = i.conversation_id AND m.seq = i.seq
            WHERE i.tokens @> (
                SELECT array_agg({HASH.format(conversation="seat.conversation_id", stretch="stretch")})
                FROM unnest($3::text[]) AS lexeme)
                AND i.conversation_id = seat.conversation_id AND i.seq >> {STRETCH_BITS} = stretch
                AND ($4::timestamptz IS NULL OR (m.sent_at, m.id) < ($4, $5::uuid))
                AND m.deleted_at IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
                AND {NOT_HIDDEN.format(viewer="$1")}
            ORDER BY m.seq DESC LIMIT $6
        ) m
        LIMIT $6
    ) found
    ORDER BY found.sent_at DESC, found.id DESC LIMIT $6
"""  # noqa: S608  # constants of ours
_PART = re.compile(r'(-?)"([^"]*)"|(\S+)')


class Found(msgspec.Struct, frozen=True):
    """A message that was found, and the pieces of it around what was looked for."""

    message: Message
    highlight: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a query asks for: words anywhere, phrases, and what must not be there."""

    words: str
    phrases: tuple[str, ...]
    without: tuple[str, ...]


def parsed(query: str) -> Wanted:
    """Read a query. Raises INVALID_ARGUMENT when it is too long or asks for nothing."""
    if len(query) > QUERY_CHARS_MAX or "\0" in query:
        raise invalid({"query": f"at most {QUERY_CHARS_MAX} characters, no NUL"})
    words: list[str] = []
    phrases: list[str] = []
    without: list[str] = []
    for minus, phrase, word in _PART.findall(query):
        if word.startswith("-") and len(word) > 1:
            without.append(word[1:])
        elif word:
            words.append(word)
        elif phrase.strip():
            (without if minus else phrases).append(phrase)
    if not words and not phrases:
        raise invalid({"query": "must hold a word to look for"})
    if len(words) + len(phrases) + len(without) > WORDS_MAX:
        raise invalid({"query": f"at most {WORDS_MAX} words and phrases"})
    return Wanted(" ".join(words), tuple(phrases), tuple(without))


def judgement(wanted: Wanted) -> tuple[str, list[str]]:
    """Build the statement that judges texts ($2, by configuration $1, $3 for headlines) and its arguments."""
    terms: list[str] = []
    values: list[str] = []

    def term(shape: str, value: str) -> None:
        values.append(value)
        terms.append(shape.format(f"$1::text::regconfig, ${len(values) + 3}"))

    if wanted.words:
        term("plainto_tsquery({})", wanted.words)
    for phrase in wanted.phrases:
        term("phraseto_tsquery({})", phrase)
    for unwanted in wanted.without:
        term("!!phraseto_tsquery({})", unwanted)
    return _JUDGE_BY.format(query=" && ".join(terms)), values


_JUDGE_BY = """
    SELECT judged.matches, CASE WHEN judged.matches
        THEN ts_headline($1::text::regconfig, judged.body, judged.query, $3) ELSE '' END AS highlight
    FROM (
        SELECT t.body, t.place, q.query, to_tsvector($1::text::regconfig, t.body) @@ q.query AS matches
        FROM unnest($2::text[]) WITH ORDINALITY AS t (body, place), (SELECT {query} AS query) q
    ) judged ORDER BY judged.place
"""


class Search:
    """Finds messages of a person's conversations."""

    def __init__(self, db: Database, limits: Limits, language: str = "simple") -> None:
        self._db = db
        self._limits = limits
        self._language = language

    async def find(
        self, viewer_id: str, query: str, conversation_id: str | None, page_size: int, page_token: str
    ) -> tuple[list[Found], str]:
        """Return a page of what matches, the latest first, and the next token.

        Raises INVALID_ARGUMENT; for a conversation that is named also NOT_FOUND and not_a_member.
        """
        size = clamp_page(page_size, self._limits)
        place = from_token(page_token, Place)
        wanted = parsed(query)
        if conversation_id is not None:
            await seats.check_reader(self._db, conversation_id, viewer_id)
        needed = " ".join((wanted.words, *wanted.phrases))
        lexemes = await self._db.fetchval(_LEXEMES, self._language, needed)
        if not lexemes:
            raise invalid({"query": "must hold a word to look for"})
        found: list[Found] = []
        for _ in range(ROUNDS_MAX):
            at, message_id = (place.at, place.id) if place else (None, None)
            rows = await self._db.fetch(
                _CANDIDATES, *(viewer_id, conversation_id, lexemes, at, message_id, size + 1)
            )
            for row, verdict in zip(rows, await self._judged(rows, wanted), strict=True):
                if verdict["matches"]:
                    if len(found) == size:
                        return found, to_token(place)
                    found.append(Found(message_of(row, row["kind"]), verdict["highlight"]))
                place = Place(row["sent_at"], str(row["id"]))
            if len(rows) <= size:
                return found, ""
        return found, to_token(place)

    async def _judged(self, rows: Sequence[Row], wanted: Wanted) -> Sequence[Row]:
        """Judge the messages of these rows as they are now."""
        if not rows:
            return ()
        statement, values = judgement(wanted)
        bodies = [searchable(row) or "" for row in rows]
        judged: Sequence[Row] = await self._db.fetch(statement, self._language, bodies, _HEADLINE, *values)
        return judged


def searchable(row: Row) -> str | None:
    """Return the text of a message that can be searched: plain text, that was not encrypted or erased."""
    if row["message_type"] != "text" or row["deleted_at"] is not None or row["sender_public_key"]:
        return None
    try:
        text: str = row["content"].decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
