"""What the page of a stream knows of it, by Node: answers and news, whichever comes first."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import whispr

ASSETS = Path(whispr.__file__).parent / "gateway" / "assets"

SCRIPT = """
globalThis.document = { hidden: true };
const asked = [];
globalThis.fetch = () => new Promise((resolve) => asked.push((hasSource) => resolve({
  ok: true,
  json: async () => ({ stream: { status: "LIVE" }, has_source: hasSource, listener_count: 1, refused: null }),
})));
const turn = () => new Promise((resolve) => setImmediate(resolve));
const channel = Object.assign(new EventTarget(), { joined: true, join() {}, leave() {} });
const tell = (event, payload) => channel.dispatchEvent(new CustomEvent("message", { detail: { event, payload } }));
const { Following } = await import("./assets/streams/following.js");
const shell = { session: { signedIn: false }, socket: { channel: () => channel } };
const following = new Following(shell, "an-id", "");

following.start();
await turn();
asked.shift()(false);
await turn();
channel.dispatchEvent(new CustomEvent("joined", { detail: { stream: { status: "LIVE" }, listener_count: 1 } }));
await turn();
tell("source_changed", { connected: true });
tell("listener_count", { count: 7 });
asked.shift()(false); // read before the source came
await turn();
const again = asked.length;
tell("levels", {}); // says nothing that the answer could be behind of
asked.shift()?.(true);
await turn();
console.log(JSON.stringify([again, following.hasSource, asked.length]));
following.stop();
"""


def test_news_is_not_undone_by_an_answer_that_is_older(tmp_path: Path) -> None:
    """An answer on its way while the channel tells of a source is asked for again; one that is newer is taken."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's modules cannot be run")
    (tmp_path / "assets").symlink_to(ASSETS)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "script.js").write_text(SCRIPT)
    command = [node, "--preserve-symlinks", "--preserve-symlinks-main", "script.js"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, True, 0]
