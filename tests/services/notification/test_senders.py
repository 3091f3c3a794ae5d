"""Web Push, webhooks and where they may lead, against a server on loopback."""

from __future__ import annotations

import base64
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import http_ece
import httpcore
import jwt
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.services.notification.kit import TLS, Subscription, b64
from tests.services.notification.servers import PushServer, Reply
from whispr.errors import WhisprError
from whispr.services.notification.domain import Platform, Priority
from whispr.services.notification.senders import http as http_module
from whispr.services.notification.senders import port
from whispr.services.notification.senders.addresses import ForbiddenAddressError, Network, is_public
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
    client = Http(Network(private_allowed=True), per_host=8, tls=TLS)
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
    client = Http(Network(private_allowed=True), per_host=3, tls=TLS)
    push.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(client.request, "POST", push.url, [], b"")
        await push.wait_requests(3)
        assert push.at_once == 3
        push.hold.set()
    assert (len(push.requests), push.at_once_max) == (8, 3)
    assert not any(host.bulkhead.in_flight for host in client.targets)
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
    client = Http(network, per_host=1, tls=TLS)
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

    client = Http(Network(private_allowed=True, resolve=resolve), per_host=1, tls=TLS)
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
        client = Http(network, per_host=1, tls=TLS)
        outcome = await Webhook(client).send(hook("http://127.0.0.1:1/"), PUSH, "x", 60)
        assert isinstance(outcome, Later)
        await client.aclose()
    assert issubclass(ForbiddenAddressError, httpcore.ConnectError)


def test_retry_after_is_seconds_or_a_date() -> None:
    """RFC 9110, section 10.2.3; anything else is as if it were not there."""
    for value, seconds in (("120", 120.0), ("", None), ("never", None), ("-5", None)):
        assert Answer(503, {"retry-after": value}, b"").retry_after_s == seconds
    assert Answer(503, {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, b"").retry_after_s or 0 > 0
