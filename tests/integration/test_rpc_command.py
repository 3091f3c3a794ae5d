"""`whispr rpc` against the running product: found by its data folder, looked at and called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.product import Product
from whispr.cli import app


@pytest.fixture
def rpc(product: Product, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with the product's data folder."""
    monkeypatch.setenv("WHISPR_DATA_DIR", str(product.data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["rpc", *arguments])


def test_services_are_listed_to_anybody(rpc: Any) -> None:
    """Each service's port says what is there, without a token."""
    for name in ("auth", "user", "messaging"):
        result = rpc("list", name)
        assert result.exit_code == 0, result.stderr
        assert f"whispr.v1.{name.capitalize()}Service" in result.stdout.split()
    assert "string username = 1;" in rpc("describe", "auth", "whispr.v1.LoginRequest").stdout


def test_calls_find_their_service_and_need_their_token(rpc: Any, product: Product) -> None:
    """The symbol says which service; UNAUTHENTICATED without a token; a service says for whom it asks."""
    alice, token = product.sign_up("rpcalice")
    call = ("call", "whispr.v1.UserService/SearchUsers", "-d", '{"query": "rpcali"}')
    refused = rpc(*call)
    assert (refused.exit_code, "  Code: UNAUTHENTICATED\n" in refused.stderr) == (64 + 16, True)
    answered = rpc(*call, "--token", token, "--deadline", "20")
    assert [user["id"] for user in json.loads(answered.stdout)["users"]] == [alice]
    service_token = CliRunner().invoke(app, ["token", "billing"]).stdout.strip()
    assert rpc(*call, "--token", service_token).exit_code == 64 + 7
    assert rpc(*call, "--token", service_token, "-H", f"x-whispr-actor: {alice}").exit_code == 0


def test_channelz_is_for_operators(rpc: Any, product: Product) -> None:
    """A service's token sees every server and channel of the process; people and strangers see none."""
    _, token = product.sign_up("rpcbob")
    call = ("call", "auth", "grpc.channelz.v1.Channelz/GetServers")
    assert "UNAUTHENTICATED" in rpc(*call).stderr
    assert "operators_only" in rpc(*call, "--token", token).stderr
    operator = CliRunner().invoke(app, ["token", "operations"]).stdout.strip()
    servers = json.loads(rpc(*call, "--token", operator).stdout)["server"]
    assert {"auth", "user", "messaging"} <= {server["ref"]["name"] for server in servers}
    top = rpc("call", "auth", "grpc.channelz.v1.Channelz/GetTopChannels", "--token", operator)
    ready = [channel for channel in json.loads(top.stdout)["channel"] if "calls_succeeded" in channel["data"]]
    assert ready
