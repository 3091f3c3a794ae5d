"""Events are written in the transaction that makes them true."""

from __future__ import annotations

import msgspec
import pytest
import trio

from whispr.adapters.postgres import Postgres, Violation
from whispr.events import emit, emit_batch, once
from whispr.ids import is_id, new_id
from whispr.rpc.call import Metadata, ServerSideCall, set_current_call


async def test_an_event_is_there_if_and_only_if_its_transaction_committed(db: Postgres) -> None:
    """A rolled back transaction leaves no event; a committed one leaves it whole."""
    actor = new_id()
    with pytest.raises(RuntimeError):
        async with db.transaction() as tx:
            await emit(tx, "user.events.profile_updated", about="a", data={})
            raise RuntimeError
    async with db.transaction() as tx:
        made = await emit(tx, "user.events.profile_updated", about="a", actor=actor, data={"n": [1, None]})
    (row,) = await db.fetch("SELECT * FROM events.outbox")
    assert is_id(made)
    assert made[14] == "7", "a UUIDv7"
    assert (str(row["id"]), row["about"], str(row["actor"])) == (made, "a", actor)
    assert msgspec.json.decode(row["data"]) == {"n": [1, None]}
    assert (row["version"], row["trace"]) == (1, None)


async def test_ids_made_in_sql_are_in_the_order_of_their_time(db: Postgres) -> None:
    """`events.new_id` makes UUIDv7: the later millisecond sorts later."""
    first = await db.fetchval("SELECT events.new_id()")
    await db.execute("SELECT pg_sleep(0.003)")
    second = await db.fetchval("SELECT events.new_id()")
    assert first < second
    assert (second.version, second.variant) == (7, "specified in RFC 4122")


async def test_the_bell_rings_after_the_commit(db: Postgres) -> None:
    """Whoever waits for events hears of them once they can be read, and of none that was rolled back."""
    rung: list[str] = []
    undo = db.on_ring(lambda: rung.append("rung"))
    async with db.transaction() as tx:
        await emit(tx, "user.events.profile_updated", about="a", data={})
        assert not rung
    assert rung == ["rung"]
    with pytest.raises(RuntimeError):
        async with db.transaction() as tx:
            await emit_batch(tx, "messages", data={})
            raise RuntimeError
    assert rung == ["rung"]
    undo()
    async with db.transaction() as tx:
        await emit(tx, "user.events.profile_updated", about="a", data={})
    assert rung == ["rung"]


async def test_the_trace_of_the_call_goes_with_the_event(db: Postgres) -> None:
    """An event carries the `traceparent` of the call that caused it."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def handler() -> None:
        set_current_call(ServerSideCall("/a/b", Metadata([("traceparent", trace)]), "", float("inf")))
        async with db.transaction() as tx:
            await emit(tx, "user.events.profile_updated", about="a", data={})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler)
    assert await db.fetchval("SELECT trace FROM events.outbox") == trace


@pytest.mark.parametrize("subject", ["user.events.Upper", "elsewhere.events.x", "user.events.a.b", "user.x"])
async def test_a_subject_of_no_stream_is_refused(db: Postgres, subject: str) -> None:
    """What no stream would keep does not get into the outbox."""
    with pytest.raises(Violation):
        async with db.transaction() as tx:
            await emit(tx, subject, about="a", data={})


async def test_once_is_true_once(db: Postgres) -> None:
    """An event counts as handled by a consumer when the first transaction that said so has committed."""
    with pytest.raises(RuntimeError):
        async with db.transaction() as tx:
            assert await once(tx, "one", "e")
            raise RuntimeError
    async with db.transaction() as tx:
        assert await once(tx, "one", "e")
    async with db.transaction() as tx:
        assert not await once(tx, "one", "e")
        assert await once(tx, "other", "e")
