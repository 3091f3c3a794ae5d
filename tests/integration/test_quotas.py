"""Too much of anything, as clients are told: REST, gRPC and sockets, against a product with small limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
import trio

from tests.product import UNLIMITED, Product, running
from whispr.config import Settings
from whispr.credentials import mint
from whispr.errors import Code, WhisprError
from whispr.realtime.client import Refused, open_phoenix
from whispr.realtime.upgrade import Rejected
from whispr.rpc.channel import open_channel
from whispr.v1 import user_pb2
from whispr.v1.user_grpc import UserServiceStub

CALLS, MESSAGES, OPERATIONS = 8, 4, 7
SMALL = UNLIMITED | {
    "WHISPR_LIMITS_USER_CALLS_PER_MIN": str(CALLS),
    "WHISPR_LIMITS_CONVERSATION_MESSAGES_PER_MIN": str(MESSAGES),
    "WHISPR_LIMITS_SOCKET_OPERATIONS_PER_MIN": str(OPERATIONS),
    "WHISPR_LIMITS_ADDRESS_CALLS_PER_MIN": "60",
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product with small limits."""
    with running(tmp_path_factory.mktemp("limited") / "data", SMALL) as product:
        yield product


def get(product: Product, path: str, token: str = "") -> tuple[int, dict[str, str], Any]:
    """Make a GET; return its status, headers and body."""
    connection = HTTPConnection("127.0.0.1", product.ports["gateway"], timeout=30)
    connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body


async def test_a_person_over_the_limit_is_told_when_to_come_back(limited: Product) -> None:
    """REST says 429 with Retry-After and RetryInfo, gRPC RESOURCE_EXHAUSTED with the same; others go on."""
    _, ada = limited.sign_up("quota-ada")
    _, bob = limited.sign_up("quota-bob")
    answers = [get(limited, "/v1/users/me", ada) for _ in range(CALLS + 1)]
    assert [status for status, _, _ in answers] == [200] * CALLS + [429]
    _, headers, body = answers[-1]
    assert 1 <= int(headers["retry-after"]) <= 60 / CALLS + 1
    assert body["code"] == Code.RESOURCE_EXHAUSTED
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in body["details"]}
    assert kinds["ErrorInfo"]["reason"] == "rate_limited"
    assert float(kinds["RetryInfo"]["retry_delay"].rstrip("s")) > 0
    async with open_channel(f"127.0.0.1:{limited.ports['user']}") as channel:
        users = UserServiceStub(channel)
        with pytest.raises(WhisprError) as error:
            await users.GetProfile(
                user_pb2.GetProfileRequest(), metadata=[("authorization", f"Bearer {ada}")]
            )
        assert error.value.code is Code.RESOURCE_EXHAUSTED
        assert error.value.retry_after_s is not None
        await users.GetProfile(user_pb2.GetProfileRequest(), metadata=[("authorization", f"Bearer {bob}")])


async def test_a_conversation_over_its_limit_refuses_messages(limited: Product) -> None:
    """However many people send, a conversation takes so many a minute; the socket says `rate_limited`."""
    people = [limited.sign_up(f"quota-crowd-{n}") for n in range(2)]
    conversation = limited.conversation(people[0][1], "group", people[1][0])
    refused: list[Refused] = []
    sent = 0
    for _, token in people:
        async with open_phoenix(limited.websocket_url, token) as phoenix:
            channel = await phoenix.join(f"conversation:{conversation}")
            for n in range(MESSAGES - 1):
                try:
                    await channel.push("send_message", {"text": "hello", "client_id": f"{token[-8:]}-{n}"})
                    sent += 1
                except Refused as refusal:
                    refused.append(refusal)
    assert (sent, len(refused)) == (MESSAGES, MESSAGES - 2)
    assert {refusal.reason for refusal in refused} == {"rate_limited"}
    assert all(int(str(refusal.response["retry_after_ms"])) > 0 for refusal in refused)


async def test_a_socket_over_its_limit_is_told_so(limited: Product) -> None:
    """Operations of one connection are bounded too."""
    (_, ada), (bob, _) = limited.sign_up("quota-socket"), limited.sign_up("quota-peer")
    conversation = limited.conversation(ada, "group", bob)
    async with open_phoenix(limited.websocket_url, ada) as phoenix:
        channel = await phoenix.join(f"conversation:{conversation}")
        with trio.fail_after(10), pytest.raises(Refused) as refusal:
            for _ in range(OPERATIONS + 1):
                await channel.push("mark_read", {"seq": 0})
        assert refusal.value.reason == "rate_limited"


async def test_services_are_not_limited(limited: Product) -> None:
    """A service token calls as often as it needs to, also for a person who is over the limit."""
    ada, _ = limited.sign_up("quota-served")
    token = mint(Settings(data_dir=limited.data_dir), "test", 60)
    metadata = [("authorization", f"Bearer {token}"), ("x-whispr-actor", ada)]
    async with open_channel(f"127.0.0.1:{limited.ports['user']}") as channel:
        for _ in range(10 * CALLS):
            await UserServiceStub(channel).GetProfile(user_pb2.GetProfileRequest(), metadata=metadata)


async def test_an_address_over_its_limit_is_refused_before_anybody_signs_in(limited: Product) -> None:
    """Who has no token yet is known by address, over REST and for opening sockets alike."""
    answers = [get(limited, "/.well-known/jwks.json") for _ in range(61)]
    assert answers[-1][0] == 429, [status for status, _, _ in answers]
    assert int(answers[-1][1]["retry-after"]) >= 1
    with pytest.raises(Rejected) as rejected:
        async with open_phoenix(limited.websocket_url, "no token at all"):
            raise AssertionError("it was let in")
    assert (rejected.value.status, rejected.value.reason) == (429, "rate_limited")
