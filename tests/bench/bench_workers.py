"""Several workers on one machine: durable messages and fan-out with 1, 2 and 4 of them, and what a join costs.

    just bench-workers [1 2 4]

Each number of workers is a product of its own, with its own PostgreSQL (fsync on), Valkey and NATS. Messages are
those of `bench-messages`, 50 senders with 8 in flight each: senders and receivers are on whichever worker the kernel
gave them. Fan-out sends to one conversation that 400 sockets have joined. CPU time is that of all of Whispr's
processes, the parent included, per message and per delivery; the backends and the load client share the machine, so
on two cores more workers can only show what they cost. A join is timed on a topic that nobody has joined, which waits
for the bus, and again on the same, which does not.
"""

from __future__ import annotations

import argparse
import os
import resource
import selectors
import statistics
import tempfile
import time
from pathlib import Path

import trio

from tests.bench.bench_messages import LoadSocket, connect, cpu_of
from tests.product import UNLIMITED, Product, running
from whispr.realtime.client import open_phoenix

SENDERS, WINDOW = 50, 8
SOCKETS, BROADCASTS, IN_FLIGHT = 400, 300, 4
JOINS = 100
PEOPLE = 10


def cpu_of_all(product: Product) -> float:
    """CPU seconds of the parent and its workers so far."""
    files = (product.data_dir / "run").glob("worker-*.pid")
    return sum(cpu_of(pid) for pid in (product.process.pid, *(int(file.read_text()) for file in files)))


def messages(product: Product, people: list[tuple[str, str]]) -> str:
    """Durable messages a second, and their latency and cost."""
    load = connect(product, people, SENDERS)
    cpu = cpu_of_all(product)
    result = load.run("", window=WINDOW)
    cpu = cpu_of_all(product) - cpu
    load.close()
    ordered = sorted(result.latencies)
    p50, p99 = (ordered[int(len(ordered) * q)] for q in (0.5, 0.99))
    each_us = cpu / len(ordered) * 1e6
    return f"{result.acked / result.seconds:>10,.0f}{p50:>8.1f}{p99:>8.1f}{each_us:>10.0f}"


def fan_out(product: Product, people: list[tuple[str, str]]) -> str:
    """Deliveries a second of one conversation, and what each costs."""
    (_, token), (peer, peers) = people[:2]
    topic = f"conversation:{product.conversation(token, 'group', peer)}"
    port = product.ports["websocket"]
    sender = LoadSocket(port, token, topic)
    sockets = [LoadSocket(port, peers, topic) for _ in range(SOCKETS)]
    with selectors.EpollSelector() as selector:
        for each in sockets:
            selector.register(each.sock, selectors.EVENT_READ, each)
        cpu, began = cpu_of_all(product), time.perf_counter()
        for sent in range(1, BROADCASTS + 1):
            sender.send_message(time.perf_counter())
            _read(selector, sockets, sent - IN_FLIGHT)
        _read(selector, sockets, BROADCASTS)
        took = time.perf_counter() - began
    cpu = cpu_of_all(product) - cpu
    for each in (sender, *sockets):
        each.sock.close()
    count = BROADCASTS * SOCKETS
    return f"{count / took:>14,.0f}{cpu / count * 1e6:>10.1f}"


def _read(selector: selectors.EpollSelector, sockets: list[LoadSocket], upto: int) -> None:
    """Read until every socket has so many messages."""
    while min(each.delivered for each in sockets) < upto:
        for key, _ in selector.select(1.0):
            each: LoadSocket = key.data
            each.buffer += each.receive()
            each.delivered += sum(b'"new_message"' in frame for frame in each.frames())


async def joins(product: Product, people: list[tuple[str, str]]) -> str:
    """Milliseconds of a join: the first of a topic, and one that follows."""
    (_, token), (peer, _) = people[:2]
    topics = [f"conversation:{product.conversation(token, 'group', peer)}" for _ in range(JOINS)]
    first: list[float] = []
    again: list[float] = []
    async with open_phoenix(product.websocket_url, token) as phoenix:
        for topic in topics:
            for times in (first, again):
                began = time.perf_counter()
                channel = await phoenix.join(topic)
                times.append((time.perf_counter() - began) * 1e3)
                await channel.leave()
    return f"{statistics.median(first):>11.2f}{statistics.median(again):>8.2f}"


def main() -> None:
    """Run all, or the numbers of workers named on the command line, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workers", nargs="*", type=int, default=[1, 2, 4])
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(f"{os.cpu_count()} cores")
    head = ("acked/s", "p50 ms", "p99 ms", "CPU µs", "deliveries/s", "CPU µs", "join ms", "again")
    print(
        f"{'workers':<8}"
        + "".join(f"{h:>{w}}" for h, w in zip(head, (10, 8, 8, 10, 14, 10, 11, 8), strict=True))
    )
    for workers in arguments.workers:
        with (
            tempfile.TemporaryDirectory() as folder,
            running(Path(folder) / "data", UNLIMITED, "--workers", str(workers)) as product,
        ):
            people = [product.sign_up(f"person-{i}") for i in range(PEOPLE)]
            parts = messages(product, people), fan_out(product, people), trio.run(joins, product, people)
            print(f"{workers:<8}" + "".join(parts), flush=True)


if __name__ == "__main__":
    main()
