"""Fuzzing both ends of an HTTP/2 connection and a whole server: whatever comes in, only documented things happen.

`python -m tests.fuzz.target [--seconds 60] [--seed N]` mutates a corpus of good and nearly good conversations,
made by `corpus`, and checks after each input:

- `Connection.receive` raises nothing, for either role, and the same bytes in other pieces give the same events and
  answers;
- a server answers, closes, or waits for more; it neither raises nor logs an error, and no task stays behind.

The first input that breaks a promise is written to a file and shown. The same seed tries the same inputs.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import structlog.testing
import trio
import trio.testing

import whispr  # noqa: F401  # first: it makes purerpc, which the suite imports, fit the h2 there is
from tests.conformance.cases import cases
from tests.conformance.raw import ACK, PING, PREFACE, SETTINGS, block, data, frame, headers, settings
from tests.conformance.table import DIALECTS
from tests.conformance.test_http2 import Echo
from tests.http2.test_bulk import joined
from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.headers import encode
from whispr.rpc.server import RpcServer

Chance = random.Random
INPUT_BYTES_MAX = 40_000
INTERESTING = (0, 1, 2, 5, 9, 16, 127, 128, 255)


def corpus() -> list[bytes]:
    """What a client may send, good and bad: every conversation of the conformance suite, and answers of a server."""
    seeds = []
    for dialect in DIALECTS:
        for case in cases(dialect):
            told = b"".join(step for step in case.steps if isinstance(step, bytes))
            seeds.append((PREFACE + settings() if case.handshake else b"") + told)
    status, trailers = (
        block((":status", "200"), ("content-type", "application/grpc")),
        block(("grpc-status", "0")),
    )
    answer = headers(1, status, end=False) + data(1, b"\0\0\0\0\x02hi", end=False) + headers(1, trailers)
    seeds += [settings() + frame(SETTINGS, ACK) + answer, settings() + answer + frame(PING, 0, 0, bytes(8))]
    return [seed for seed in seeds if len(seed) < INPUT_BYTES_MAX]


def mutated(seeds: list[bytes], chance: Chance) -> bytes:
    """One input: a seed, or two spliced, changed in a few places."""
    octets = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        chance.choice(_MUTATIONS)(octets, seeds, chance)
    return bytes(octets[:INPUT_BYTES_MAX])


def _flip(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    if octets:
        octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)


def _set(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    if octets:
        octets[chance.randrange(len(octets))] = chance.choice(INTERESTING)


def _remove(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    start = chance.randrange(len(octets) + 1)
    del octets[start : start + chance.choice((1, 2, 9, 50))]


def _repeat(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    start = chance.randrange(len(octets) + 1)
    octets[start:start] = octets[start : start + chance.choice((1, 9, 30, 100))] * chance.choice((1, 2, 30))


def _splice(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    other = chance.choice(seeds)
    octets[chance.randrange(len(octets) + 1) :] = other[chance.randrange(len(other) + 1) :]


def _append(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    octets += chance.choice(seeds).removeprefix(PREFACE)


def _insert_frame(octets: bytearray, seeds: list[bytes], chance: Chance) -> None:
    kind, flags, stream = (
        chance.randrange(12),
        chance.choice((0, 1, 4, 5, 8, 0x20)),
        chance.choice((0, 1, 2, 3, 5)),
    )
    octets += frame(kind, flags, stream, chance.randbytes(chance.choice((0, 1, 4, 5, 6, 8, 12))))


_MUTATIONS: tuple[Callable[[bytearray, list[bytes], Chance], None], ...] = (
    _flip, _set, _remove, _repeat, _splice, _append, _insert_frame,
)  # fmt: skip

# --- Promises ---------------------------------------------------------------------------------------------

REQUEST = encode([(":method", "POST"), (":scheme", "http"), (":path", "/")])


def parts_of(event: events.Event) -> list[events.Event]:
    """The events that one about a whole message stands for; any other by itself."""
    if isinstance(event, events.RequestReceived):
        head = events.HeadersReceived(event.stream_id, event.headers, False, False)
        return [head, events.DataReceived(event.stream_id, event.data, True)]
    if isinstance(event, events.ResponseReceived):
        head = events.HeadersReceived(event.stream_id, event.headers, False, False)
        trailers = events.HeadersReceived(event.stream_id, event.trailers, True, True)
        return [head, events.DataReceived(event.stream_id, event.data, False), trailers]
    return [event]


def core_outcome(role: Role, pieces: list[bytes], whole_messages: bool = False) -> tuple[str, bytes]:
    """What a connection reports and says, in full."""
    connection = Connection(role, clock=lambda: 0.0, whole_messages=whole_messages)
    if role is Role.CLIENT:
        connection.receive(settings())
        connection.open_stream(REQUEST, end_stream=True)
        connection.open_stream(REQUEST)
    reported = [part for piece in pieces for event in connection.receive(piece) for part in parts_of(event)]
    output, _ = connection.take_output()
    return joined(reported), b"".join(output)


def check_core(octets: bytes, chance: Chance) -> None:
    """Nothing is raised, and any split gives the same events and answers."""
    edges = sorted({chance.randrange(len(octets) + 1) for _ in range(chance.randrange(6))} | {0, len(octets)})
    pieces = [octets[start:end] for start, end in pairwise(edges)]
    for role in Role:
        told = core_outcome(role, [octets])
        assert core_outcome(role, pieces) == told
        # Windows are announced in other sums then, so the answers may differ.
        assert core_outcome(role, pieces, whole_messages=True)[0] == told[0]


async def _serve(octets: bytes, pieces: int) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer([Echo()]).serve_stream, far)
        size = max(1, len(octets) // pieces)
        for start in range(0, len(octets), size):
            try:
                await near.send_all(octets[start : start + size])
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks, "a task was left behind"


def check_server(octets: bytes, chance: Chance) -> None:
    """A whole server survives the input, and thinks nothing of it worth an error in the log."""
    with structlog.testing.capture_logs() as logged:
        trio.run(_serve, octets, chance.randrange(1, 5), clock=trio.testing.MockClock(autojump_threshold=0))
    errors = [entry for entry in logged if entry["log_level"] == "error"]
    assert errors == []


def try_one(octets: bytes, chance: Chance) -> None:
    """All promises, for one input."""
    check_core(octets, chance)
    check_server(octets, chance)


def fuzz(seconds: float, seed: int) -> int:
    """Try inputs for so long; returns how many. Raises what the first bad one raises, having kept it."""
    seeds, chance = corpus(), Chance(seed)
    ends, tried = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        octets = mutated(seeds, chance)
        try:
            try_one(octets, chance)
        except BaseException:
            kept = Path(f"fuzz-{seed}-{tried}.bin")
            kept.write_bytes(octets)
            print(f"seed {seed}, input {tried}: kept in {kept}", file=sys.stderr)
            raise
        tried += 1
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    print(f"{fuzz(arguments.seconds, arguments.seed)} inputs, nothing found")


if __name__ == "__main__":
    main()
