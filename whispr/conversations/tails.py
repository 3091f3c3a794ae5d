"""The end of a conversation, as read once and followed since: what a joiner missed, without asking the database.

When a node or a network comes back, everybody joins again at once. So what the first joiner of a conversation read
is kept for a few seconds, and whatever is broadcast meanwhile is added to it, in the order in which links get it.
A tail is then as good as a new snapshot for everyone who was not much further behind: who may join, what they
missed, and from which numbers on they go live. What one person is not to see, because they have deleted it for
themselves, is left out for them alone.

It follows the hub's topic and ends with its last subscriber, for then nothing more is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from whispr.conversations.domain import Kind, Member, Role
from whispr.conversations.paging import to_token
from whispr.conversations.snapshots import Snapshot
from whispr.conversations.sync import Receipt
from whispr.conversations.wire import message_json
from whispr.realtime.sequencer import Said

KEPT_MAX = 2000
"""Messages and changes that a tail holds; a longer one is read anew."""

HIDDEN = "_hidden"
"""A broadcast that reaches nodes but no clients: somebody has deleted a message for themselves."""

ARRIVING = frozenset({"member_added", "user_joined"})
LEAVING = frozenset({"member_removed", "user_left", "user_kicked", "user_banned"})
"""Changes that end a membership; their payloads name whose by `user_id`."""

_encode = msgspec.json.Encoder().encode
_NOTHING: frozenset[int] = frozenset()


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a replay that did not fit goes on."""

    seq: int
    change: int


class Missed(msgspec.Struct, frozen=True, omit_defaults=False):
    """What a joiner missed, as their join's reply carries it."""

    seq: int
    change: int
    messages: msgspec.Raw
    changes: msgspec.Raw
    changed_messages: msgspec.Raw
    receipts: list[Receipt]
    hidden_seqs: list[int]
    resync: bool
    cursor: str
    kind: Kind
    role: Role
    members: msgspec.Raw
    member_count: int
    stale: bool = False
    """Whether this is as of an earlier moment, for nobody can say now."""


class _News(msgspec.Struct):
    """What of a live event concerns who is there and how far they have read."""

    user_id: str = ""
    seq: int = 0
    read_at: Any = None
    member: Member | None = None


_news = msgspec.json.Decoder(_News).decode


class Tail:
    """A snapshot and what came after. Follow it before the snapshot is read, then `begin`."""

    def __init__(self, read_at: float) -> None:
        self.read_at = read_at
        """On Trio's clock, when reading began."""
        self.ended = False
        self.unsaid = False
        """Whether something that it would tell has been deleted."""
        self.stop: Callable[[], None] = lambda: None
        """Ends the following."""
        self._early: list[Said] = []
        self._read: Snapshot | None = None
        self.seq = self.change = 0
        self.roles: dict[str, Role] = {}
        self._messages: list[tuple[int, msgspec.Raw]] = []
        self._changes: list[tuple[int, int, msgspec.Raw]] = []
        """Number, seq of the message it is of as far as its state must be looked up, and the event."""
        self._states: dict[int, msgspec.Raw] = {}
        self._hidden: dict[str, set[int]] = {}
        self._receipts: dict[str, Receipt] = {}
        self._people: dict[str, Member] = {}
        self._members: msgspec.Raw | None = None
        self._lists: dict[tuple[int, int], tuple[msgspec.Raw, msgspec.Raw, msgspec.Raw]] = {}
        self._arrived = 0

    def begin(self, read: Snapshot) -> None:
        """Take the snapshot, and what was heard while it was read."""
        self._read = read
        self.seq, self.change = read.seq, read.change
        self.roles = dict(read.roles)
        self._messages = [(message.seq, _json(message)) for message in read.messages]
        self._states = {message.seq: _json(message) for message in read.altered}
        self._states.update(self._messages)
        for change in read.changes:
            event = {"event": change.kind, **change.payload()}
            self._changes.append((change.change, change.seq or 0, msgspec.Raw(_encode(event))))
        self._hidden = {user_id: set(seqs) for user_id, seqs in read.hidden.items()}
        self._receipts = {receipt.user_id: receipt for receipt in read.receipts}
        self._people = {member.user_id: member for member in read.people}
        early, self._early = self._early, []
        for said in early:
            self.hear(said)

    @property
    def shared(self) -> bool:
        """Whether it knows every member's role."""
        return self._read is not None and self._read.shared

    @property
    def lasting(self) -> bool:
        """Whether others than those it was read for may be served from it."""
        read = self._read
        return (
            not self.ended
            and read is not None
            and read.shared
            and not _is_cut(read)
            and len(self._messages) + len(self._changes) <= KEPT_MAX
        )

    @property
    def size(self) -> int:
        """Roughly how many bytes it takes."""
        bodies = (
            *self._messages,
            *((number, event) for number, _, event in self._changes),
            *self._states.items(),
        )
        return sum(len(bytes(body)) for _, body in bodies) + 200 * (len(self.roles) + len(self._people) + 10)

    def covers(self, since_seq: int | None, since_change: int | None) -> bool:
        """Tell whether it reaches back to these numbers, and on to them: another node may be ahead."""
        read = self._read
        return (
            read is not None
            and (since_seq is None or read.seq_floor <= since_seq <= self.seq)
            and (since_change is None or read.change_floor <= since_change <= self.change)
        )

    def missed(self, user_id: str, since_seq: int | None, since_change: int | None) -> Missed:
        """Say what a member missed since these numbers; None is now."""
        assert self._read is not None
        read, resumes = self._read, since_seq is not None or since_change is not None
        seq = self.seq if since_seq is None else min(since_seq, self.seq)
        change = self.change if since_change is None else min(since_change, self.change)
        hidden = self._hidden.get(user_id, _NOTHING)
        messages, changes, changed = self._listed(seq, change, hidden)
        cut, cursor = _is_cut(read), ""
        if cut:
            cursor = to_token(Cursor(max(seq, read.seq_upto), max(change, read.change_upto)))
        return Missed(
            seq=self.seq,
            change=self.change,
            messages=messages,
            changes=changes,
            changed_messages=changed,
            receipts=list(self._receipts.values()) if resumes else [],
            hidden_seqs=sorted(hidden) if resumes else [],
            resync=cut,
            cursor=cursor,
            kind=read.kind,
            role=self.roles[user_id],
            members=self._page(),
            member_count=read.member_count + self._arrived,
        )

    def _listed(
        self, seq: int, change: int, hidden: Iterable[int]
    ) -> tuple[msgspec.Raw, msgspec.Raw, msgspec.Raw]:
        """The messages after a seq, the changes after a change, and the messages before that they are of."""
        known = self._lists.get((seq, change)) if not hidden else None
        if known is not None:
            return known
        missed = [(number, about, event) for number, about, event in self._changes if number > change]
        altered = sorted({about for _, about, _ in missed if 0 < about <= seq}.difference(hidden))
        lists = (
            _joined(body for number, body in self._messages if number > seq and number not in hidden),
            _joined(event for _, _, event in missed),
            _joined(self._states[number] for number in altered if number in self._states),
        )
        if not hidden:
            self._lists[seq, change] = lists
        return lists

    def _page(self) -> msgspec.Raw:
        if self._members is None:
            self._members = msgspec.Raw(_encode(list(self._people.values())))
        return self._members

    # What is broadcast

    def hear(self, said: Said | None) -> None:
        """Take a broadcast as links get it; None is the end of the topic here."""
        if said is None:
            self.ended = True
        elif self._read is None:
            self._early.append(said)
        elif isinstance(said.payload, bytes):
            return  # binary: nothing of ours
        elif said.change is not None:
            self._hear_change(said, said.change)
        elif said.seq is not None:
            self._hear_message(said, said.seq)
        elif said.event in ("read_receipt", "delivery_status"):
            self._hear_receipt(said.event, _news(_body(said)))
        elif said.event == HIDDEN:
            news = _news(_body(said))
            self._hidden.setdefault(news.user_id, set()).add(news.seq)

    def _hear_message(self, said: Said, seq: int) -> None:
        if seq <= self.seq:
            return
        self._lists.clear()
        self.seq = seq
        self._messages.append((seq, msgspec.Raw(_body(said))))

    def _hear_change(self, said: Said, change: int) -> None:
        if change <= self.change:
            return
        self._lists.clear()
        self.change = change
        # What was deleted must not be told to anybody any more.
        self.unsaid |= said.event == "message_deleted"
        self.ended |= self.unsaid
        body = _body(said)
        event = b'{"event":' + _encode(said.event) + b"," + body[1:]
        # The state known of its message is from before: to tell it would undo changes between, and the event says
        # what is different.
        self._changes.append((change, 0, msgspec.Raw(event)))
        if said.event in ARRIVING or said.event in LEAVING or said.event == "settings_changed":
            self._hear_member(said.event, _news(body))

    def _hear_member(self, event: str, news: _News) -> None:
        self._members = None
        if event in LEAVING:
            self._arrived -= self.roles.pop(news.user_id, None) is not None
            self._people.pop(news.user_id, None)
            return
        member = news.member
        if member is None:
            return
        if event in ARRIVING:
            self._arrived += member.user_id not in self.roles
        if member.user_id in self._people or len(self._people) == len(self.roles):
            self._people[member.user_id] = member
        self.roles[member.user_id] = member.role

    def _hear_receipt(self, event: str, news: _News) -> None:
        before = self._receipts.get(news.user_id)
        delivered, read, read_at = (
            (before.delivered_seq, before.read_seq, before.read_at) if before else (0, 0, None)
        )
        if event == "read_receipt" and news.seq > read:
            read, read_at = news.seq, news.read_at
        receipt = Receipt(news.user_id, max(delivered, news.seq), read, read_at)
        self._receipts[news.user_id] = receipt
        person = self._people.get(news.user_id)
        if person is not None:
            self._members = None
            marks = {"delivered_seq": max(person.delivered_seq, receipt.delivered_seq)}
            marks["read_seq"] = max(person.read_seq, receipt.read_seq)
            self._people[news.user_id] = msgspec.structs.replace(person, **marks)


def _is_cut(read: Snapshot) -> bool:
    """Whether there was more than one replay may carry."""
    return read.seq_upto < read.seq or read.change_upto < read.change


def _body(said: Said) -> bytes:
    return bytes(said.payload) if isinstance(said.payload, msgspec.Raw) else _encode(said.payload)


def _json(message: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(message_json(message)))


def _joined(items: Iterable[msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(bytes(item) for item in items) + b"]")
