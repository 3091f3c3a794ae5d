"""The same services in several processes: joined by URLs, endpoints and a service token, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, running
from whispr.embed import Backends
from whispr.realtime.client import Disconnected, Phoenix, Refused, open_phoenix

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split(
    backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Product, Product, Product]]:
    """One process with auth and user, and two with messaging, in folders of their own."""
    folder = tmp_path_factory.mktemp("split")
    assert backends.postgres_url is not None
    assert backends.redis_url is not None
    assert backends.nats_url is not None
    urls = UNLIMITED | {
        "WHISPR_POSTGRES_URL": backends.postgres_url,
        "WHISPR_REDIS_URL": backends.redis_url,
        "WHISPR_NATS_URL": backends.nats_url,
    }
    with running(folder / "a", urls, "auth", "user") as people:
        token = folder / "token"
        minted = whispr("token", "messaging", "--ttl", "3600", WHISPR_DATA_DIR=str(folder / "a"))
        token.write_text(minted.stdout)
        others = urls | {
            "WHISPR_AUTH_ENDPOINT": f"127.0.0.1:{people.ports['auth']}",
            "USER_SERVICE_GRPC_ENDPOINT": f"127.0.0.1:{people.ports['user']}",
            "WHISPR_AUTH_SERVICE_TOKEN_FILE": str(token),
        }
        with (
            running(folder / "b", others, "messaging") as one,
            running(folder / "c", others, "messaging") as two,
        ):
            yield people, one, two


def test_each_process_says_what_it_runs(split: tuple[Product, Product, Product]) -> None:
    """ports.json names the listeners of that process and no others."""
    people, one, _ = split
    assert set(people.ports) == {"gateway", "auth", "user"}
    assert set(one.ports) == {"gateway", "websocket", "messaging"}


async def test_people_on_two_nodes_talk(split: tuple[Product, Product, Product], tmp_path: Path) -> None:
    """A message sent on one node arrives on the other; tokens of one process open all; a block is felt at once."""
    people, one, two = split
    _, alices = people.sign_up("alice")
    bob, bobs = one.sign_up("bob")  # any gateway leads to the auth service
    conversation = two.conversation(alices, "direct", bob)
    topic = f"conversation:{conversation}"
    async with (
        open_phoenix(one.websocket_url, alices) as first,
        open_phoenix(two.websocket_url, bobs) as second,
    ):
        at_alice, at_bob = await first.join(topic), await second.join(topic)
        await at_alice.push("send_message", {"text": "from one node"})
        assert await _next(at_bob, "new_message") == "from one node"
        await at_bob.push("send_message", {"text": "from the other"})
        assert await _next(at_alice, "new_message") == "from one node"
        assert await _next(at_alice, "new_message") == "from the other"
        assert people.call("PUT", f"/v1/users/{bob}/block", token=alices)[0] == 200
        with pytest.raises(Refused) as refused, trio.fail_after(5):
            while True:  # until the news has crossed the bus
                await at_bob.push("send_message", {"text": "still there?"})
        assert refused.value.reason == "blocked"


async def test_signing_out_closes_sockets_on_every_node(split: tuple[Product, Product, Product]) -> None:
    """Within a second of a logout the session's sockets are closed wherever they are, and its token is refused."""
    people, one, two = split
    _, token = people.sign_up("carol")
    async with open_phoenix(two.websocket_url, token) as phoenix:
        assert people.call("POST", "/v1/auth/logout", {}, token)[0] == 200
        with trio.fail_after(1):
            closed: Disconnected = await phoenix.wait_closed()
    assert closed.close_code == 1008
    status, reply = one.call("GET", "/v1/conversations", token=token)
    assert status == 401
    assert any(detail.get("reason") == "session_revoked" for detail in reply["details"])


async def _next(channel: Any, wanted: str) -> str:
    """The text of the next event of a kind."""
    with trio.fail_after(5):
        while True:
            event, payload = await channel.__anext__()
            if event == wanted:
                return str(payload["text"])


# Presence over two nodes


class View:
    """Who somebody sees on a topic, kept as phoenix.js does, and whom they have seen leave."""

    def __init__(self) -> None:
        self.refs: dict[str, set[str]] = {}
        self.gone: list[str] = []

    async def follow(self, channel: Any) -> None:
        async for event, payload in channel:
            if event == "presence_state":
                self.refs = {key: _refs(entry) for key, entry in payload.items()}
            elif event == "presence_diff":
                for key, entry in payload["joins"].items():
                    self.refs.setdefault(key, set()).update(_refs(entry))
                for key, entry in payload["leaves"].items():
                    self.refs[key] = self.refs.get(key, set()) - _refs(entry)
                    if not self.refs[key]:
                        del self.refs[key]
                        self.gone.append(key)

    async def until(self, *people: str) -> None:
        """Wait until these and nobody else are there."""
        while self.refs.keys() != set(people):  # noqa: ASYNC110  # the product's clock is the real one
            await trio.sleep(0.02)


def _refs(entry: Any) -> set[str]:
    return {meta["phx_ref"] for meta in entry["metas"]}


async def test_who_was_on_a_killed_node_is_gone_and_who_comes_back_never_was(
    split: tuple[Product, Product, Product], tmp_path: Path
) -> None:
    """After kill -9 of a node its people leave within 10 s; nobody sees those leave who are back within 5 s."""
    people, one, _ = split
    (alice, alices), (bob, bobs), (carol, carols) = (people.sign_up(f"present-{n}") for n in range(3))
    topic = f"conversation:{one.conversation(alices, 'group', bob, carol)}"
    view = View()
    with running(tmp_path / "victim", one.environ, "messaging") as victim:
        async with trio.open_nursery() as nursery:
            await nursery.start(_there, one, alices, topic, view)
            broken: Phoenix = await nursery.start(_there, victim, bobs, topic)
            with trio.fail_after(10):
                await view.until(alice, bob)
            await broken.abort()
            await nursery.start(_there, victim, bobs, topic)
            await nursery.start(_there, victim, carols, topic)
            with trio.fail_after(10):
                await view.until(alice, bob, carol)
            victim.kill()
            began = trio.current_time()
            await nursery.start(_there, one, bobs, topic)
            with trio.fail_after(15):
                await view.until(alice, bob)
            print(f"gone {trio.current_time() - began:.1f} s after kill -9 of the node")
            assert view.gone == [carol]
            nursery.cancel_scope.cancel(reason="seen enough")


async def _there(
    node: Product, token: str, topic: str, view: View | None = None, *, task_status: trio.TaskStatus[Phoenix]
) -> None:
    """Be on a topic until the connection ends."""
    try:
        async with open_phoenix(node.websocket_url, token) as phoenix:
            channel = await phoenix.join(topic)
            task_status.started(phoenix)
            if view is not None:
                await view.follow(channel)
            await phoenix.wait_closed()
    except* Disconnected:
        pass
