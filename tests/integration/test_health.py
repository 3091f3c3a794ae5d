"""What the product says of its own health, over HTTP, gRPC and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trio
from typer.testing import CliRunner

from tests.product import Product
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.cli import app
from whispr.config import SERVICES
from whispr.dependencies import Dependencies
from whispr.errors import unavailable
from whispr.rpc.health import NOT_SERVING, SERVING, HealthCheckRequest, HealthStub


def base(world: World) -> str:
    """The gateway of a world."""
    return f"http://127.0.0.1:{world.ports['gateway']}"


def dependencies(world: World) -> Dependencies:
    """Those of a world's node."""
    assert world.node is not None
    return world.node._dependencies


async def test_health_names_every_service_and_dependency(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """`/v1/health` has status, latency and breaker of all; what errors say is for operators alone."""
    async with (
        open_world(db, cache, bus, tmp_path) as world,
        httpx.AsyncClient(base_url=base(world)) as client,
    ):
        for path, status in (("/livez", "alive"), ("/startupz", "started"), ("/readyz", "ready")):
            assert (await client.get(path)).json()["status"] == status
        reply = await client.get("/v1/health")
        report = reply.json()
        assert (reply.status_code, report["status"], report["state"]) == (200, "ok", "serving")
        assert set(report["services"]) == set(SERVICES)
        assert {"postgres", "redis", "nats"} <= set(report["dependencies"])
        for facts in (*report["services"].values(), *report["dependencies"].values()):
            assert (facts["status"], facts["breaker"]) == ("up", "closed")
            assert facts["latency_ms"] > 0
        dependencies(world).service("user").note(unavailable("10.0.0.7: refused"))
        assert "10.0.0.7" not in (await client.get("/v1/health")).text
        member = {"authorization": f"Bearer {world.token('member')}"}
        assert "10.0.0.7" not in (await client.get("/v1/health", headers=member)).text
        admin = {"authorization": f"Bearer {world.token('admin')}"}
        assert "10.0.0.7" in (await client.get("/v1/health", headers=admin)).text


@pytest.mark.slow
async def test_health_of_each_service_follows_its_database(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PostgreSQL every service is NOT_SERVING, as a watcher hears; with it again, SERVING, by itself."""
    async with (
        open_world(db, cache, bus, tmp_path) as world,
        httpx.AsyncClient(base_url=base(world)) as client,
    ):
        stub = HealthStub(world.channels["user"])
        async with stub.Watch(HealthCheckRequest(service="whispr.v1.UserService")) as call:
            heard = aiter(call)
            with trio.fail_after(30):
                assert (await anext(heard)).status == SERVING

                async def away() -> None:
                    await trio.lowlevel.checkpoint()
                    raise unavailable("PostgreSQL is away")

                probes = dict(dependencies(world)._probes)
                broken = probes | {"postgres": (db.backend, away)}
                monkeypatch.setattr(dependencies(world), "_probes", broken)
                assert (await anext(heard)).status == NOT_SERVING
                assert (await stub.Check(HealthCheckRequest())).status == SERVING, (
                    "the process itself is well"
                )
                reply = await client.get("/v1/health")
                assert (reply.status_code, reply.json()["status"]) == (503, "down")
                monkeypatch.setattr(dependencies(world), "_probes", probes)
                assert (await anext(heard)).status == SERVING


def test_status_on_the_command_line(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """`whispr status --once` draws every service; `--json` is what the gateway says."""
    monkeypatch.setenv("WHISPR_DATA_DIR", str(product.data_dir))
    drawn = CliRunner().invoke(app, ["status", "--once"])
    assert drawn.exit_code == 0, drawn.stderr
    assert "whispr is ok" in drawn.stdout
    assert all(name in drawn.stdout for name in (*SERVICES, "postgres", "closed"))
    said = CliRunner().invoke(app, ["status", "--json"])
    assert set(json.loads(said.stdout)["services"]) == set(SERVICES)
