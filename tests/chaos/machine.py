"""What a machine can do to the processes on it: disks full or slow, packets late or lost, clocks that jump.

All of it happens in namespaces of our own (mounts, network, processes), made by unshare(1): nobody else is touched,
and whatever is left goes when they do. Each part says in `why_not` what kept it from being there on this machine.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

INSIDE = "CHAOS_INSIDE"
"""In the environment of who runs in the namespaces: the folder to work in."""
NAMESPACES = (
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
    "--propagation",
    "private",
)

DISK_BYTES = 700 * 1024 * 1024
CGROUPS = Path("/sys/fs/cgroup")
PRELOAD = Path("/etc/ld.so.preload")

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_QUEUE_LEN_MAX = 10_000


class NotHere(Exception):  # noqa: N818 - says what is the matter
    """This machine cannot do it; the message says why."""


def run(*argv: str) -> str:
    """Run a program. Raises NotHere with what it said."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NotHere(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise NotHere(f"{argv[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return done.stdout


def in_namespaces(module: str, arguments: Sequence[str], folder: Path) -> int:
    """Run a module of ours in namespaces of its own; return its exit code. Raises NotHere where they are refused."""
    run("unshare", *NAMESPACES, "true")
    argv = ["unshare", *NAMESPACES, sys.executable, "-m", module, *arguments]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    child = subprocess.Popen(argv, env=os.environ | {INSIDE: str(folder)})
    try:
        return child.wait()
    finally:
        child.kill()  # and with it everything in the namespaces
        child.wait()
        for left in CGROUPS.glob(f"*/**/{folder.name}-*"):
            left.rmdir()


class Disk:
    """A file system of its own that can be filled up and slowed down."""

    def __init__(self, at: Path, image: Path) -> None:
        at.mkdir(parents=True)
        self.at = at
        self._ballast = at / "ballast"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
        run("mount", "-o", "loop", str(image), str(at))
        number = at.stat().st_dev
        self.device = f"{os.major(number)}:{os.minor(number)}"

    def fill(self) -> None:
        """Leave no free block."""
        block = os.statvfs(self.at).f_bsize
        with self._ballast.open("wb") as file:
            piece = 1 << (os.statvfs(self.at).f_bfree * block).bit_length()
            while piece >= block:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), piece)
                except OSError:
                    piece //= 2

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


class Cgroup:
    """A control group of version 1 below ours, into which processes are moved for a while."""

    def __init__(self, controller: str, name: str) -> None:
        lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
        ours = next((path for _, names, path in lines if controller in names.split(",")), None)
        if ours is None or not (CGROUPS / controller).is_dir():
            raise NotHere(f"no control group (version 1) of {controller}")
        self._home = CGROUPS / controller / ours.strip("/")
        self.path = self._home / name
        try:
            self.path.mkdir()
        except OSError as error:
            raise NotHere(f"control group of {controller}: {error.strerror}") from error

    def set(self, what: str, value: str) -> None:
        """Write one of its files."""
        (self.path / what).write_text(value)

    def take(self, pids: Iterable[int]) -> None:
        """Move processes in."""
        _move(self.path, pids)

    def release(self) -> None:
        """Move all of them back to where we are."""
        _move(self._home, [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()])


def _move(group: Path, pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            (group / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            continue  # it has ended


@dataclass
class Road:
    """A network of its own in which packets really are late or lost: who connects to `far` arrives at `near`.

    A TUN device leads to us. A packet for `far` comes back with its two addresses exchanged, so its receiver is a
    socket of this host at `near`, and what that answers goes the same way. Checksums stay right: it is the same sum.
    """

    number: int
    delay_s: float = 0.0
    loss: float = 0.0
    """Of each packet, in either direction."""
    lost: int = 0
    carried: int = 0
    _fd: int = -1
    _late: deque[tuple[float, bytearray]] = field(default_factory=deque)
    _woken: trio.Event = field(default_factory=trio.Event)

    @property
    def near(self) -> str:
        """Where to listen."""
        return f"10.99.{self.number}.1"

    @property
    def far(self) -> str:
        """Where to connect."""
        return f"10.99.{self.number}.2"

    def build(self) -> None:
        """Make the device. Raises NotHere."""
        name = f"chaos{self.number}"
        try:
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            raise NotHere(f"/dev/net/tun: {error.strerror}") from error
        run("ip", "address", "add", f"{self.near}/24", "dev", name)
        run("ip", "link", "set", name, "up")

    async def carry(self) -> None:
        """Pass packets on until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver_late)
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                for _ in range(64):
                    try:
                        packet = bytearray(os.read(self._fd, 65536))
                    except BlockingIOError:
                        break
                    self._pass_on(packet)

    def _pass_on(self, packet: bytearray) -> None:
        if packet[0] >> 4 != 4:
            return  # IPv6 looks for neighbours
        self.carried += 1
        if random.random() < self.loss or len(self._late) >= _QUEUE_LEN_MAX:
            self.lost += 1
            return
        packet[12:16], packet[16:20] = packet[16:20], packet[12:16]
        if self.delay_s or self._late:
            # Late by half more or less, and never before the one ahead of it.
            due = trio.current_time() + self.delay_s * random.uniform(0.5, 1.5)
            self._late.append((max(due, self._late[-1][0]) if self._late else due, packet))
            self._woken.set()
        else:
            os.write(self._fd, packet)

    async def _deliver_late(self) -> None:
        while True:
            while self._late:
                await trio.sleep_until(self._late[0][0])
                os.write(self._fd, self._late.popleft()[1])
            self._woken = trio.Event()
            await self._woken.wait()


class Clocks:
    """Wall clocks of dynamically linked programs, which a preloaded library sets off."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        folder.mkdir()
        self._folder = folder
        for name in names:
            self.jump(name, 0)
        library = folder / "clock.so"
        source = str(Path(__file__).with_name("clock.c"))
        run("cc", "-O2", "-shared", "-fPIC", f'-DCHAOS_FOLDER="{folder}"', "-o", str(library), source, "-ldl")
        layers = folder.with_name("etc")
        run("mkdir", "-p", str(layers))
        run("mount", "-t", "tmpfs", "chaos", str(layers))
        run("mkdir", str(layers / "upper"), str(layers / "work"))
        options = f"lowerdir=/etc,upperdir={layers}/upper,workdir={layers}/work"
        run("mount", "-t", "overlay", "-o", options, "overlay", "/etc")
        PRELOAD.write_text(f"{library}\n")

    def jump(self, name: str, offset_s: int) -> None:
        """Set the clock of a program that runs, or will, this far off the true one."""
        path = self._folder / name
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(struct.pack("q", offset_s))


class Machine:
    """Everything there is of it here."""

    def __init__(
        self, folder: Path, disks: Sequence[str], roads: Sequence[str], clocks: Sequence[str]
    ) -> None:
        self.folder = folder
        self.why_not: dict[str, str] = {}
        """Part → what keeps it from being here."""
        self.disks: dict[str, Disk] = {}
        self.roads: dict[str, Road] = {}
        self.clocks: Clocks | None = None
        self.throttle: Cgroup | None = None
        self.memory: Cgroup | None = None
        run("ip", "link", "set", "lo", "up")
        self._attempt("disks", lambda: self._make_disks(disks))
        self._attempt("roads", lambda: self._make_roads(roads))
        self._attempt("clocks", lambda: self._make_clocks(clocks))
        self._attempt("throttle", self._make_throttle)
        self._attempt("memory", self._make_memory)

    def _attempt(self, part: str, make: object) -> None:
        assert callable(make)
        try:
            make()
        except NotHere as why:
            self.why_not[part] = str(why)

    def _make_disks(self, names: Sequence[str]) -> None:
        images = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else self.folder)  # noqa: S108
        for name in names:
            image = images / f"{self.folder.name}-{name}.img"
            try:
                self.disks[name] = Disk(self.folder / "disks" / name, image)
            finally:
                image.unlink(missing_ok=True)  # the mount keeps it

    def _make_roads(self, names: Sequence[str]) -> None:
        for number, name in enumerate(names, 1):
            road = Road(number)
            road.build()
            self.roads[name] = road

    def _make_clocks(self, names: Sequence[str]) -> None:
        self.clocks = Clocks(self.folder / "clocks", names)

    def _make_throttle(self) -> None:
        self.throttle = Cgroup("blkio", f"{self.folder.name}-slow")

    def _make_memory(self) -> None:
        self.memory = Cgroup("memory", f"{self.folder.name}-memory")

    def place_for(self, name: str) -> Path:
        """A folder on the disk of that name, or just a folder where there are no such disks."""
        if name in self.disks:
            return self.disks[name].at / "data"
        return self.folder / name


def free_of(folder: Path) -> None:
    """Remove a folder of ours."""
    shutil.rmtree(folder, ignore_errors=True)
