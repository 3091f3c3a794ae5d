"""Faults under load, one after another: what was tried, refused, retried, lost, doubled, and how long it took.

    just chaos [--only WORD] [--target NAME] [--json FILE] [--rate N]

Runs in namespaces of its own (root): disks, networks and control groups are made for it and go with it. What a
machine does not allow is said in its row. Exit code 0 when every fault that could be injected was survived: nothing
lost, doubled or left hanging, no error but clear ones, and everybody served again within `RECOVERY_S` of its end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import trio

from tests.chaos.books import open_books
from tests.chaos.faults import FAULTS, OF_WORKERS, TARGETS
from tests.chaos.load import Crowd
from tests.chaos.machine import INSIDE, Machine, NotHere, free_of, in_namespaces
from tests.chaos.rig import PROGRAMS, open_rig
from tests.chaos.rows import HEAD, Row, one_row
from whispr.telemetry.logging import configure_logging

GROUPS = 4


async def campaign(machine: Machine, options: argparse.Namespace) -> list[Row]:
    """All faults on one product."""
    rows: list[Row] = []
    workers: int = options.workers
    targets = TARGETS if workers == 1 else {"worker": f"1 of {workers} workers"}
    async with open_rig(machine, workers) as rig:
        crowd = Crowd(rig)
        await trio.to_thread.run_sync(crowd.gather, GROUPS, options.rate)
        async with open_books(rig, crowd) as books, trio.open_nursery() as nursery:
            nursery.start_soon(crowd.run)
            for target, title in targets.items():
                for name, fault in FAULTS.items():
                    if workers > 1 and name not in OF_WORKERS:
                        continue
                    if options.only not in name or options.target not in (None, target):
                        continue
                    rows.append(Row(title, name))
                    await one_row(rig, crowd, books, rows[-1], target, fault)
                    print(rows[-1].line(), flush=True)
                    for note in rows[-1].notes if options.notes or not rows[-1].passed else ():
                        print(f"{'':<18}  {note}", flush=True)
            nursery.cancel_scope.cancel(reason="all faults have been injected")
    return rows


def in_a_machine(workers: int, options: argparse.Namespace) -> list[Row]:
    """Run the faults of a product with so many workers in namespaces of their own."""
    folder = Path(tempfile.mkdtemp(prefix="whispr-chaos-"))
    try:
        code = in_namespaces("tests.chaos", [*sys.argv[1:], "--workers", str(workers)], folder)
        if code:
            return [Row("the rig itself", f"exit code {code}", unclean=1)]
        return [Row(**row) for row in json.loads((folder / "rows.json").read_text())]
    except NotHere as why:
        print(f"skipped: no namespaces of our own on this machine: {why}")
        return [Row("everything", "every fault", skipped=str(why))]
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            free_of(folder)


def inside(folder: Path, options: argparse.Namespace) -> None:
    """Run them, and leave the rows in the folder."""
    machine = Machine(folder, list(TARGETS), list(TARGETS), PROGRAMS)
    rows = trio.run(campaign, machine, options)
    (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--target", choices=[*TARGETS, "worker"], help="only this")
    parser.add_argument("--rate", type=float, default=48, help="messages a second")
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("--notes", action="store_true", help="say what the failures said")
    parser.add_argument("--keep", action="store_true", help="keep the folder, with its logs")
    options = parser.parse_args()
    configure_logging("error", "console")
    if INSIDE in os.environ:
        inside(Path(os.environ[INSIDE]), options)
        return 0
    print(HEAD, flush=True)
    rows: list[Row] = []
    for workers in (1, 2):
        if options.target is None or (options.target == "worker") is (workers > 1):
            rows += in_a_machine(workers, options)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"passed": row.passed} for row in rows], indent=2))
    failed = [row for row in rows if not row.passed]
    skipped = sum(bool(row.skipped) for row in rows)
    print(f"{len(rows) - len(failed) - skipped} survived, {len(failed)} not, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
