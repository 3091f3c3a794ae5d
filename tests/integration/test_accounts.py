"""Accounts as an operator and their owners have them: the first administrator, keys, secrets, exports, deletion."""

from __future__ import annotations

import base64
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio

from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, running
from whispr.embed import Backends
from whispr.realtime.client import Disconnected, open_phoenix

pytestmark = pytest.mark.slow

SECRET = "a secret that all of the services share"  # of this test


def operator(product: Product, *arguments: str, **environ: str) -> Any:
    """Run a command of the product beside it."""
    return whispr(*arguments, WHISPR_DATA_DIR=str(product.data_dir), **environ)


def reason_of(reply: Any) -> str:
    return next(str(detail["reason"]) for detail in reply["details"] if "reason" in detail)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product of this module's, for its keys and administrators change."""
    with running(tmp_path_factory.mktemp("accounts") / "data", UNLIMITED) as product:
        yield product


async def test_an_operator_makes_the_first_administrator(own: Product) -> None:
    """From then on roles are given over REST; a socket is closed with the reason when a role is taken away."""
    ada, _ = own.sign_up("ada")
    eva, token = own.sign_up("eva")
    assert own.call("PUT", f"/v1/auth/users/{eva}/role", {"role": "admin"}, token)[0] == 403
    promoted = operator(own, "account", "promote", "ADA")
    assert (promoted.returncode, promoted.stderr) == (0, "")
    assert f"{ada}  admin  active" in promoted.stdout
    status, reply = own.call("POST", "/v1/auth/login", {"username": "ada", "password": "correct horse"})
    assert (status, reply["user"]["role"]) == (200, "admin")
    root = reply["access_token"]
    assert own.call("PUT", f"/v1/auth/users/{eva}/role", {"role": "moderator"}, root)[0] == 200
    status, reply = own.call("POST", "/v1/auth/login", {"username": "eva", "password": "correct horse"})
    async with open_phoenix(own.websocket_url, reply["access_token"]) as phoenix:
        channel = await phoenix.join(f"user:{eva}")
        assert own.call("PUT", f"/v1/auth/users/{eva}/role", {"role": "user"}, root)[0] == 200
        with trio.fail_after(5):
            closed: Disconnected = await phoenix.wait_closed()
        del channel
    assert closed.close_code == 1008
    status, reply = own.call("GET", "/v1/users/me", token=reply["access_token"])
    assert (status, reason_of(reply)) == (401, "session_revoked")


def test_the_last_administrator_stays(own: Product) -> None:
    """Not even an operator takes away the only one."""
    refused = operator(own, "account", "role", "ada", "user")
    assert (refused.returncode, "only administrator" in refused.stderr) == (1, True)
    missing = operator(own, "account", "show", "nobody")
    assert (missing.returncode, "no such user" in missing.stderr) == (1, True)


def test_keys_rotate_under_a_running_product(own: Product) -> None:
    """A leaked key is replaced within seconds, and its tokens are refused within a minute; nothing is restarted."""
    _, token = own.sign_up("kay")
    listed = operator(own, "keys", "list")
    assert listed.stdout.startswith("0001  ")
    assert listed.stdout.rstrip().endswith("signs")
    refused = operator(own, "keys", "retire", "0001")
    assert (refused.returncode, "rotate first" in refused.stderr) == (1, True)
    assert "signs now" in operator(own, "keys", "rotate", "--at-once").stdout
    refused = operator(own, "keys", "retire", "0001")
    assert (refused.returncode, "may be alive" in refused.stderr) == (1, True)
    assert own.call("GET", "/v1/users/me", token=token)[0] == 200
    until_token_of(own, 2)
    assert own.call("GET", "/v1/users/me", token=token)[0] == 200
    assert operator(own, "keys", "retire", "0001", "--at-once").returncode == 0
    deadline = time.monotonic() + 60
    while own.call("GET", "/v1/users/me", token=token)[0] == 200:
        assert time.monotonic() < deadline, "a retired key is still trusted"
        time.sleep(0.5)
    assert own.call("GET", "/v1/users/me", token=until_token_of(own, 1))[0] == 200


def until_token_of(product: Product, keys: int) -> str:
    """Sign in until the token is under the newest of so many published keys."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        _, published = product.call("GET", "/.well-known/jwks.json")
        _, reply = product.call("POST", "/v1/auth/login", {"username": "kay", "password": "correct horse"})
        token: str = reply["access_token"]
        newest = operator(product, "keys", "list").stdout.splitlines()[-1].split()[1]
        if len(published["keys"]) == keys and jwt.get_unverified_header(token)["kid"] == newest:
            return token
        time.sleep(0.5)
    raise AssertionError("the new key never signed")


def test_everything_held_is_exported_and_then_deleted(own: Product, tmp_path: Path) -> None:
    """One zip from every service, for the owner and the operator; after a deletion nothing of it is left."""
    joe, token = own.sign_up("joe")
    eva = own.call("GET", "/v1/users?query=eva", token=token)[1]["users"][0]["id"]
    assert own.call("PATCH", "/v1/users/me", {"bio": "a joe", "display_name": "Joe"}, token)[0] == 200
    assert own.call("PUT", f"/v1/users/{eva}/contact", token=token)[0] == 200
    conversation = own.conversation(token, "direct", eva)
    path = f"/v1/conversations/{conversation}/messages"
    assert own.call("POST", path, {"text": "a message of joe"}, token)[0] == 200
    out = tmp_path / "joe.zip"
    exported = operator(own, "account", "export", "joe", "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(out) as archive:
        about = json.loads(archive.read("about.json"))
        assert about["username"] == "joe"
        assert {"auth.jsonl", "user.jsonl", "messaging.jsonl"} <= set(archive.namelist())
        assert b"a joe" in archive.read("user.jsonl")
        assert b"a message of joe" in archive.read("messaging.jsonl")
    again = operator(own, "account", "export", "joe", "--out", str(out))
    assert (again.returncode, "cannot make" in again.stderr) == (1, True)
    status, reply = own.call("POST", "/v1/auth/exports", {}, token)
    assert status == 200
    export = reply["export"]
    deadline = time.monotonic() + 20
    while export["state"] != "done" and time.monotonic() < deadline:
        export = own.call("GET", f"/v1/auth/exports/{export['id']}", token=token)[1]["export"]
    part = own.call("GET", f"/v1/auth/exports/{export['id']}/parts/0", token=token)[1]
    assert base64.b64decode(part["content"]).startswith(b"PK")
    assert own.call("POST", "/v1/auth/account/delete", {"password": "correct horse"}, token)[0] == 200
    status, reply = own.call("GET", "/v1/users/me", token=token)
    assert (status, reason_of(reply)) == (401, "session_revoked")
    _, eva_reply = own.call("POST", "/v1/auth/login", {"username": "eva", "password": "correct horse"})
    assert own.call("GET", f"/v1/users/{joe}", token=eva_reply["access_token"])[0] == 404
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status, page = own.call("GET", path, token=eva_reply["access_token"])
        if status == 200 and "a message of joe" not in json.dumps(page):
            break
    assert "a message of joe" not in json.dumps(page)
    assert own.sign_up("joe")[0] != joe


def test_an_export_names_the_services_that_are_away(backends: Backends, tmp_path: Path) -> None:
    """In a deployment where only some services run, the archive is not half there: it is not there."""
    assert backends.postgres_url is not None
    assert backends.redis_url is not None
    assert backends.nats_url is not None
    urls = UNLIMITED | {
        "WHISPR_POSTGRES_URL": backends.postgres_url,
        "WHISPR_REDIS_URL": backends.redis_url,
        "WHISPR_NATS_URL": backends.nats_url,
        # Nobody listens there.
        "WHISPR_MESSAGING_ENDPOINT": "127.0.0.1:1",
        "WHISPR_MEDIA_ENDPOINT": "127.0.0.1:1",
        "WHISPR_NOTIFICATION_ENDPOINT": "127.0.0.1:1",
        "WHISPR_CHAT_ENDPOINT": "127.0.0.1:1",
    }
    with running(tmp_path / "data", urls, "auth", "user") as product:
        product.sign_up("lonely")
        out = tmp_path / "lonely.zip"
        refused = operator(product, "account", "export", "lonely", "--out", str(out))
        assert refused.returncode == 1
        assert "messaging" in refused.stderr
        assert "export failed" in refused.stderr
        assert not out.exists()
    away = operator(product, "account", "show", "lonely")
    assert (away.returncode, "is it running?" in away.stderr) == (1, True)


def test_a_shared_secret_signs_for_all(tmp_path: Path) -> None:
    """With HS256 every holder of the secret makes and reads tokens; weak and forged ones are refused."""
    weak = whispr("doctor", WHISPR_AUTH_HS256_SECRET="short")
    assert (weak.returncode, "32 bytes" in weak.stderr) == (2, True)
    shown = whispr("config", "show", WHISPR_AUTH_HS256_SECRET=SECRET)
    assert SECRET not in shown.stdout + shown.stderr
    with running(tmp_path / "data", UNLIMITED | {"WHISPR_AUTH_HS256_SECRET": SECRET}) as product:
        user_id, token = product.sign_up("ada")
        assert jwt.get_unverified_header(token)["alg"] == "HS256"
        claims = jwt.decode(token, SECRET, ["HS256"], audience="whispr")
        assert claims["sub"] == user_id
        assert product.call("GET", "/v1/users/me", token=token)[0] == 200
        header = {"typ": "at+jwt"}
        theirs = jwt.encode(claims | {"jti": "theirs"}, SECRET, "HS256", headers=header)
        assert product.call("GET", "/v1/users/me", token=theirs)[0] == 200
        forged = jwt.encode(claims, "another secret, as long as the one above", "HS256", headers=header)
        assert product.call("GET", "/v1/users/me", token=forged)[0] == 401
        assert product.call("GET", "/.well-known/jwks.json")[1].get("keys", []) == []
