"""The README is true: each command in it is run here, as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.product import LISTENERS, Product
from whispr.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q uv rust-just && .venv/bin/just serve"
TEST = ".venv/bin/just test"


def commands() -> list[str]:
    """Every line of the README's shell blocks."""
    return [
        line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]


def test_every_command_is_accounted_for() -> None:
    """A command added to the README without a test of it fails here."""
    known = (INSTALL, TEST, ".venv/bin/whispr ", ".venv/bin/just ", "curl ", "TOKEN=")
    assert [line for line in commands() if not line.startswith(known)] == []
    assert commands()[:2] == [INSTALL, TEST]


@pytest.fixture
def environ(product: Product, tmp_path: Path) -> dict[str, str]:
    """The environment in which the README's lines find the running product instead of port 8080."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / ".venv" / "bin" / "whispr"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m whispr.cli "$@"\n')
    script.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    return clean | {
        "PYTHONPATH": str(ROOT),
        "WHISPR_DATA_DIR": str(product.data_dir),
        "CHAT_PASSWORD": "correct horse",
    }


def shell(lines: list[str], product: Product, environ: dict[str, str], folder: Path, stdin: str = "") -> str:
    """Run lines of the README; return what they print."""
    script = "\n".join(["set -e", *lines]).replace("localhost:8080", f"localhost:{product.ports['gateway']}")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder, env=environ, input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tour_over_rest(product: Product, environ: dict[str, str], tmp_path: Path) -> None:
    """Signing up, signing in and looking around with curl works as printed."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    printed = shell(
        [line for line in commands() if line.startswith(("curl", "TOKEN"))], product, environ, tmp_path
    )
    assert '"username":"carol"' in printed
    assert '"conversations":[]' in printed


def test_the_tour_in_terminals(product: Product, environ: dict[str, str], tmp_path: Path) -> None:
    """Alice's line reaches Bob, with the two commands of the README."""
    alice, bob = (line for line in commands() if " chat " in line)
    product.sign_up("bob")
    shell([alice], product, environ, tmp_path, "hello bob\n")
    assert "alice: hello bob" in shell([bob], product, environ, tmp_path)


def here(line: str) -> str:
    """Run a command of ours in this process, which is a second faster; return what it prints."""
    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_operators_commands(
    product: Product, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config`, `status`, `tree`, `doctor`, `token`, `account`, `keys`, `events`, `backup` and the rest work."""
    ours = [line for line in commands() if line.startswith(".venv/bin/whispr ")]
    lines = [line for line in ours if line.split()[1] not in ("chat", "rpc")]
    named = [line.split()[1] for line in lines]
    assert " ".join(named) == (
        "config doctor status tree migrate token account keys events events backup restore"
    )
    show, doctor, status, tree, migrate, token, promote, keys, lag, dead, backup, restore = lines
    body = {"username": "carol", "password": "correct horse"}
    assert product.call("POST", "/v1/auth/register", body)[0] in (200, 409)  # she may have taken the tour
    monkeypatch.setenv("WHISPR_DATA_DIR", str(product.data_dir))
    assert "admin" in here(promote)
    assert "signs" in here(keys)
    assert "outbox" in here(lag)
    assert "whispr is ok" in here(status)
    assert "service auth" in here(tree)
    here(dead)
    assert str(product.data_dir) in here(show)
    assert here(token).count(".") == 2
    elsewhere = environ | {"WHISPR_DATA_DIR": str(tmp_path / "data")}
    elsewhere |= {f"WHISPR_{name.upper()}_PORT": "0" for name in product.ports}
    assert "FAIL" not in shell([doctor], product, elsewhere, tmp_path)
    assert "applied" in shell([migrate], product, elsewhere, tmp_path)
    monkeypatch.setenv("WHISPR_DATA_DIR", str(tmp_path / "data"))
    assert "up to date" in here(migrate)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHISPR_DATA_DIR", str(product.data_dir))
    assert "keep it secret" in here(backup)
    monkeypatch.setenv("WHISPR_DATA_DIR", str(tmp_path / "restored"))
    assert "restored as of" in here(restore)


def test_grpc_by_hand(
    product: Product, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`whispr rpc` lists, describes and calls as the README shows."""
    _, token = product.sign_up("alison")
    listing, describing, searching, watching = (
        line for line in commands() if line.startswith(".venv/bin/whispr rpc")
    )
    monkeypatch.setenv("WHISPR_DATA_DIR", str(product.data_dir))
    assert "whispr.v1.AuthService" in here(listing)
    assert "SearchUsers" in here(describing)
    assert '"username": "alison"' in here(searching.replace("$TOKEN", token))
    assert '"server"' in shell([watching], product, environ, tmp_path)


def test_recipes() -> None:
    """Every recipe the README names is in the justfile, and `serve` is what the first command ends in."""
    recipes = set(re.findall(r"^([a-z-]+)(?: \*\w+)*:", (ROOT / "justfile").read_text(), re.MULTILINE))
    named = set(re.findall(r"just ([a-z][a-z-]+)", README))
    assert named <= recipes
    assert {"serve", "test"} <= named


def test_the_first_command_from_a_fresh_clone(tmp_path: Path) -> None:
    """The clone installs itself from the lock files and serves; Ctrl-C at the terminal ends it.

    The package cache of this machine is used; `pip install uv rust-just` is taken as done.
    """
    clone = tmp_path / "clone"
    names = ".venv .whispr node_modules __pycache__ .git .hypothesis .*_cache"
    ignored = shutil.ignore_patterns(*names.split())
    shutil.copytree(ROOT, clone, ignore=ignored)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    environ |= {f"WHISPR_{name.upper()}_PORT": "0" for name in LISTENERS}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=clone, check=True)
    for tool in ("uv", "just"):
        shutil.copy(Path(sys.executable).with_name(tool), clone / ".venv" / "bin" / tool)
    with subprocess.Popen(
        [".venv/bin/just", "serve"],
        cwd=clone, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as serving:  # fmt: skip
        assert serving.stdout is not None
        lines = iter(serving.stdout.readline, "")
        assert next((line for line in lines if line.startswith("ready in")), None), "it never was ready"
        os.killpg(serving.pid, signal.SIGINT)
        serving.wait(20)
    assert not (clone / ".whispr" / "ports.json").exists()


def test_the_configuration_table() -> None:
    """Each variable in the README is one that is read, and its default is the real one."""
    from whispr.config import load

    settings = load({}).settings
    for name, default in re.findall(r"^\| `WHISPR_LIMITS_(\w+)` \| (\d+) \|", README, re.MULTILINE):
        assert getattr(settings.limits, name.lower()) == int(default)
    environ = dict.fromkeys(re.findall(r"`(WHISPR_[A-Z_]+)`", README), "")
    environ.pop("WHISPR_CONFIG")
    load(environ)
    assert len(environ) > 20


def test_the_version_is_one() -> None:
    """The package, its metadata and the README agree."""
    from whispr import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"whispr {__version__} ·" in README
