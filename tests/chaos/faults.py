"""The faults: each is done to a target, lasts a while, and is over when its function returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from tests.chaos.machine import NotHere, Road
from tests.chaos.rig import BACKENDS, Rig, family, signal_all
from tests.integration.test_resilience import alive

STOPPED_S = 6.5
"""Longer than the deadline of a call."""
LASTS_S = 5.0
SPREAD_S = 2.0
RESETS, RESET_EVERY_S = 5, 0.5
SLOW_WRITES_PER_S = 5
"""What a slow disk gets done for those who wait for it: one flush takes a fifth of a second and more."""
DELAY_S = 0.1
LOSS = 0.1
JUMP_S = 3600
HOG_BYTES = 256 * 1024 * 1024
VICTIM_S = 20.0
"""How long the kernel may take to choose."""

_HOG = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
os.fork(), os.fork()
held = bytearray(int(sys.argv[2]))
for at in range(0, len(held), 4096): held[at] = 1
"""
"""Uses up the memory of a control group, in four processes: each is smaller than the limit, by which the kernel adds
to who is marked as the one to go."""

Fault = Callable[[Rig, str], Awaitable[float]]
"""Done to a target. Returns when the fault ended, by Trio's clock. Raises NotHere."""


async def kill(rig: Rig, target: str) -> float:
    """SIGKILL."""
    await _spread(rig, target)
    os.kill(rig.pid_of(target), signal.SIGKILL)
    return await _resurrected(rig, target)


async def _resurrected(rig: Rig, target: str) -> float:
    """A killed product is started again by us, all others by who looks after them."""
    ended = trio.current_time()
    if target == "product":
        await rig.start_product_again()
    return ended


async def _spread(rig: Rig, target: str) -> None:
    """Have clients connect anew before something is done to one of several workers: it is to have some of them."""
    if target == "worker":
        for link in rig.links["product"]:
            link.reset()
        await trio.sleep(SPREAD_S)


async def stop(rig: Rig, target: str) -> float:
    """SIGSTOP to it and its children, and SIGCONT."""
    await _spread(rig, target)
    pids = rig.pids_of(target)
    signal_all(pids, signal.SIGSTOP)
    try:
        await trio.sleep(STOPPED_S)
    finally:
        signal_all(pids, signal.SIGCONT)
    return trio.current_time()


async def full_disk(rig: Rig, target: str) -> float:
    """No block is free where its data is."""
    disk = rig.machine.disks.get(target)
    if disk is None:
        raise NotHere(rig.machine.why_not.get("disks", "it writes to no disk of its own"))
    await trio.to_thread.run_sync(disk.fill)
    try:
        await trio.sleep(LASTS_S)
    finally:
        disk.free()
    return trio.current_time()


async def slow_disk(rig: Rig, target: str) -> float:
    """Each write that it waits for takes its time."""
    disk, throttle = rig.machine.disks.get(target), rig.machine.throttle
    if disk is None or throttle is None:
        raise NotHere(rig.machine.why_not.get("disks") or rig.machine.why_not.get("throttle", "no such disk"))
    throttle.set("blkio.throttle.write_iops_device", f"{disk.device} {SLOW_WRITES_PER_S}")
    throttle.take(rig.pids_of(target))
    try:
        await trio.sleep(LASTS_S)
    finally:
        throttle.set("blkio.throttle.write_iops_device", f"{disk.device} 0")
        throttle.release()
    return trio.current_time()


async def reset(rig: Rig, target: str) -> float:
    """Every connection to it is reset, again and again."""
    for number in range(RESETS):
        await trio.sleep(RESET_EVERY_S if number else 0)
        for link in rig.links[target]:
            link.reset()
    return trio.current_time()


async def delay(rig: Rig, target: str) -> float:
    """Packets to and from it are late."""
    road = _road(rig, target)
    road.delay_s = DELAY_S
    try:
        await trio.sleep(LASTS_S)
    finally:
        road.delay_s = 0.0
    return trio.current_time()


async def loss(rig: Rig, target: str) -> float:
    """Packets to and from it are lost."""
    road = _road(rig, target)
    road.loss = LOSS
    try:
        await trio.sleep(LASTS_S)
    finally:
        road.loss = 0.0
    return trio.current_time()


def _road(rig: Rig, target: str) -> Road:
    if target not in rig.machine.roads:
        raise NotHere(rig.machine.why_not.get("roads", "no network leads to it alone"))
    return rig.machine.roads[target]


def jump(offset_s: int) -> Fault:
    """Its wall clock jumps, and back again."""

    async def jumped(rig: Rig, target: str) -> float:
        if rig.machine.clocks is None:
            raise NotHere(rig.machine.why_not["clocks"])
        if target == "nats":
            raise NotHere(
                "a static Go program asks no library for the time, and no namespace has a wall clock"
            )
        rig.machine.clocks.jump(_PROGRAM_OF.get(target, target), offset_s)
        try:
            await trio.sleep(LASTS_S)
        finally:
            rig.machine.clocks.jump(_PROGRAM_OF.get(target, target), 0)
        return trio.current_time()

    return jumped


_PROGRAM_OF = {"redis": "valkey-server", "worker": "product"}


async def out_of_memory(rig: Rig, target: str) -> float:
    """The kernel runs out of memory where it is, and kills it: of PostgreSQL one of the processes at work."""
    await _spread(rig, target)
    memory = rig.machine.memory
    if memory is None:
        raise NotHere(rig.machine.why_not["memory"])
    victim = _one_at_work(rig.pid_of(target)) if target == "postgres" else rig.pid_of(target)
    memory.set("memory.limit_in_bytes", str(HOG_BYTES // 4))
    memory.take([victim])
    Path(f"/proc/{victim}/oom_score_adj").write_text(
        "1000"
    )  # it is the one to go, however large the others are
    hog = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOG, str(memory.path), str(HOG_BYTES)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with trio.move_on_after(VICTIM_S) as patience:
            while alive(victim):  # noqa: ASYNC110  # the kernel is at work
                await trio.sleep(0.01)
    finally:
        os.killpg(hog.pid, signal.SIGKILL)
        hog.wait()
        memory.release()
    if patience.cancelled_caught:
        raise NotHere(f"the kernel killed nobody in {VICTIM_S:g} s")
    return await _resurrected(rig, target)


def _one_at_work(postmaster: int) -> int:
    """A process of PostgreSQL that serves a connection."""
    for pid in family(postmaster):
        if b"whispr whispr" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise NotHere("PostgreSQL has no connection")


FAULTS: dict[str, Fault] = {
    "kill -9": kill,
    f"SIGSTOP for {STOPPED_S:g} s": stop,
    "disk full": full_disk,
    "disk slow": slow_disk,
    f"{RESETS} connection resets": reset,
    f"packets {DELAY_S * 1000:g} ms late": delay,
    f"{LOSS * 100:g} % of packets lost": loss,
    "clock an hour on": jump(JUMP_S),
    "clock an hour back": jump(-JUMP_S),
    "out of memory": out_of_memory,
}
TARGETS = {"product": "whispr serve", **BACKENDS}
OF_WORKERS = ("kill -9", f"SIGSTOP for {STOPPED_S:g} s", "out of memory")
"""What can be done to one of several workers."""
