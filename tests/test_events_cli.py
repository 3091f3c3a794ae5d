"""`whispr events`, as an operator runs it, on real PostgreSQL and NATS."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trio
from typer.testing import CliRunner, Result

from tests.events.kit import LIMITS, Noting, delete_streams, empty_outbox, fetched, process, tell
from whispr import events_cli
from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres
from whispr.cli import app
from whispr.config import load
from whispr.embed import Backends
from whispr.errors import WhisprError, unavailable
from whispr.events import Event, emit
from whispr.events.streams import Streams
from whispr.events_console import Work, reach


class Operator:
    """Types commands. Their arguments are parsed as typed, their work is done in the test's own Trio run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked: list[tuple[Work, bool]] = []

        def asked(work: Work, config: Path | None, *, nats: bool = False) -> None:
            self._asked.append((work, nats))

        monkeypatch.setattr(events_cli, "_run", asked)

    async def type(self, *arguments: str) -> str:
        """Run a command; return what it prints. Raises WhisprError, or AssertionError for bad usage."""
        result = self.typed(*arguments)
        assert result.exit_code == 0, result.output
        work, nats = self._asked.pop()
        return "".join(f"{line}\n" for line in await reach(load().settings, work, nats))

    def typed(self, *arguments: str) -> Result:
        """Parse a command; what it asks for is not done."""
        return CliRunner().invoke(app, ["events", *arguments])


@pytest.fixture
def operator(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, backends: Backends, tmp_path: Path
) -> Operator:
    """A command line whose settings lead to this test's database and NATS."""
    assert backends.nats_url is not None
    monkeypatch.setenv("WHISPR_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("WHISPR_NATS_URL", backends.nats_url)
    monkeypatch.setenv("WHISPR_DATA_DIR", str(tmp_path / "unused"))
    return Operator(monkeypatch)


async def fail(event: Event) -> None:
    await trio.lowlevel.checkpoint()
    raise unavailable("the gateway for pushes is away")


async def test_lag_shows_what_waits(db: Postgres, bus: Bus, operator: Operator) -> None:
    """The outbox, the streams and each consumer: how much waits, and whether the consumer runs."""
    await delete_streams(bus)
    jetstream = JetStream(bus)
    noting = Noting()
    async with process(db, jetstream, noting.consumer):
        await tell(db, "a", 1)
        await noting.until(1)
        assert "running" in await operator.type("lag")
    async with process(db, jetstream):
        for n in range(4):
            await tell(db, "a", n)
        await tell(db, "a", 5, "user.events.profile_updated")
        await empty_outbox(db)
    await tell(db, "a", 6)
    lines = (await operator.type("lag")).splitlines()
    assert lines[0].startswith("outbox: 1 waiting")
    assert next(line.split()[1] for line in lines if line.startswith("USER_EVENTS")) == "6"
    assert [line.split() for line in lines if line.startswith("noting")] == [["noting", "4", "0", "stopped"]]
    await delete_streams(bus)


async def test_dead_letters_are_listed_shown_replayed_and_dropped(
    db: Postgres, bus: Bus, operator: Operator
) -> None:
    """An operator sees what died and why, and decides what becomes of it."""
    await delete_streams(bus)
    jetstream = JetStream(bus)
    assert await operator.type("list-dead") == "no dead letters\n"
    async with process(db, jetstream, Noting("pushes", first=fail, options={"attempts_max": 1}).consumer):
        for n in range(3):
            await tell(db, f"about-{n}", n)
        with trio.fail_after(10):
            while await db.fetchval("SELECT count(*) FROM events.dead_letters") < 3:  # noqa: ASYNC110
                await trio.sleep(0.01)  # PostgreSQL is looked at; there is no event of ours
    listed = (await operator.type("list-dead")).splitlines()
    assert len(listed) == 4
    first, second, third = (line.split()[0] for line in listed[1:])
    assert "pushes" in listed[1]
    assert "the gateway for pushes is away" in listed[1]
    shown = await operator.type("show", first)
    assert "user.events.counted" in shown
    assert '"subject": "about-' in shown
    assert await operator.type("drop", first) == "1 dropped\n"
    assert await operator.type("replay-dead", second) == "1 to be handled again\n"
    assert "(to be replayed)" in await operator.type("list-dead", "--consumer", "pushes")
    works = Noting("pushes")
    async with process(db, jetstream, works.consumer):
        await works.until(1)
        await fetched(db, "SELECT count(*) FROM events.dead_letters", 1)
        assert await operator.type("replay-dead", "--consumer", "pushes") == "1 to be handled again\n"
        await works.until(2)
        await fetched(db, "SELECT count(*) FROM events.dead_letters", 0)
    assert await operator.type("list-dead") == "no dead letters\n"
    with pytest.raises(WhisprError):
        await operator.type("show", third)
    await delete_streams(bus)


async def test_a_replay_is_asked_for_by_name(db: Postgres, bus: Bus, operator: Operator) -> None:
    """`replay` moves a consumer to the start of its streams; a name that is none says which there are."""
    await delete_streams(bus)
    jetstream = JetStream(bus)
    noting = Noting()
    async with process(db, jetstream, noting.consumer):
        await tell(db, "a", 1)
        await noting.until(1)
    assert "starts over" in await operator.type("replay", "noting")
    assert "to replay" in await operator.type("lag")
    async with process(db, jetstream, noting.consumer):
        await noting.until(2)
    assert noting.numbers() == [1, 1]
    with pytest.raises(WhisprError, match="there are: noting"):
        await operator.type("replay", "nothing")
    await delete_streams(bus)


async def test_what_could_not_be_published_goes_back_into_the_outbox(
    db: Postgres, bus: Bus, operator: Operator
) -> None:
    """Dead letters of the relay are replayed as events, once what kept them is mended."""
    await delete_streams(bus)
    jetstream = JetStream(bus)
    async with db.transaction() as tx:
        event_id = await emit(tx, "user.events.counted", about="a", data={"n": 1})
    row = await db.fetchrow("SELECT * FROM events.outbox")
    assert row is not None
    envelope = {
        "id": event_id,
        "type": "counted",
        "source": "user",
        "subject": "a",
        "actor": "",
        "data": {"n": 1},
    }
    await db.execute("DELETE FROM events.outbox")
    await db.execute(
        "INSERT INTO events.dead_letters (consumer, event_id, stream_subject, about, payload, error, attempts)"
        " VALUES ('relay', $1, 'user.events.counted', 'a', $2, 'too large', 1),"
        " ('relay', 'row', '', 'a', $3, 'a bug', 8)",
        event_id, msgspec.json.encode(envelope), b'{"expander": "numbers", "data": {"numbers": [1]}}',
    )  # fmt: skip
    assert await operator.type("replay-dead", "--all") == "2 to be handled again\n"
    rows = await db.fetch(
        "SELECT id::text, stream_subject, expander, data FROM events.outbox ORDER BY position"
    )
    assert tuple(rows[0]) == (event_id, "user.events.counted", None, '{"n": 1}')
    assert tuple(rows[1])[1:] == (None, "numbers", '{"numbers": [1]}')
    await Streams(jetstream, LIMITS).ensure()
    await delete_streams(bus)


async def test_which_dead_letters_must_be_said(db: Postgres, operator: Operator) -> None:
    """Neither all nor none by mistake: without a choice, or with two, nothing is done."""
    for arguments in (["drop"], ["drop", "1", "--all"], ["replay-dead", "--all", "--consumer", "x"]):
        assert operator.typed(*arguments).exit_code == 2
    with pytest.raises(WhisprError, match="4711"):
        await operator.type("drop", "4711")


async def test_beside_a_process_that_holds_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, backends: Backends
) -> None:
    """Servers that another process runs in the data folder are found and used."""
    assert backends.postgres_url is not None
    (sockets,) = parse_qs(urlsplit(backends.postgres_url).query)["host"]
    for name in ("WHISPR_POSTGRES_URL", "WHISPR_NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WHISPR_DATA_DIR", str(Path(sockets).parents[1]))
    # It has reached them; their database is bare.
    refusal = pytest.RaisesExc(WhisprError, match="run `whispr migrate`")
    with pytest.RaisesGroup(refusal, flatten_subgroups=True):
        await Operator(monkeypatch).type("lag")
