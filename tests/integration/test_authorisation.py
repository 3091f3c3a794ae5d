"""Who may call what: every RPC of the product, asked by everybody.

`tests/calls.py` has a row for every RPC: whom it is for, and how to ask for something of one's own. Here each is
called by each kind of person. Whoever it is for gets an answer; everybody else is told no, in a way that says
nothing about what there is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.calls import ROWS
from tests.world import METHODS, ROLES, World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError

REFUSALS = {Code.PERMISSION_DENIED, Code.NOT_FOUND}
"""What somebody is told whom a call is not for; who shows no token is UNAUTHENTICATED."""

SERVICES = sorted({method.partition("/")[0] for method in METHODS})


def test_every_rpc_has_a_row() -> None:
    """A new RPC is in the matrix before it is anywhere else; a row without an RPC is a leftover."""
    assert sorted(ROWS) == sorted(METHODS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("service", SERVICES)
async def test_the_matrix(service: str, db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Each RPC answers those it is for, and refuses all others."""
    wrong: list[str] = []
    async with open_world(db, cache, bus, tmp_path) as world:
        for method in sorted(METHODS):
            if method.startswith(service):
                world.renew()
                for role in ROLES:
                    problem = await judged(world, method, role)
                    if problem:
                        wrong.append(f"{method} as {role}: {problem}")
    assert not wrong, "\n".join(wrong)


async def judged(world: World, method: str, role: str) -> str:
    """Make one call; return what is wrong with how it ended, empty when nothing is."""
    row = ROWS[method]
    request = await row.request(world, role)
    token = await world.new_token(role) if row.own_session else world.token(role)
    try:
        await world.call_with(method, request, token)
    except WhisprError as error:
        if role in row.allowed:
            return "" if error.code in row.codes else f"allowed, but {error.code.name}: {error.message}"
        expected = {Code.UNAUTHENTICATED} if role == "anonymous" else REFUSALS
        return "" if error.code in expected else f"refused by {error.code.name}: {error.message}"
    return "" if role in row.allowed else "answered"
