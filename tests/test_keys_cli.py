"""`whispr keys` and `whispr account` on a data folder with no product running."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from whispr.cli import app
from whispr.errors import WhisprError
from whispr.services.auth.keys import PUBLISH_S, ensure_keys

Run = Callable[..., Result]


@pytest.fixture
def whispr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command line whose data folder is this test's."""
    monkeypatch.setenv("WHISPR_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WHISPR_AUTH_PORT", "1")
    monkeypatch.delenv("WHISPR_AUTH_ENDPOINT", raising=False)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def refusal(result: Result) -> str:
    assert isinstance(result.exception, WhisprError), result.output
    return result.exception.message


def test_keys_are_rotated_and_retired(whispr: Run, tmp_path: Path) -> None:
    """List says what each key does, before, during and after a rotation."""
    folder = tmp_path / "keys"
    ensure_keys(folder)
    assert whispr("keys", "list").output.rstrip().endswith("  signs")
    assert "signs in 60 s" in whispr("keys", "rotate").output
    first, second = whispr("keys", "list").output.splitlines()
    assert (first.endswith("  signs"), second.endswith("  verifies, signs soon")) == (True, True)
    made_at = time.time() - PUBLISH_S - 4000
    os.utime(folder / "0002.pem", (made_at, made_at))
    first, second = whispr("keys", "list").output.splitlines()
    assert (first.endswith("  verifies"), second.endswith("  signs")) == (True, True)
    assert "0001" in whispr("keys", "retire", first.split()[1]).output
    assert len(whispr("keys", "list").output.splitlines()) == 1


def test_shared_secrets_are_listed_by_id(
    whispr: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets sign before keys do, and are not shown."""
    ensure_keys(tmp_path / "keys")
    monkeypatch.setenv("WHISPR_AUTH_HS256_SECRET", "s" * 40)
    key, secret = whispr("keys", "list").output.splitlines()
    assert (key.endswith("  verifies"), secret.startswith("HS256  hs256-"), secret.endswith("  signs")) == (
        True,
        True,
        True,
    )
    assert "s" * 40 not in secret


def test_without_keys_they_say_what_to_do(whispr: Run, tmp_path: Path) -> None:
    """No key to rotate, no key to sign an operator's token with, and one that is open to others."""
    for arguments in (("keys", "rotate"), ("account", "show", "ada")):
        assert "start the auth service once" in refusal(whispr(*arguments))
    assert "no key 0001" in refusal(whispr("keys", "retire", "0001"))
    ensure_keys(tmp_path / "keys")
    (tmp_path / "keys" / "0001.pem").chmod(0o644)
    assert "chmod 600" in refusal(whispr("keys", "list"))


def test_without_a_product_accounts_cannot_be_reached(whispr: Run, tmp_path: Path) -> None:
    """Each command says where it looked for the auth service; an export leaves no file behind."""
    ensure_keys(tmp_path / "keys")
    out = tmp_path / "ada.zip"
    commands = (
        ("show", "ada"),
        ("promote", "ada"),
        ("role", "ada", "user"),
        ("deactivate", "ada"),
        ("reactivate", "ada"),
        ("delete", "ada", "--yes"),
        ("export", "ada", "--out", str(out)),
    )
    for command in commands:
        message = refusal(whispr("account", *command))
        assert "cannot be reached at 127.0.0.1:1: is it running?" in message, command
    assert not out.exists()
    assert whispr("account", "delete", "ada").exit_code == 1  # it asks, and nobody answers
