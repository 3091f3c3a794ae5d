"""FCM and APNs, each against a server on loopback that speaks the real thing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.services.notification.kit import TLS
from tests.services.notification.servers import PushServer, Reply, Request, http2_server, self_signed
from whispr.errors import WhisprError
from whispr.services.notification.domain import Platform, Priority
from whispr.services.notification.senders.addresses import Network
from whispr.services.notification.senders.apns import Apns, Team, priority_of, read_key
from whispr.services.notification.senders.fcm import GRANT, SCOPE, Account, Fcm, read_account
from whispr.services.notification.senders.http import Http
from whispr.services.notification.senders.port import Delivered, Gone, Later, Push, Refused, Target

DAY_S = 86_400.0
PUSH = Push(
    type="message",
    notification_id="n1",
    title="Ann",
    body="hello",
    data={"conversation_id": "c1"},
    collapse_key="conversation:c1",
    priority=Priority.HIGH,
    badge=3,
)


@pytest.fixture
async def client() -> AsyncIterator[Http]:
    """A client that may reach loopback."""
    client = Http(Network(private_allowed=True), per_host=8, tls=TLS)
    yield client
    await client.aclose()


# FCM


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    """A service account's."""
    return rsa.generate_private_key(65537, 2048)


class FcmServer:
    """FCM and its token endpoint."""

    def __init__(self, push: PushServer, key: rsa.RSAPrivateKey) -> None:
        self.grants = 0
        self.messages: list[dict[str, Any]] = []
        self.replies: list[Reply] = []
        self._push, self._key = push, key
        push.otherwise = self._answer

    def account(self) -> Account:
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Account("proj", "svc@proj.example", pem.decode(), f"{self._push.url}/token", "key-1")

    def _answer(self, request: Request) -> Reply:
        if request.path == "/token":
            form = parse_qs(request.body.decode())
            assert form["grant_type"] == [GRANT]
            claims = jwt.decode(
                form["assertion"][0], self._key.public_key(), algorithms=["RS256"],
                audience=f"{self._push.url}/token", options={"verify_iat": False},
            )  # fmt: skip
            assert (claims["iss"], claims["scope"]) == ("svc@proj.example", SCOPE)
            self.grants += 1
            token = {"access_token": f"token-{self.grants}", "expires_in": 3600}
            return Reply(200, [], msgspec.json.encode(token))
        assert request.path == "/v1/projects/proj/messages:send"
        if request.headers["authorization"] != f"Bearer token-{self.grants}":
            return Reply(401, [], b'{"error": {"code": 401, "status": "UNAUTHENTICATED"}}')
        self.messages.append(msgspec.json.decode(request.body)["message"])
        return (
            self.replies.pop(0) if self.replies else Reply(200, [], b'{"name": "projects/proj/messages/1"}')
        )


def phone(token: str = "fcm-token") -> Target:
    return Target(id="d", platform=Platform.FCM, token=token)


async def test_fcm_gets_a_token_once_and_messages_in_its_shape(
    client: Http, push: PushServer, rsa_key: rsa.RSAPrivateKey
) -> None:
    """The service account's signed assertion buys a token that serves until it is about to expire."""
    server = FcmServer(push, rsa_key)
    now = [time.time()]
    sender = Fcm(client, server.account(), url=push.url, wall_clock=lambda: now[0])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(sender.send, phone(), PUSH, "x", DAY_S)
    assert server.grants == 1
    message = server.messages[0]
    assert message["token"] == "fcm-token"
    assert message["notification"] == {"title": "Ann", "body": "hello"}
    assert message["data"]["conversation_id"] == "c1"
    assert message["android"]["priority"] == "HIGH"
    assert (message["android"]["collapse_key"], message["android"]["ttl"]) == ("conversation:c1", "86400s")
    silent = msgspec.structs.replace(PUSH, silent=True)
    assert await sender.send(phone(), silent, "x", 60) == Delivered()
    assert "notification" not in server.messages[-1]
    assert server.messages[-1]["android"]["priority"] == "NORMAL"
    now[0] += 3590
    assert await sender.send(phone(), PUSH, "x", 60) == Delivered()
    assert server.grants == 2


async def test_a_token_that_fcm_takes_no_more_is_replaced(
    client: Http, push: PushServer, rsa_key: rsa.RSAPrivateKey
) -> None:
    """A 401 costs one new token and one more try."""
    server = FcmServer(push, rsa_key)
    sender = Fcm(client, server.account(), url=push.url)
    assert await sender.send(phone(), PUSH, "x", 60) == Delivered()
    sender._token = "revoked"
    assert await sender.send(phone(), PUSH, "x", 60) == Delivered()
    assert server.grants == 2


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, {"error": {"status": "NOT_FOUND", "details": [{"errorCode": "UNREGISTERED"}]}}, Gone),
        (403, {"error": {"details": [{"errorCode": "SENDER_ID_MISMATCH"}]}}, Gone),
        (
            400,
            {
                "error": {
                    "status": "INVALID_ARGUMENT",
                    "details": [
                        {"errorCode": "INVALID_ARGUMENT"},
                        {"fieldViolations": [{"field": "message.token"}]},
                    ],
                }
            },
            Gone,
        ),
        (400, {"error": {"status": "INVALID_ARGUMENT"}}, Refused),
        (429, {"error": {"details": [{"errorCode": "QUOTA_EXCEEDED"}]}}, Later),
        (503, "nonsense", Later),
        (400, ["nonsense"], Refused),
    ],
)
async def test_answers_of_fcm(
    client: Http, push: PushServer, rsa_key: rsa.RSAPrivateKey, status: int, body: object, kind: type
) -> None:
    """Tokens that FCM does not know any more end the device; what is its own trouble is tried again."""
    server = FcmServer(push, rsa_key)
    server.replies = [Reply(status, [("retry-after", "9")], msgspec.json.encode(body))]
    outcome = await Fcm(client, server.account(), url=push.url).send(phone(), PUSH, "x", 60)
    assert isinstance(outcome, kind)
    if isinstance(outcome, Later):
        assert outcome.after_s == 9.0


async def test_without_a_token_nothing_is_sent_and_nobody_is_forgotten(
    client: Http, push: PushServer, rsa_key: rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    """A service account that is refused is the operator's trouble, not the device's."""
    account = FcmServer(push, rsa_key).account()
    sender = Fcm(client, account, url=push.url)
    for reply in (Reply(400, [], b'{"error": "invalid_grant"}'), Reply(500), Reply(200, [], b"{}")):
        push.otherwise = reply
        assert isinstance(await sender.send(phone(), PUSH, "x", 60), Later)
    assert {request.path for request in push.requests} == {"/token"}
    file = tmp_path / "account.json"
    file.write_bytes(msgspec.json.encode({"type": "service_account", **msgspec.structs.asdict(account)}))
    assert read_account(file) == account
    file.write_text("{}")
    with pytest.raises(WhisprError, match="no service account"):
        read_account(file)


# APNs


@pytest.fixture(scope="module")
def apple_key() -> ec.EllipticCurvePrivateKey:
    """A developer's."""
    return ec.generate_private_key(ec.SECP256R1())


def team_of(key: ec.EllipticCurvePrivateKey) -> Team:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Team(pem.decode(), "KEY1234567", "TEAM123456", "org.example.chat")


IPHONE = Target(id="d", platform=Platform.APNS, token="ab" * 32)


@pytest.fixture
async def apple(tmp_path: Path) -> AsyncIterator[tuple[PushServer, Http]]:
    """APNs on loopback, over TLS and HTTP/2, and a client that trusts it."""
    server_tls, client_tls = self_signed(tmp_path)
    client = Http(Network(private_allowed=True), per_host=8, http1=False, http2=True, tls=client_tls)
    async with http2_server(server_tls) as server:
        yield server, client
        await client.aclose()


async def test_apns_over_http2(apple: tuple[PushServer, Http], apple_key: ec.EllipticCurvePrivateKey) -> None:
    """Alerts and background pushes carry what Apple asks for, signed by the developer's key."""
    server, client = apple
    sender = Apns(client, team_of(apple_key), url=server.url, wall_clock=lambda: 2_000_000_000.0)
    assert await sender.send(IPHONE, PUSH, "delivery-1", 60) == Delivered()
    (request,) = server.requests
    headers = request.headers
    assert (request.version, request.path) == ("2", f"/3/device/{IPHONE.token}")
    assert headers["apns-id"] == "delivery-1"
    assert headers["apns-topic"] == "org.example.chat"
    assert (headers["apns-push-type"], headers["apns-priority"]) == ("alert", "10")
    assert headers["apns-expiration"] == "2000000060"
    assert headers["apns-collapse-id"] == "conversation:c1"
    token = headers["authorization"].removeprefix("bearer ")
    assert jwt.get_unverified_header(token)["kid"] == "KEY1234567"
    claims = jwt.decode(token, apple_key.public_key(), algorithms=["ES256"], options={"verify_iat": False})
    assert claims == {"iss": "TEAM123456", "iat": 2_000_000_000}
    payload = msgspec.json.decode(request.body)
    assert payload["aps"]["alert"] == {"title": "Ann", "body": "hello"}
    assert (payload["aps"]["badge"], payload["conversation_id"]) == (3, "c1")

    silent = msgspec.structs.replace(PUSH, silent=True, collapse_key="")
    assert await sender.send(IPHONE, silent, "delivery-2", 60) == Delivered()
    headers = server.requests[1].headers
    assert (headers["apns-push-type"], headers["apns-priority"]) == ("background", "5")
    aps = msgspec.json.decode(server.requests[1].body)["aps"]
    assert aps == {"badge": 3, "content-available": 1}
    assert headers["authorization"] == f"bearer {token}"


async def test_pushes_to_apple_share_a_connection(
    apple: tuple[PushServer, Http], apple_key: ec.EllipticCurvePrivateKey
) -> None:
    """Streams of one connection, beside each other."""
    server, client = apple
    sender = Apns(client, team_of(apple_key), url=server.url)
    await sender.send(IPHONE, PUSH, "first", 60)
    server.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(sender.send, IPHONE, PUSH, str(number), 60)
        await server.wait_requests(5)
        server.hold.set()
    assert server.at_once_max == 4
    assert len(client._pool.connections) == 1


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (410, "Unregistered", Gone),
        (400, "BadDeviceToken", Gone),
        (400, "DeviceTokenNotForTopic", Gone),
        (400, "PayloadEmpty", Refused),
        (429, "TooManyRequests", Later),
        (503, "Shutdown", Later),
    ],
)
async def test_answers_of_apns(
    apple: tuple[PushServer, Http],
    apple_key: ec.EllipticCurvePrivateKey,
    status: int,
    reason: str,
    kind: type,
) -> None:
    """Tokens that Apple does not know end the device; what is Apple's own trouble is tried again."""
    server, client = apple
    server.otherwise = Reply(status, [("retry-after", "5")], msgspec.json.encode({"reason": reason}))
    outcome = await Apns(client, team_of(apple_key), url=server.url).send(IPHONE, PUSH, "x", 60)
    assert isinstance(outcome, kind)
    assert reason in getattr(outcome, "reason", "")


async def test_provider_tokens_age(
    apple: tuple[PushServer, Http], apple_key: ec.EllipticCurvePrivateKey
) -> None:
    """A provider token is replaced after 40 minutes, and at once when Apple calls it expired."""
    server, client = apple
    now = [1_000_000_000.0]
    sender = Apns(client, team_of(apple_key), url=server.url, wall_clock=lambda: now[0])
    await sender.send(IPHONE, PUSH, "1", 60)
    now[0] += 1800
    await sender.send(IPHONE, PUSH, "2", 60)
    now[0] += 1800
    await sender.send(IPHONE, PUSH, "3", 60)
    used = [request.headers["authorization"] for request in server.requests]
    assert used[0] == used[1] != used[2]
    now[0] += 60
    server.answers = [Reply(403, [], b'{"reason": "ExpiredProviderToken"}')]
    assert await sender.send(IPHONE, PUSH, "4", 60) == Delivered()
    assert server.requests[-1].headers["authorization"] not in used


def test_apple_priorities_and_keys(tmp_path: Path, apple_key: ec.EllipticCurvePrivateKey) -> None:
    """Priorities in Apple's numbers; a file that holds no key of theirs is refused at start."""
    shown = [priority_of(msgspec.structs.replace(PUSH, priority=each)) for each in Priority]
    assert shown == ["1", "5", "10", "10"]
    file = tmp_path / "key.p8"
    file.write_text(team_of(apple_key).key)
    assert read_key(file) == team_of(apple_key).key
    file.write_text("nonsense")
    with pytest.raises(WhisprError, match="no key of APNs"):
        read_key(file)
    with pytest.raises(WhisprError, match="no key of APNs"):
        read_key(tmp_path / "nowhere.p8")
