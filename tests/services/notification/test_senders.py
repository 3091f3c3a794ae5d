"""Senders, each against a server on loopback that speaks the real thing."""

from __future__ import annotations

import base64
import stat
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import http_ece
import httpcore
import jwt
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.services.notification.kit import Subscription, b64
from tests.services.notification.servers import PushServer, Reply, Request, http2_server, self_signed
from whispr.errors import WhisprError
from whispr.services.notification.domain import Platform, Priority
from whispr.services.notification.senders import http as http_module
from whispr.services.notification.senders import port
from whispr.services.notification.senders.addresses import ForbiddenAddressError, Network, is_public
from whispr.services.notification.senders.apns import Apns, Team, priority_of, read_key
from whispr.services.notification.senders.fcm import GRANT, SCOPE, Account, Fcm, read_account
from whispr.services.notification.senders.http import Answer, ForbiddenError, Http
from whispr.services.notification.senders.port import Delivered, Gone, Later, Push, Refused, Target
from whispr.services.notification.senders.vapid import TOKEN_S, Vapid, load_or_make
from whispr.services.notification.senders.webhook import Webhook
from whispr.services.notification.senders.webpush import WebPush, encrypt, topic_of

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
    client = Http(Network(private_allowed=True), per_host=8)
    yield client
    await client.aclose()


# Web Push


def test_encryption_is_that_of_the_rfc() -> None:
    """RFC 8291, appendix A: the same keys, salt and text give the same octets."""

    def raw(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    number = int.from_bytes(raw("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"))
    sealed = encrypt(
        b"When I grow up, I want to be a watermelon",
        raw("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"),
        raw("BTBZMqHH6r4Tts7J_aSIgg"),
        key=ec.derive_private_key(number, ec.SECP256R1()),
        salt=raw("DGv6ra1nlYgDCS1FRnbzlw"),
    )
    assert b64(sealed) == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
        "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )


async def test_web_push_is_encrypted_for_the_browser_and_signed_for_its_service(
    client: Http, push: PushServer, tmp_path: Path
) -> None:
    """Only the browser can read it, and the push service can tell whose it is (RFC 8030, 8291, 8292)."""
    browser = Subscription(f"{push.url}/push/1")
    vapid = Vapid(load_or_make(tmp_path / "vapid.pem"), "mailto:ops@example.org")
    sender = WebPush(client, vapid)
    target = Target(
        id="d", platform=Platform.WEBPUSH, token=browser.endpoint, p256dh=browser.p256dh, auth=browser.auth
    )
    push.answers = [Reply(201), Reply(201)]
    assert await sender.send(target, PUSH, "x", DAY_S) == Delivered()
    (request,) = push.requests
    headers = request.headers
    assert (headers["ttl"], headers["urgency"], headers["content-encoding"]) == ("86400", "high", "aes128gcm")
    assert headers["topic"] == topic_of("conversation:c1")
    assert len(headers["topic"]) <= 32
    assert browser.decrypt(request)["body"] == "hello"
    stranger = Subscription("")
    with pytest.raises(http_ece.ECEException):
        stranger.decrypt(request)

    scheme, _, parameters = headers["authorization"].partition(" ")
    token, key = (part.split("=", 1)[1] for part in parameters.split(", "))
    assert (scheme, key) == ("vapid", vapid.public_key)
    point = base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    claims = jwt.decode(token, public, algorithms=["ES256"], audience=push.url)
    assert claims["sub"] == "mailto:ops@example.org"
    quiet = msgspec.structs.replace(PUSH, priority=Priority.LOW, collapse_key="")
    await sender.send(target, quiet, "x", 0)
    assert (push.requests[1].headers["urgency"], push.requests[1].headers["ttl"]) == ("low", "0")
    assert "topic" not in push.requests[1].headers


def test_vapid_tokens_are_reused_and_renewed() -> None:
    """One token per push service until it is about to expire: signing each push would cost more than sending it."""
    now = [1000.0]
    vapid = Vapid(ec.generate_private_key(ec.SECP256R1()), "mailto:a@b.c", wall_clock=lambda: now[0])
    first = vapid.authorization("https://one.example/x")
    assert vapid.authorization("https://one.example/y") == first
    assert vapid.authorization("https://two.example/x") != first
    now[0] += TOKEN_S - 60
    assert vapid.authorization("https://one.example/x") != first


def test_the_vapid_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    """Made on first start with mode 0600 and read afterwards; one that others may read is refused, and junk too."""
    file = tmp_path / "push" / "vapid.pem"
    made = load_or_make(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_or_make(file).private_numbers() == made.private_numbers()
    assert [each.name for each in file.parent.iterdir()] == ["vapid.pem"]
    file.chmod(0o644)
    with pytest.raises(WhisprError, match="may be read by others"):
        load_or_make(file)
    file.chmod(0o600)
    file.write_text("nonsense")
    with pytest.raises(WhisprError, match="no private key"):
        load_or_make(file)
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(rsa_key)
    with pytest.raises(WhisprError, match="no P-256 key"):
        load_or_make(file)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply(202), Delivered()),
        (Reply(404), Gone("the subscription has ended (404)")),
        (Reply(410), Gone("the subscription has ended (410)")),
        (Reply(429, [("retry-after", "7")]), Later("the push service answered 429", 7.0)),
        (Reply(503), Later("the push service answered 503", None)),
        (Reply(413), Refused("the push service answered 413")),
        (Reply(301, [("location", "http://127.0.0.1:1/")]), Refused("the push service answered 301")),
    ],
)
async def test_answers_of_web_push(
    client: Http, push: PushServer, tmp_path: Path, reply: Reply, outcome: port.Outcome
) -> None:
    """What a push service says decides whether the device is dropped, the push tried again, or given up."""
    browser = Subscription(push.url)
    sender = WebPush(client, Vapid(load_or_make(tmp_path / "vapid.pem"), "mailto:a@b.c"))
    target = Target(
        id="d", platform=Platform.WEBPUSH, token=browser.endpoint, p256dh=browser.p256dh, auth=browser.auth
    )
    push.otherwise = reply
    assert await sender.send(target, PUSH, "x", 60) == outcome
    assert len(push.requests) == 1


# Webhooks


def hook(url: str) -> Target:
    return Target(id="d", platform=Platform.WEBHOOK, token=url, secret="s3cret")


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply(204), Delivered()),
        (Reply(410), Gone("the webhook has ended (410)")),
        (Reply(404), Refused("the webhook answered 404")),
        (Reply(302, [("location", "http://127.0.0.1:1/")]), Refused("the webhook answered 302")),
        (
            Reply(429, [("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]),
            Later("the webhook answered 429", 0.0),
        ),
        (Reply(500, [("retry-after", "soon")]), Later("the webhook answered 500", None)),
    ],
)
async def test_answers_of_webhooks(
    client: Http, push: PushServer, reply: Reply, outcome: port.Outcome
) -> None:
    """2xx is taken, 410 ends it, redirects are not followed, and those who are busy are asked again."""
    push.otherwise = reply
    assert await Webhook(client).send(hook(push.url), PUSH, "delivery-1", 60) == outcome
    (request,) = push.requests
    assert request.headers["whispr-delivery"] == "delivery-1"


async def test_a_long_answer_is_not_read_to_its_end(client: Http, push: PushServer) -> None:
    """A webhook that answers without end costs a bounded piece of memory."""
    push.otherwise = Reply(200, [], b"x" * 1_000_000)
    answer = await client.request("POST", push.url, [], b"")
    assert len(answer.body) == http_module.RESPONSE_BYTES_MAX
    push.otherwise = Reply(200)
    assert (await client.request("POST", push.url, [], b"")).status == 200


async def test_a_host_gets_a_bounded_number_of_requests_at_once(push: PushServer) -> None:
    """A slow host holds up its own pushes only, a few at a time."""
    client = Http(Network(private_allowed=True), per_host=3)
    push.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(client.request, "POST", push.url, [], b"")
        await push.wait_requests(3)
        assert push.at_once == 3
        push.hold.set()
    assert (len(push.requests), push.at_once_max) == (8, 3)
    assert not client._turns
    await client.aclose()


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104  # looked at, not bound
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "nonsense",
    ],
)  # fmt: skip
def test_private_addresses_are_told_apart(address: str) -> None:
    """Loopback, private, link-local, shared and multicast, also when IPv6 wraps them."""
    assert not is_public(address)


def test_public_addresses_are_told_apart() -> None:
    """The rest of the internet."""
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


async def test_a_name_that_leads_inside_is_not_called(push: PushServer) -> None:
    """The check is made on the address that is connected to, so a name that rebinds gains nothing."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(f"{host}:{port}")
        await trio.lowlevel.checkpoint()
        # Public when somebody looks, private when it is called: what DNS rebinding does.
        return ["93.184.216.34"] if len(asked) == 1 else ["127.0.0.1"]

    network = Network(resolve=resolve)
    assert await network._addresses("rebind.example", 80) == ["93.184.216.34"]
    client = Http(network, per_host=1)
    port_number = push.url.rpartition(":")[2]
    with pytest.raises(ForbiddenError, match="not on the public internet"):
        await client.request("POST", f"http://rebind.example:{port_number}/", [], b"")
    outcome = await Webhook(client).send(hook(f"http://127.0.0.1:{port_number}/"), PUSH, "x", 60)
    assert isinstance(outcome, Refused)
    assert not push.requests
    with pytest.raises(ForbiddenAddressError):
        await network.connect_unix_socket("/run/docker.sock")
    await client.aclose()


async def test_of_several_addresses_the_public_ones_are_tried(push: PushServer) -> None:
    """A name with a private address beside public ones is reached by the public ones alone."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return ["10.0.0.1", "93.184.216.34", "::1"]

    assert await Network(resolve=resolve)._addresses("mixed.example", 443) == ["93.184.216.34"]


async def test_the_connection_goes_to_the_address_that_was_checked(push: PushServer) -> None:
    """The name is resolved once per connection, and by us."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        await trio.lowlevel.checkpoint()
        return ["127.0.0.1"]

    client = Http(Network(private_allowed=True, resolve=resolve), per_host=1)
    port_number = push.url.rpartition(":")[2]
    await client.request("POST", f"http://somewhere.example:{port_number}/", [], b"")
    assert asked == ["somewhere.example"]
    assert push.requests[0].headers["host"] == f"somewhere.example:{port_number}"
    await client.aclose()


async def test_nobody_there_is_later() -> None:
    """A refused connection and a name without an address may be better next time."""

    async def nowhere(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        raise OSError("no such name")

    for network in (Network(private_allowed=True), Network(resolve=nowhere)):
        client = Http(network, per_host=1)
        outcome = await Webhook(client).send(hook("http://127.0.0.1:1/"), PUSH, "x", 60)
        assert isinstance(outcome, Later)
        await client.aclose()
    assert issubclass(ForbiddenAddressError, httpcore.ConnectError)


def test_retry_after_is_seconds_or_a_date() -> None:
    """RFC 9110, section 10.2.3; anything else is as if it were not there."""
    for value, seconds in (("120", 120.0), ("", None), ("never", None), ("-5", None)):
        assert Answer(503, {"retry-after": value}, b"").retry_after_s == seconds
    assert Answer(503, {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, b"").retry_after_s or 0 > 0


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
