"""Several processes behind the same ports: one product to its clients, whichever of them they meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import trio

from tests.integration.following import Follower
from tests.integration.load import Sender, until_acked
from tests.integration.test_resilience import alive
from tests.product import UNLIMITED, Product, StartError, running, start
from whispr.errors import WhisprError
from whispr.realtime.client import Phoenix, Refused, open_phoenix
from whispr.realtime.upgrade import Rejected
from whispr.seats import TTL_S

# Each starts three processes, on a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TRIES_MAX = 64
"""Connections opened to meet every worker; that all of them meet the same one has a chance of 2 ** -63."""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`whispr serve --workers 2`."""
    with running(tmp_path_factory.mktemp("workers") / "data", UNLIMITED, "--workers", "2") as product:
        yield product


def pid_of(product: Product, worker: int) -> int:
    """Return the pid of a worker."""
    return int((product.data_dir / "run" / f"worker-{worker}.pid").read_text())


def exposition(product: Product) -> str:
    """Return what Prometheus would get."""
    with urlopen(product.url("/metrics")) as response:  # noqa: S310  # a URL of ours
        return str(response.read().decode())


def metric(product: Product, name: str) -> dict[str, float]:
    """Ask /metrics for a metric of each worker; samples with other labels are added up."""
    found: dict[str, float] = {}
    for line in exposition(product).splitlines():
        if line.startswith(f'{name}{{worker="'):
            worker = line.split('"')[1]
            found[worker] = found.get(worker, 0) + float(line.rpartition(" ")[2])
    return found


@asynccontextmanager
async def on_each(product: Product, token: str) -> AsyncIterator[dict[str, Phoenix]]:
    """Connect somebody until they have a socket on both workers; yields worker → socket."""
    met: dict[str, Phoenix] = {}
    async with AsyncExitStack() as stack:
        for _ in range(TRIES_MAX):
            before = await trio.to_thread.run_sync(metric, product, "whispr_ws_sockets")
            phoenix = await stack.enter_async_context(open_phoenix(product.websocket_url, token))
            after = await trio.to_thread.run_sync(metric, product, "whispr_ws_sockets")
            for worker in ("1", "2"):
                if after[worker] > before[worker]:
                    met.setdefault(worker, phoenix)
            if len(met) == 2:
                yield met
                return
    raise AssertionError(f"only met {met.keys()}")


async def text_of_next(channel: Any) -> str:
    with trio.fail_after(10):
        async for event, payload in channel:
            if event == "new_message":
                return str(payload["text"])
    raise AssertionError("the channel was closed")


async def test_people_on_two_workers_talk(product: Product) -> None:
    """What is sent on one worker arrives on the other, joined or as a preview; a block is felt on both."""
    alice, alices = product.sign_up("alice")
    bob, bobs = product.sign_up("bob")
    conversation = product.conversation(alices, "direct", bob)
    topic = f"conversation:{conversation}"
    async with on_each(product, alices) as alice_on, on_each(product, bobs) as bob_on:
        joined = {worker: await phoenix.join(topic) for worker, phoenix in alice_on.items()}
        previews = {worker: await phoenix.join(f"user:{bob}") for worker, phoenix in bob_on.items()}
        for n, channel in enumerate(joined.values()):
            await channel.push("send_message", {"text": str(n)})
        for channel in (*joined.values(), *previews.values()):
            assert [await text_of_next(channel) for _ in range(2)] == ["0", "1"]
        assert product.call("PUT", f"/v1/users/{alice}/block", token=bobs)[0] == 200
        for channel in joined.values():
            with pytest.raises(Refused) as refused, trio.fail_after(10):
                while True:  # until the news has crossed the bus
                    await channel.push("send_message", {"text": "still there?"})
            assert refused.value.reason == "blocked"


async def test_signing_out_closes_sockets_on_every_worker(product: Product) -> None:
    """A session ended on one worker is ended on all: its sockets close, its token opens none of them."""
    _, token = product.sign_up("carol")
    async with on_each(product, token) as carol:
        assert product.call("POST", "/v1/auth/logout", {}, token)[0] == 200
        with trio.fail_after(10):
            for phoenix in carol.values():
                assert (await phoenix.wait_closed()).close_code == 1008
    assert {product.call("GET", "/v1/conversations", token=token)[0] for _ in range(16)} == {401}


async def test_a_removed_member_is_out_on_every_worker(product: Product) -> None:
    """Who is removed through one worker may not send through the other, whatever that one remembered of them."""
    _, owners = product.sign_up("olga")
    member, members = product.sign_up("mika")
    conversation = product.conversation(owners, "group", member)
    path = f"/v1/conversations/{conversation}"
    for _ in range(16):
        assert product.call("POST", f"{path}/messages", {"text": "hi"}, members)[0] == 200
    assert product.call("DELETE", f"{path}/members/{member}", token=owners)[0] == 200
    for _ in range(16):
        assert product.call("POST", f"{path}/messages", {"text": "hi"}, members)[0] == 403


def test_metrics_are_of_all_workers(product: Product) -> None:
    """/metrics of any worker has every process's samples, each family once, and says which of them answered."""
    assert metric(product, "whispr_worker_up") == {"supervisor": 1, "1": 1, "2": 1}
    text = exposition(product)
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert metric(product, "whispr_workers")["supervisor"] == 2


async def test_nothing_is_heard_that_nobody_here_wants(product: Product) -> None:
    """A worker hears the topics that somebody has joined there, and of a conversation elsewhere nothing at all."""
    _, tokens = product.sign_up("dora")
    peer, _ = product.sign_up("emil")
    topic = f"conversation:{product.conversation(tokens, 'direct', peer)}"
    async with on_each(product, tokens) as dora:
        before = metric(product, "whispr_peers_heard_total")
        channel = await dora["1"].join(topic)
        for n in range(50):
            await channel.push("send_message", {"text": str(n)})
        after = metric(product, "whispr_peers_heard_total")
        assert after.get("2", 0) == before.get("2", 0)
        other = await dora["2"].join(topic)
        await channel.push("send_message", {"text": "heard"})
        assert await text_of_next(other) == "heard"
        assert metric(product, "whispr_peers_heard_total")["2"] > after.get("2", 0)


# Deaths and drains


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Product]:
    """Two workers of a product that a test may kill."""
    with running(tmp_path / "data", UNLIMITED, "--workers", "2") as product:
        yield product


def cast(product: Product, count: int) -> tuple[list[Sender], list[Follower]]:
    """People who send, each to a conversation of their own, and for each somebody who follows it."""
    people = [product.sign_up(f"person-{n}") for n in range(10)]
    senders, followers = [], []
    for n in range(count):
        (_, token), (peer, peers) = people[n % 10], people[(n + 1) % 10]
        conversation = product.conversation(token, "group", peer)
        senders.append(Sender(f"s{n}", token, conversation))
        followers.append(Follower(peers, conversation, lambda: product.websocket_url))
    return senders, followers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_worker_that_goes_loses_nothing(fresh: Product, number: signal.Signals) -> None:
    """While clients send, a worker drains or is killed: what was acknowledged reaches everybody once, in order."""
    senders, followers = await trio.to_thread.run_sync(cast, fresh, 20)
    async with trio.open_nursery() as nursery:
        for sender, follower in zip(senders, followers, strict=True):
            nursery.start_soon(sender.run, fresh)
            nursery.start_soon(follower.run)
        for worker in (1, 2):
            await until_acked(senders, 5)
            pid = pid_of(fresh, worker)
            os.kill(pid, number)
            with trio.fail_after(60):
                await until_acked(senders, 10)
                while alive(pid) or metric(fresh, "whispr_workers")["supervisor"] < 2:  # noqa: ASYNC110  # processes
                    await trio.sleep(0.1)
        with trio.fail_after(60):
            for sender, follower in zip(senders, followers, strict=True):
                await follower.until(max(sender.acked.values()))
        nursery.cancel_scope.cancel()
    for sender, follower in zip(senders, followers, strict=True):
        sender.check(fresh)
        follower.check()
        assert set(sender.acked) <= set(follower.client_ids)
    assert any(follower.joins > 1 for follower in followers)
    if number is signal.SIGTERM:
        assert {code for follower in followers for code in follower.codes} == {1012}


async def of_both(product: Product, name: str) -> dict[str, float]:
    """Ask for a metric until both workers say what theirs is: one that is starting, or busy, is left out."""
    with trio.fail_after(60):
        while not {"1", "2"} <= (found := metric(product, name)).keys():  # noqa: ASYNC110  # processes
            await trio.sleep(0.2)
    return found


async def opened(product: Product, token: str, stack: AsyncExitStack) -> bool:
    """Try to open a socket; False when it is one too many."""
    try:
        await stack.enter_async_context(open_phoenix(product.websocket_url, token))
    except Rejected as refused:
        if refused.reason != "too_many_sockets":
            raise
        return False
    return True


async def until_full(product: Product, token: str, stack: AsyncExitStack) -> int:
    """Open sockets until many in a row are refused, whichever worker they meet; return how many there were."""
    count = refused = 0
    while refused < 8:
        if await opened(product, token, stack):
            count, refused = count + 1, 0
        else:
            refused += 1
    return count


async def test_a_persons_sockets_are_limited_over_all_workers(tmp_path: Path) -> None:
    """The 21st is refused whichever worker it meets; a worker killed with some of them gives back as many.

    A Redis that does not answer within a second, as on a machine that is busy with something else, leaves each worker
    with its own limit: who came in so is counted, and told from the others.
    """
    environ = {name: value for name, value in UNLIMITED.items() if not name.endswith("USER_SOCKETS")}
    with running(tmp_path / "data", environ, "--workers", "2") as product:
        _, token = product.sign_up("vera")
        async with AsyncExitStack() as stack:
            before = await until_full(product, token, stack)
            unasked = await of_both(product, "whispr_seats_unasked_total")
            assert 20 <= before <= 20 + unasked["1"] + unasked["2"]
            lost = int((await of_both(product, "whispr_ws_sockets"))["1"])
            os.kill(pid_of(product, 1), signal.SIGKILL)
            began, again = time.monotonic(), 0
            while before - lost + again < 20:
                assert time.monotonic() < began + TTL_S + 60, f"{again} of {lost} came back"
                with suppress(OSError, WhisprError):  # whom the dead worker has just accepted
                    again += await opened(product, token, stack)
                await trio.sleep(0.05)
            again += await until_full(product, token, stack)
            later = await of_both(
                product, "whispr_seats_unasked_total"
            )  # the first worker's counts from 0 again
            assert before - lost + again <= 20 + later["1"] + later["2"] - unasked["2"]


def test_no_worker_outlives_its_parent(fresh: Product) -> None:
    """Kill -9 of the parent takes the workers and the backends with it, and the next start finds free ports."""
    pids = [pid_of(fresh, worker) for worker in (1, 2)]
    ports = {f"WHISPR_{name.upper()}_PORT": str(port) for name, port in fresh.ports.items()}
    fresh.process.send_signal(signal.SIGKILL)
    fresh.process.wait()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)
    with running(fresh.data_dir, UNLIMITED | ports, "--workers", "2") as again:
        assert again.ports == fresh.ports


def test_a_stop_is_orderly(fresh: Product) -> None:
    """SIGTERM drains all workers and ends with code 0, with nothing left of them."""
    pids = [pid_of(fresh, worker) for worker in (1, 2)]
    assert fresh.stop(within_s=30) == 0
    assert not [pid for pid in pids if alive(pid)]
    assert not list((fresh.data_dir / "run").glob("worker-*.pid"))
    assert not (fresh.data_dir / "ports.json").exists()


def test_a_worker_that_keeps_dying_ends_everything(fresh: Product) -> None:
    """A worker killed whenever it starts is not started for ever: the product ends, and says why."""
    until = time.monotonic() + 120
    while fresh.process.poll() is None and time.monotonic() < until:
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(pid_of(fresh, 1), signal.SIGKILL)
        time.sleep(0.05)
    assert fresh.process.wait(30) == 1
    said = (fresh.data_dir.parent / "data.stderr").read_text()
    assert "worker 1 ended 6 times in a row, at last with signal SIGKILL" in said


def test_pools_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """More connections than PostgreSQL has are an error at the start that names what to change."""
    with pytest.raises(StartError, match="WHISPR_POSTGRES_POOL_SIZE"):
        start(tmp_path / "data", {"WHISPR_POSTGRES_POOL_SIZE": "60"}, "--workers", "2")


def test_commands_beside_workers_work(fresh: Product) -> None:
    """Commands that look for the running product find it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    lag = subprocess.run(
        [sys.executable, "-m", "whispr.cli", "events", "lag"],
        env=environ | {"WHISPR_DATA_DIR": str(fresh.data_dir)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert lag.returncode == 0, lag.stderr
