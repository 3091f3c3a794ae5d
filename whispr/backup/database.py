"""PostgreSQL out and in, by the pg_dump and psql that come with the embedded server.

They work on servers of the same version and older ones. Passwords go by the environment, never a command line.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit, urlunsplit

import trio

from whispr.embed.postgres import binaries
from whispr.errors import conflict

SCHEMAS = ("events", "auth", "conversations", "users", "media", "notifications", "streams")
RECORDS = "public.whispr_migrations"
"""What was applied; the one table outside our schemas."""
WIPE = (
    "".join(f"DROP SCHEMA IF EXISTS {name} CASCADE;\n" for name in SCHEMAS)
    + f"DROP TABLE IF EXISTS {RECORDS};\n"
)
CHUNK_BYTES = 256 * 1024
SAID_BYTES = 4000
"""Of what a program says when it fails: the end."""
_NEWER_SETTING = b"\nSET transaction_timeout = 0;\n"
"""pg_dump writes this whatever the server; those before 17 know no such setting."""


async def dumped(url: str, snapshot: str) -> AsyncIterator[bytes]:
    """Yield the SQL that makes the database as a snapshot has it. Raises FAILED_PRECONDITION if it cannot."""
    which = (*(f"--schema={name}" for name in SCHEMAS),), (f"--table={RECORDS}",)
    for part in which:
        argv = ["pg_dump", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", *part]
        async with _running(url, argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            head = True
            while chunk := bytes(await process.stdout.receive_some(CHUNK_BYTES)):
                yield chunk.replace(_NEWER_SETTING, b"\n") if head else chunk
                head = False


async def run_sql(url: str, script: AsyncIterable[bytes]) -> None:
    """Run a script, which says BEGIN and COMMIT itself: what breaks off before its end changes nothing.

    Raises FAILED_PRECONDITION with what PostgreSQL said.
    """
    argv = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-", "--output=/dev/null"]
    async with _running(url, argv, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            async for chunk in script:
                await process.stdin.send_all(chunk)
        except trio.BrokenResourceError:
            pass  # it has ended, and says why on standard error
        await process.stdin.aclose()


@asynccontextmanager
async def _running(
    url: str, argv: Sequence[str], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> AsyncIterator[trio.Process]:
    """Run a program for the length of the block and wait for its end; it is killed if the block fails."""
    target, environ = _apart(url)
    command = [str(binaries() / argv[0]), *argv[1:], f"--dbname={target}"]
    said = bytearray()
    process = await trio.lowlevel.open_process(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environ
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, said)
            yield process
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):  # bounded: it was killed
                await process.wait()
    if process.returncode:
        why = said.decode(errors="replace").strip()
        raise conflict(f"{argv[0]} failed: {why}", "database_refused")


async def _listen(process: trio.Process, said: bytearray) -> None:
    assert process.stderr is not None
    async for chunk in process.stderr:
        said += chunk
        del said[:-SAID_BYTES]


def _apart(url: str) -> tuple[str, dict[str, str]]:
    """Take the password out of a URL and put it into an environment."""
    parts = urlsplit(url)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"PGAPPNAME": "whispr backup"}
    if parts.password is not None:
        environ["PGPASSWORD"] = unquote(parts.password)
        user, _, where = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user.partition(':')[0]}@{where}")
    return urlunsplit(parts), environ
