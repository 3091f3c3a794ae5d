"""Everybody at once: sockets that reconnect and catch up, and the members of one room that all join it.

    python -m tests.bench.realtime_storm [storm] [mass-join] [--sockets 5000] [--conversations 100] [--members 1000]

Runs `whispr serve` on backends of its own, durability on, with people and conversations put there by SQL, and one
load client in this process, over loopback: both, and PostgreSQL, share the machine's cores.

* `storm`: so many people were connected; messages and reactions happened while they were away; now they all come
  back, and each joins a conversation with `since_seq` and `since_change`. It is over when every one has every
  message and every change it missed. Counted are the reads of conversations that this cost, and all transactions.
* `mass_join`: so many members, connected already, join one room of as many members at once. It is over when each has
  its join's reply and those observed (one in 50) know of everybody's presence.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import trio

from tests.bench.bench_messages import client_frame
from tests.bench.realtime_rig import cpu_s
from tests.product import UNLIMITED, Product, running
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.conversations.domain import Draft, Limits, Role
from whispr.conversations.log import MessageLog
from whispr.conversations.membership import Membership
from whispr.conversations.reactions import Reactions
from whispr.conversations.seats import recount, seat_people
from whispr.credentials import key_folder
from whispr.ids import new_id
from whispr.services.auth.keys import load_keys
from whispr.tokens import Signer, user_claims

MISSED = 20
"""Messages sent to each conversation while everybody is away; every fourth gets a reaction."""
CONNECTING = 256
"""Sockets in their handshake at a time: a client of its own each, but one listen queue."""
OVER_S = 120.0
OBSERVED = 50

_JOINED = re.compile(rb'"seq":(\d+),"change":(\d+)')


@dataclass
class Place:
    """A running product with its database."""

    product: Product
    db_url: str
    signer: Signer

    def token(self, user_id: str, session_id: str) -> str:
        claims = user_claims(
            user_id=user_id,
            session_id=session_id,
            username="u",
            role="user",
            now=time.time(),
            lifetime_s=3600,
        )
        return self.signer.sign(claims)

    def metric(self, name: str) -> float:
        """Read a counter of the product."""
        from urllib.request import urlopen

        with urlopen(self.product.url("/metrics")) as answer:  # noqa: S310  # our own server
            text = answer.read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def place() -> Iterator[Place]:
    """Run the product for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="whispr-storm-") as name:
        folder = Path(name)
        (folder / "backends").mkdir()
        command = [sys.executable, "-m", "whispr.embed", str(folder / "backends")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as servers:
            assert servers.stdin is not None
            assert servers.stdout is not None
            try:
                urls = json.loads(servers.stdout.readline())
                environ = UNLIMITED | {
                    "WHISPR_POSTGRES_URL": urls["postgres_url"],
                    "WHISPR_REDIS_URL": urls["redis_url"],
                    "WHISPR_NATS_URL": urls["nats_url"],
                    "WHISPR_LIMITS_USER_SOCKETS": os.environ.get("WHISPR_LIMITS_USER_SOCKETS", "20"),
                }
                with running(folder / "node", environ) as product:
                    settings = Settings(data_dir=folder / "node")
                    yield Place(product, urls["postgres_url"], load_keys(key_folder(settings)).signer)
            finally:
                servers.stdin.close()
                servers.wait(15)


async def _people(db: Postgres, count: int) -> list[tuple[str, str]]:
    """Make accounts with a session each; return both ids."""
    people = [(new_id(), str(uuid4())) for _ in range(count)]
    users, sessions = [each[0] for each in people], [each[1] for each in people]
    await db.execute(
        "INSERT INTO auth.accounts (id, username, display_name, role, password_hash)"
        " SELECT id, 's' || right(replace(id::text, '-', ''), 20), 'Somebody', 'user', 'x'"
        " FROM unnest($1::uuid[]) AS id",
        users,
    )
    await db.execute(
        "INSERT INTO auth.sessions (id, account_id, expires_at) SELECT s, a, now() + interval '1 day'"
        " FROM unnest($1::uuid[], $2::uuid[]) AS pair (s, a)",
        *(sessions, users),
    )
    return people


class _Silent:
    """An announcer for what is put into the database before anybody is there."""

    def changed(self, change: object, **more: object) -> None:
        """Tell nobody."""


async def _happen(db: Postgres, conversations: Sequence[tuple[str, str]]) -> None:
    """Send what is missed to each conversation, by its owner."""
    log = MessageLog(db, on_committed=lambda _: None)
    reactions = Reactions(db, _Silent(), Limits())  # type: ignore[arg-type]  # all that is asked of it
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        for conversation_id, owner in conversations:
            tickets = [
                log.append(
                    Draft(id=new_id(), conversation_id=conversation_id, sender_id=owner, content=b"x" * 100)
                )
                for _ in range(MISSED)
            ]
            for number, ticket in enumerate(tickets):
                message = await ticket.wait()
                if number % 4 == 0:
                    await reactions.add(conversation_id, message.id, owner, "👍")
        nursery.cancel_scope.cancel(reason="sent")


async def _with_db(url: str, do: Callable[[Postgres], Any]) -> Any:
    async with open_bridge() as bridge, open_postgres(bridge, url) as db:
        return await do(db)


class Client:
    """A Phoenix socket, driven by readiness."""

    def __init__(self, port: int, token: str, topic: str, join: Mapping[str, object]) -> None:
        self.topic = topic
        self.started = self.joined_at = 0.0
        self.reply = b""
        self.upgraded = False
        self.present: set[str] = set()
        self.count = 0
        self._join = client_frame(json.dumps(["1", "1", topic, "phx_join", dict(join)]).encode())
        self._buffer = bytearray()
        self._request = (
            f"GET /socket/websocket?vsn=2.0.0&token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n"
        ).encode()
        self._port = port
        self.sock = socket.socket()

    def connect(self) -> None:
        """Begin to connect."""
        self.started = time.perf_counter()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", self._port))

    def begin(self, *, join: bool) -> None:
        """Connected: ask for the upgrade and, before it is answered, to join."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.send(self._request)
        self.join_at_once = join

    def join(self) -> None:
        """Join the topic."""
        self.started = time.perf_counter()
        self.sock.send(self._join)

    def read(self, *, watch: bool = False) -> None:
        """Take what has arrived."""
        data = self.sock.recv(1 << 18)
        assert data, "the server hung up"
        self._buffer += data
        if not self.upgraded:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            assert self._buffer.startswith(b"HTTP/1.1 101"), bytes(self._buffer[:200])
            del self._buffer[: end + 4]
            self.upgraded = True
            if self.join_at_once:
                self.sock.send(self._join)
        while (frame := self._frame()) is not None:
            if b'"phx_reply"' in frame[:80]:
                self.joined_at, self.reply = time.perf_counter(), frame
            elif watch:
                self._observe(json.loads(frame))

    def _frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(buffer) < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
        if len(buffer) < at + size:
            return None
        frame = bytes(buffer[at : at + size])
        del buffer[: at + size]
        return frame

    def _observe(self, message: Any) -> None:
        event, payload = message[3], message[4]
        if event == "presence_state":
            self.present = set(payload)
        elif event == "presence_diff":
            self.present |= set(payload["joins"])
        elif event == "presence_count":
            self.count = payload["count"]
        self.count = max(self.count, len(self.present))


def _drive(clients: Sequence[Client], *, join: bool, done: Callable[[Client], bool]) -> None:
    """Connect them, some at a time, until each is done."""
    with selectors.DefaultSelector() as selector:
        waiting, connecting, open_ = list(reversed(clients)), 0, 0
        deadline = time.perf_counter() + OVER_S
        left = len(clients)
        while left:
            while waiting and connecting < CONNECTING:
                client = waiting.pop()
                client.connect()
                selector.register(client.sock, selectors.EVENT_WRITE, client)
                connecting += 1
            assert time.perf_counter() < deadline, f"{left} of {len(clients)} are not done"
            for key, events in selector.select(1):
                client = key.data
                if events & selectors.EVENT_WRITE:
                    client.begin(join=join)
                    selector.modify(client.sock, selectors.EVENT_READ, client)
                    continue
                was = client.upgraded
                client.read()
                connecting -= client.upgraded and not was
                if done(client):
                    selector.unregister(client.sock)
                    left -= 1
        del open_


def storm(at: Place, sockets: int = 5000, conversations: int = 100) -> dict[str, float]:
    """Have everybody come back at once; return how long it took and what it cost."""

    async def prepare(db: Postgres) -> list[tuple[str, str, str]]:
        people = await _people(db, sockets)
        each = sockets // conversations
        coming, made = [], []
        for number in range(conversations):
            members = people[number * each : (number + 1) * each]
            users = [user_id for user_id, _ in members]
            group = await Membership(db, Limits()).open_group(users[0], users[1:], f"group {number}", {})
            made.append((group, users[0]))
            coming += [(user_id, session_id, group) for user_id, session_id in members]
        await _happen(db, made)
        return coming

    coming: list[tuple[str, str, str]] = trio.run(_with_db, at.db_url, prepare)
    port = at.product.ports["websocket"]
    where = {"since_seq": "0", "since_change": "1"}
    # Members of different conversations come mixed.
    coming.sort(key=lambda each: each[1])
    clients = [Client(port, at.token(u, s), f"conversation:{group}", where) for u, s, group in coming]
    reads, cpu = at.metric("whispr_conversations_join_reads_total"), cpu_s(at.product.process.pid)
    transactions = _transactions(at)
    began = time.perf_counter()
    _drive(clients, join=True, done=lambda client: bool(client.reply))
    took_s = time.perf_counter() - began
    for client in clients:
        reply = json.loads(client.reply)[4]
        assert reply["status"] == "ok", reply
        seqs = [message["seq"] for message in reply["response"]["messages"]]
        changes = [change["change"] for change in reply["response"]["changes"]]
        assert seqs == list(range(1, MISSED + 1))
        assert changes == list(range(2, MISSED // 4 + 2))
    latencies = sorted(client.joined_at - client.started for client in clients)
    figures = {
        "sockets": sockets,
        "conversations": conversations,
        "all_caught_up_s": round(took_s, 2),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 1),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1000, 1),
        "server_cpu_ms_a_socket": round((cpu_s(at.product.process.pid) - cpu) / sockets * 1000, 2),
        "conversation_reads": at.metric("whispr_conversations_join_reads_total") - reads,
        "transactions": _transactions(at) - transactions,
    }
    for client in clients:
        client.sock.close()
    return figures


def mass_join(at: Place, members: int = 1000) -> dict[str, float]:
    """Have all members of a room join it at once; return how long it took until all know of all."""

    async def prepare(db: Postgres) -> list[tuple[str, str]]:
        people = await _people(db, members)
        owner, session_id = people[0]
        status, reply = at.product.call(
            "POST", "/v1/rooms", {"name": f"room {uuid4().hex[:8]}", "type": "PUBLIC", "visibility": "OPEN"},
            at.token(owner, session_id),
        )  # fmt: skip
        assert status == 200, reply
        rooms.append(reply["room"]["id"])
        async with db.transaction() as tx:
            await seat_people(tx, rooms[0], [user_id for user_id, _ in people[1:]], Role.MEMBER, 0)
            await recount(tx, rooms[0], members - 1)
        return people

    rooms: list[str] = []
    people: list[tuple[str, str]] = trio.run(_with_db, at.db_url, prepare)
    port = at.product.ports["websocket"]
    clients = [Client(port, at.token(u, s), f"room:{rooms[0]}", {}) for u, s in people]
    _drive(clients, join=False, done=lambda client: client.upgraded)
    reads, cpu = at.metric("whispr_conversations_join_reads_total"), cpu_s(at.product.process.pid)
    watched = clients[::OBSERVED]
    began = time.perf_counter()
    for client in clients:
        client.join()
    joined_s = 0.0
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
        while any(client.count < members for client in watched) or not joined_s:
            assert time.perf_counter() < began + OVER_S, [client.count for client in watched]
            for key, _ in selector.select(1):
                key.data.read(watch=key.data in watched)
            if not joined_s and all(client.reply for client in clients):
                joined_s = time.perf_counter() - began
    took_s = time.perf_counter() - began
    sizes = sorted(len(client.reply) for client in clients)
    refused = sum(b'"status":"ok"' not in client.reply for client in clients)
    assert not refused, f"{refused} joins were refused"
    for client in clients:
        client.sock.close()
    return {
        "members": members,
        "all_joined_s": round(joined_s, 2),
        "converged_s": round(took_s, 2),
        "server_cpu_ms_a_join": round((cpu_s(at.product.process.pid) - cpu) / members * 1000, 2),
        "reply_bytes": sizes[len(sizes) // 2],
        "conversation_reads": at.metric("whispr_conversations_join_reads_total") - reads,
    }


def _transactions(at: Place) -> int:
    """Transactions of the database so far, as its statistics have it."""

    async def ask(db: Postgres) -> int:
        await db.execute("SELECT pg_stat_force_next_flush()")
        found: int = await db.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        return found

    found: int = trio.run(_with_db, at.db_url, ask)
    return found


def main() -> None:
    """Print the figures as JSON, one run a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", choices=["storm", "mass-join", []], help="both, unless named")
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--members", type=int, default=1000)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with place() as at:
        if "storm" in asked.which or not asked.which:
            print(json.dumps({"storm": storm(at, asked.sockets, asked.conversations)}), flush=True)
        if "mass-join" in asked.which or not asked.which:
            print(json.dumps({"mass_join": mass_join(at, asked.members)}), flush=True)


if __name__ == "__main__":
    main()
