"""Autobahn's own case files against the listener, run by kosoku: a fuzzing client of today that takes them.

Sections 1 to 7, 9 and 10. Those of compression, 12 and 13, are `test_websocket`'s: kosoku 0.1 cannot run them, for
what they hash is text, which Python 3 refuses.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from tests.conformance.test_websocket import LIFTED, Echo
from whispr.realtime import server
from whispr.realtime.handshake import check_upgrade
from whispr.realtime.hub import Hub
from whispr.realtime.testing import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CASES = 301
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
"""Autobahn's words for what conforms; NON-STRICT is what a SHOULD would have otherwise."""


class Report(msgspec.Struct):
    """What is read of a case's report."""

    id: str
    behavior: str
    behaviorClose: str  # noqa: N815  # the report's name


async def test_autobahns_cases_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every case of every section that concerns frames, messages and closing is judged good by Autobahn's rules."""
    kosoku = shutil.which("kosoku", path=str(Path(sys.executable).parent))
    assert kosoku is not None, "it is of the development dependencies"
    monkeypatch.setattr(server, "WebSocket", Echo)
    # The fuzzing client asks for no path of ours and has no token.
    target = "/socket/websocket?vsn=2.0.0&token=fuzz"
    monkeypatch.setattr(server, "check_upgrade", lambda _, *rest: check_upgrade(target, *rest))
    async with served({}, hub=Hub(LIFTED)) as listening:
        sections = [word for n in (1, 2, 3, 4, 5, 6, 7, 9, 10) for word in ("--include", f"{n}.*")]
        command = [kosoku, f"127.0.0.1:{listening.port}", "--outdir", str(tmp_path), *sections]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    found = [msgspec.json.decode(path.read_bytes(), type=Report) for path in tmp_path.glob("*_case_*.json")]
    bad = [each for each in found if not {each.behavior, each.behaviorClose} <= GOOD]
    assert not bad
    assert len(found) == CASES, done.stdout
    assert done.returncode == 0, done.stdout
