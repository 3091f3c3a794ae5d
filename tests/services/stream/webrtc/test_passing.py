"""Sessions of another node: whoever is asked has the owner act."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from tests.services.stream.webrtc.rig import STREAM, Rig, rigged
from tests.webrtc.client import Client
from whispr.adapters.bus_feed import Message
from whispr.bridge import Inbox
from whispr.services.stream.webrtc.passing import STRANGERS_MAX

SDP = {"content-type": "application/sdp"}
FRAGMENT = {"content-type": "application/trickle-ice-sdpfrag"}


class Wire:
    """The bus of both nodes."""

    connected = True

    def __init__(self) -> None:
        self.inboxes: dict[str, Inbox[Message]] = {}
        self.asked: list[str] = []

    def publish(self, subject: str, payload: bytes) -> None:
        self.asked.append(subject)
        if subject in self.inboxes:
            self.inboxes[subject].put(Message(subject, payload))

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Inbox[Message]]:
        inbox = self.inboxes[subject] = Inbox(100)
        await trio.lowlevel.checkpoint()
        yield inbox


async def listener(http: httpx.AsyncClient, rig: Rig) -> tuple[Client, str, str]:
    """Begin a session; returns its path and ETag."""
    rig.lives.begin()
    client = Client()
    reply = await http.post(rig.url(f"/whep/{STREAM}"), content=client.offer(), headers=SDP)
    assert reply.status_code == 201, reply.text
    return client, reply.headers["location"], reply.headers["etag"]


def fragment(client: Client) -> str:
    return f"a=ice-ufrag:{client.local.ufrag}\r\na=ice-pwd:{client.local.password}\r\n"


async def test_another_node_passes_requests_to_the_owner() -> None:
    """Candidates, an ICE restart and the end reach the session; each is answered as its owner answers it."""
    wire = Wire()
    with trio.fail_after(60):
        async with rigged(bus=wire) as owner, rigged(bus=wire) as other, httpx.AsyncClient() as http:
            client, path, etag = await listener(http, owner)
            text, url = fragment(client), other.url(path)
            same = await http.patch(url, content=text, headers=FRAGMENT | {"if-match": etag})
            assert same.status_code == 204
            for condition, status in (("", 428), ('"old"', 412), ("*", 412)):
                refused = await http.patch(url, content=text, headers=FRAGMENT | {"if-match": condition})
                assert refused.status_code == status, refused.text
            again = fragment(Client())
            restarted = await http.patch(url, content=again, headers=FRAGMENT | {"if-match": "*"})
            assert (restarted.status_code, restarted.headers["content-type"]) == (
                200,
                FRAGMENT["content-type"],
            )
            assert restarted.headers["etag"] not in ("", etag)
            assert "a=ice-ufrag:" in restarted.text
            assert (await http.delete(url)).status_code == 200
            assert (await http.delete(owner.url(path))).status_code == 404


async def test_nobody_else_is_asked_and_nobody_guesses() -> None:
    """A wrong secret is not found by the owner; a name of no process asks nobody; our own are not asked for."""
    wire = Wire()
    with trio.fail_after(60):
        async with rigged(bus=wire) as owner, rigged(bus=wire) as other, httpx.AsyncClient() as http:
            _, path, _ = await listener(http, owner)
            assert (
                await http.delete(other.url(path[:-1] + ("a" if path[-1] != "a" else "b")))
            ).status_code == 404
            wire.asked.clear()
            for wrong in (f"/whep/{STREAM}/-", f"/whep/{STREAM}/{'_' * 36}"):
                assert (await http.delete(other.url(wrong))).status_code == 404
            assert (await http.get(other.url(path))).status_code == 405
            assert (await http.delete(owner.url(path))).status_code == 200
            assert wire.asked == []


async def test_invented_names_do_not_keep_others_from_being_asked() -> None:
    """Requests on sessions of processes that do not exist wait in vain, and only so many at a time."""
    wire = Wire()
    with trio.fail_after(60):
        async with rigged(bus=wire) as owner, rigged(bus=wire) as other, httpx.AsyncClient() as http:
            _, path, _ = await listener(http, owner)
            assert (await http.delete(other.url(f"{path}x"))).status_code == 404  # the owner is known by that
            refused: list[int] = []
            async with trio.open_nursery() as nursery:

                async def invent(number: int) -> None:
                    invented = other.url(f"/whep/{STREAM}/{number:012x}{'0' * 24}")
                    refused.append((await http.delete(invented)).status_code)

                for number in range(STRANGERS_MAX + 2):
                    nursery.start_soon(invent, number)
                while len(refused) < 2:
                    await trio.lowlevel.checkpoint()
                assert refused == [503, 503]
                assert (await http.delete(other.url(path))).status_code == 200
                nursery.cancel_scope.cancel(reason="tested")


@pytest.mark.slow
async def test_a_node_that_has_gone_or_cannot_be_asked() -> None:
    """Its sessions are not found after a while; without a bus the client is told to try again."""
    wire = Wire()
    gone = f"/whep/{STREAM}/{'0' * 36}"
    with trio.fail_after(60):
        async with rigged(bus=wire) as other, httpx.AsyncClient() as http:
            assert (await http.delete(other.url(gone))).status_code == 404
            wire.connected = False
            assert (await http.delete(other.url(gone))).status_code == 503
