"""What the command line says of trouble: what it is about and what to do, and nothing of our own code."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import httpx
import pytest
import trio
from typer.testing import CliRunner

from whispr import cli, ports
from whispr.chat.session import addresses
from whispr.config import Settings, load
from whispr.embed import run_children
from whispr.errors import WhisprError
from whispr.tree_console import client_of


def settings_in(folder: Path, **environ: str) -> Settings:
    return load({"WHISPR_DATA_DIR": str(folder)} | environ).settings


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/RESTORING"),
            "whispr: /data/RESTORING: Permission denied (run this as the user it belongs to)",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "whispr: No space left on device"),
        (
            ExceptionGroup("of a nursery", [OSError(errno.EROFS, "Read-only file system", "/data/lock")]),
            "whispr: /data/lock: Read-only file system",
        ),
    ],
)
def test_the_machine_is_told_of_in_a_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk and a folder of somebody else's end a command with the file's name, and not with a traceback."""

    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (1, said + "\n")


def test_a_defect_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no operator's to mend is not made a line of."""

    def failing() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(BrokenPipeError):
        cli.main()


@pytest.mark.parametrize("url", ["foo", "ftp://h", "http://[::1", "http://h:port"])
def test_a_gateway_has_an_http_address(url: str) -> None:
    """What cannot be one is bad usage, named."""
    with pytest.raises(WhisprError, match=r"^INVALID_ARGUMENT: url: "):
        client_of(url, "token")


async def test_a_gateways_address_is_used() -> None:
    """What can be one is a client's."""
    async with client_of("https://[::1]:8080", "token") as client:
        assert client.base_url == httpx.URL("https://[::1]:8080")


def test_chat_goes_where_the_product_listens(tmp_path: Path) -> None:
    """By its own scheme and address; a product that nobody can chat with is one that does not run."""
    for published in ({}, {"gateway": 1, "auth": 2}):
        ports.publish(tmp_path, published)
        with pytest.raises(WhisprError, match="no chat runs in"):
            addresses(settings_in(tmp_path), "", "")
    ports.publish(tmp_path, {"gateway": 1, "websocket": 2})
    where = settings_in(
        tmp_path,
        WHISPR_HOST="10.0.0.5",
        WHISPR_GATEWAY_TLS_CERTIFICATE="c.pem",
        WHISPR_GATEWAY_TLS_KEY="k.pem",
    )
    assert addresses(where, "", "") == ("https://10.0.0.5:1", "ws://10.0.0.5:2")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", str(2**63)],
        ["drop", str(2**63)],
        ["replay-dead", "0"],
        ["list-dead", "--limit", str(2**63)],
    ],
)
def test_numbers_of_letters_are_bounded(arguments: list[str]) -> None:
    """One that PostgreSQL does not count to is bad usage."""
    assert CliRunner().invoke(cli.app, ["events", *arguments]).exit_code == 2


async def test_root_makes_nothing_in_somebodys_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would be root's, and the product could not start any more."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 1234, 1234)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.RaisesGroup(pytest.RaisesExc(WhisprError, match="run this as that user")):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_children, tmp_path, ["redis"])
    assert [*tmp_path.iterdir()] == []
