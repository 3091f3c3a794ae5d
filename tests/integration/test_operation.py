"""Starting and stopping, as an operator does it; and every way in which a start is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_resilience import alive
from tests.product import Product, StartError, running, start


def children_of(product: Product) -> list[int]:
    return [product.pid_of(name) for name in ("postgres", "redis", "nats")]


def whispr(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the product to its end."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    command = [sys.executable, "-m", "whispr.cli", *arguments]
    return subprocess.run(
        command, env=clean | environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C drain and stop the product and its backends, with exit code 0."""
    product = start(tmp_path / "data")
    try:
        children = children_of(product)
        assert all(alive(pid) for pid in children)
        assert product.stop(number, within_s=10) == 0
        assert not [pid for pid in children if alive(pid)]
        assert not (product.data_dir / "ports.json").exists()
    finally:
        product.kill()


@pytest.mark.slow
def test_a_restart_finds_everything_as_it_was(tmp_path: Path) -> None:
    """Accounts, keys and messages outlive an orderly stop, and an access token stays good."""
    with running(tmp_path / "data") as product:
        alice, token = product.sign_up("alice")
        bob, _ = product.sign_up("bob")
        conversation = product.conversation(token, "direct", bob)
        path = f"/v1/conversations/{conversation}/messages"
        assert product.call("POST", path, {"text": "kept"}, token)[0] == 200
    with running(tmp_path / "data") as product:
        status, page = product.call("GET", path, token=token)
        assert status == 200
        assert [(m["sender_id"], m["text"]) for m in page["messages"]] == [(alice, "kept")]


@pytest.mark.slow
def test_two_products_on_one_machine(tmp_path: Path) -> None:
    """With different data folders two run side by side; a second one on the same folder is refused."""
    with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
        one.sign_up("alice")
        two.sign_up("alice")
        with pytest.raises(StartError, match=f"in use by pid {one.process.pid}"):
            start(tmp_path / "one")


def test_ports_in_use_are_all_named(tmp_path: Path) -> None:
    """Every port that is taken is named with the setting that moves it, and nothing was started."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        taken = {"WHISPR_GATEWAY_PORT": first, "WHISPR_MESSAGING_PORT": second}
        environ = {name: str(server.getsockname()[1]) for name, server in taken.items()}
        with pytest.raises(StartError) as refused:
            start(tmp_path / "data", environ)
    for name, port in environ.items():
        assert name in str(refused.value)
        assert port in str(refused.value)
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_newer_data_folder_is_refused(tmp_path: Path) -> None:
    """A folder that a newer version wrote is left alone, and both versions are named."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "VERSION").write_text("99\n")
    with pytest.raises(StartError, match="99"):
        start(data)


def test_a_configuration_that_cannot_be_used_says_all_that_is_wrong(tmp_path: Path) -> None:
    """Exit code 2 and one report, whether the file cannot be read or values are bad."""
    missing = whispr("serve", WHISPR_CONFIG=str(tmp_path / "missing.toml"))
    assert missing.returncode == 2
    assert "cannot be read" in missing.stderr
    bad = whispr("serve", WHISPR_GATEWAY_PORT="high", WHISPR_LIMITS_USER_SOCKETS="-1")
    assert bad.returncode == 2
    assert "WHISPR_GATEWAY_PORT" in bad.stderr
    assert "WHISPR_LIMITS_USER_SOCKETS" in bad.stderr


def test_an_unknown_service_is_named() -> None:
    """`whispr serve nonsense` says which services there are."""
    refused = whispr("serve", "nonsense")
    assert refused.returncode == 2
    assert "nonsense" in refused.stderr
    assert "messaging" in refused.stderr


@pytest.mark.slow
def test_a_stop_gives_load_balancers_notice(tmp_path: Path) -> None:
    """With WHISPR_DRAIN_NOTICE_S, readiness ends first, and whoever comes until then is still served."""
    with running(tmp_path / "data", {"WHISPR_DRAIN_NOTICE_S": "5"}) as product:
        _, token = product.sign_up("alice")
        product.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 4
        while product.call("GET", "/readyz")[0] == 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert product.call("GET", "/v1/conversations", token=token)[0] == 200
        assert product.process.wait(30) == 0
