from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import httpx
import pytest
import trio
from starlette.types import Message

from tests.services.stream.webrtc.rig import KEY, STREAM, Rig, publish, rigged
from tests.webrtc.client import Client, Connection, connection
from whispr.asgi import ClientGoneError
from whispr.audio.packets import Quality
from whispr.errors import WhisprError
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.listener import Wish
from whispr.services.stream.webrtc import http as webrtc_http
from whispr.services.stream.webrtc import metrics, publishing
from whispr.services.stream.webrtc.service import WebRtcSetup
from whispr.webrtc import rtcp
from whispr.webrtc.endpoint import Options
from whispr.webrtc.ice import Credentials
from whispr.webrtc.rtcp import Report

WHIP, WHEP = f"/whip/{STREAM}", f"/whep/{STREAM}"
SDP = {"content-type": "application/sdp"}
FRAGMENT = {"content-type": "application/trickle-ice-sdpfrag"}
AUTHORISED = {**SDP, "authorization": f"Bearer {KEY}"}
PATIENCE_S = 20
ORIGIN = "https://player.example.org"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    setup = WebRtcSetup(origins=[ORIGIN], ice_servers=["stun:stun.example.org"])
    with trio.fail_after(PATIENCE_S):
        async with rigged(setup) as running:
            yield running


@pytest.fixture
async def http(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=rig.url("")) as client:
        yield client


async def offered(http: httpx.AsyncClient, client: Client, path: str = WHEP) -> httpx.Response:
    """Offer; the client takes the answer in if there is one."""
    reply = await http.post(path, content=client.offer(), headers=AUTHORISED)
    if reply.status_code == 201:
        client.answered(reply.text)
    return reply


def fragment(client: Client, more: str = "a=candidate:1 1 udp 1 0a1b.local 9 typ host") -> str:
    credentials = f"a=ice-ufrag:{client.local.ufrag}\r\na=ice-pwd:{client.local.password}"
    return f"{credentials}\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n{more}\r\n"


async def test_a_publisher_is_heard_and_ends(rig: Rig, http: httpx.AsyncClient) -> None:
    """RFC 9725: 201 with answer, session and ETag; what is sent arrives in order, with losses counted; DELETE."""
    client = Client("sendonly")
    reply = await offered(http, client, WHIP)
    assert reply.status_code == 201
    assert reply.headers["content-type"] == "application/sdp"
    assert reply.headers["location"].startswith(f"{WHIP}/")
    assert reply.headers["etag"].startswith('"')
    assert reply.headers.get_list("link") == ['<stun:stun.example.org>; rel="ice-server"']
    assert "a=recvonly" in reply.text
    async with connection(client) as wire:
        await wire.connect()
        (feed,) = rig.lives.feeds
        assert feed.options.kind == "whip"
        await wire.send(client.packet(1), client.packet(3), client.packet(2), client.packet(9, b"noise", 13))
        await wire.send(*(client.packet(number) for number in (5, 6, 7)))
        while len(feed.packets) < 6:
            await wire.receive()
        assert rtcp.Nack(client.ssrc, [4]) in client.control
        assert [(timestamp, lost) for _, timestamp, lost in feed.packets] == [
            (0, 0), (960, 0), (1920, 0), (3840, 1), (4800, 0), (5760, 0),
        ]  # fmt: skip
        while not any(isinstance(each, Report) for each in client.control):
            await wire.receive()
        assert (await http.delete(reply.headers["location"])).status_code == 200
        while not client.closed:
            await wire.receive()
    assert (await http.delete(reply.headers["location"])).status_code == 404
    assert rig.webrtc.endpoint.peers == 0
    assert not feed.live.source.connected


async def listening(rig: Rig, http: httpx.AsyncClient, client: Client, wire: Connection) -> None:
    """Wait until packets come."""
    live = rig.lives.lives[STREAM]
    while not client.received:
        publish(live, live.now_pts, b"opus")
        with trio.move_on_after(0.05):
            await wire.receive()


async def test_a_listener_hears_changes_and_is_put_out(rig: Rig, http: httpx.AsyncClient) -> None:
    """WHEP: packets, figures from its reports, another rendition by wish without a hole, the end of its access."""
    rig.lives.begin()
    client = Client()
    reply = await offered(http, client)
    assert reply.status_code == 201
    assert "a=sendonly" in reply.text
    async with connection(client) as wire:
        await wire.connect()
        await listening(rig, http, client, wire)
        (listener,) = rig.audience.listeners
        assert client.received[0].ssrc == client.server_ssrc
        live = rig.lives.lives[STREAM]
        listener.wants(Wish(Quality.LOW))
        for _ in range(10):
            at = live.now_pts
            for quality in Quality:
                publish(live, at, quality.encode(), (quality,))
        while client.received[-1].payload != b"low":
            await wire.receive()
        sequences = [each.sequence for each in client.received]
        assert {b - a & 0xFFFF for a, b in pairwise(sequences)} == {1}
        report, asked = Report(client.server_ssrc, 0.25, 7, 0, 480, 0, 0), 0
        await wire.send(client.said(rtcp.receiver_report(1, [report], b"c")))
        while listener.figures.dropped_frames != 7:
            await trio.lowlevel.checkpoint()
        assert (listener.figures.loss, listener.figures.buffer_ms) == (0.25, 10)
        flood, before = Report(client.server_ssrc, 1.0, 8, 0, 0, 0, 0), metrics.LOSS._sum.get()
        while listener.figures.dropped_frames != 8:
            await wire.send(client.said(rtcp.receiver_report(1, [flood] * 31, b"c")))
            await trio.sleep(0.01)
            asked += 1
        assert metrics.LOSS._sum.get() - before <= asked, "one report of those that come at once"
        listener.end("kicked")
        while not client.closed:
            await wire.receive()
    assert listener.figures.bytes_sent > 0
    assert (await http.delete(reply.headers["location"])).status_code == 404


@pytest.mark.slow
async def test_auto_steps_down_when_packets_are_lost(rig: Rig, http: httpx.AsyncClient) -> None:
    """A report of 20 % lost leads a listener without a wish to the rendition below."""
    rig.lives.begin()
    client = Client()
    await offered(http, client)
    async with connection(client) as wire:
        await wire.connect()
        await listening(rig, http, client, wire)
        (listener,) = rig.audience.listeners
        live = rig.lives.lives[STREAM]
        while listener.rendition is not Quality.LOW:
            told = rtcp.receiver_report(1, [Report(client.server_ssrc, 0.2, 9, 0, 0, 0, 0)], b"c")
            await wire.send(client.said(told))
            publish(live, live.now_pts, b"opus")
            await trio.sleep(0.05)


async def test_before_there_is_sound_a_listener_comes_again(http: httpx.AsyncClient) -> None:
    """409 with Retry-After, as the draft of WHEP says."""
    reply = await offered(http, Client())
    assert (reply.status_code, reply.headers["retry-after"]) == (409, "2")
    assert reply.json()["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (SDP, 401),
        ({**SDP, "authorization": "Bearer wrong"}, 403),
        ({**AUTHORISED, "content-type": "text/plain"}, 415),
        ({"authorization": f"Bearer {KEY}"}, 415),
    ],
)
async def test_publishing_needs_the_key_and_an_offer(
    http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    """The right type, and the stream's key; nothing is left of who is refused."""
    reply = await http.post(WHIP, content=Client("sendonly").offer(), headers=headers)
    assert reply.status_code == status


@pytest.mark.parametrize(
    ("path", "offer", "why"),
    [
        (WHIP, "hello", "v=0"),
        (WHIP, Client("recvonly").offer(), "send"),
        (WHEP, Client("sendonly").offer(), "receive"),
        (WHEP, Client().offer().replace("opus", "pcmu"), "no audio"),
        (WHEP, b"v=0\r\n\xff", "UTF-8"),
    ],
)
async def test_an_offer_that_cannot_be_answered_is_refused(
    http: httpx.AsyncClient, path: str, offer: str | bytes, why: str
) -> None:
    """400, and the reason in words."""
    reply = await http.post(path, content=offer, headers=AUTHORISED)
    assert (reply.status_code, why in reply.json()["message"]) == (400, True)


async def test_an_offer_has_a_limit(http: httpx.AsyncClient) -> None:
    """No more is read than anybody's offer has."""
    reply = await http.post(WHEP, content=b"v=0\r\n" + b"a=x\r\n" * 20_000, headers=AUTHORISED)
    assert reply.status_code == 413


async def test_a_session_that_has_closed_is_not_found(rig: Rig, http: httpx.AsyncClient) -> None:
    """Not even in the moment until its task has seen it: nothing begins anew for a peer that is gone."""
    rig.lives.begin()
    reply = await offered(http, Client())
    protocol, stream_id, session_id = reply.headers["location"].strip("/").split("/")
    sessions = rig.webrtc._listening._sessions
    session = sessions.get(protocol, stream_id, session_id)
    session.end("tested")
    with pytest.raises(WhisprError) as told:
        sessions.get(protocol, stream_id, session_id)
    assert told.value.reason == "not_found"
    assert not rig.webrtc.endpoint._by_name


async def test_who_leaves_before_the_answer_leaves_nothing(rig: Rig) -> None:
    """The session of a client that cannot be told of it ends at once, and the stream is free for another source."""

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": Client("sendonly").offer().encode(), "more_body": False}

    async def send(_: Message) -> None:
        raise ClientGoneError("the client is gone")

    headers = [(name.encode(), value.encode()) for name, value in AUTHORISED.items()]
    scope = {"type": "http", "method": "POST", "path": WHIP, "headers": headers, "client": ("192.0.2.1", 1)}
    with pytest.raises(ClientGoneError):
        await rig.webrtc.endpoints(scope, receive, send)
    with trio.fail_after(PATIENCE_S):
        while rig.lives.lives[STREAM].source.connected:
            await trio.lowlevel.checkpoint()
    assert rig.webrtc.endpoint.peers == 0


async def test_an_offer_has_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that come one by one do not hold a connection for as long as they like."""
    monkeypatch.setattr(webrtc_http, "BODY_S", 0.5)
    head = (
        f"POST {WHEP} HTTP/1.1\r\nhost: x\r\ncontent-type: application/sdp\r\ncontent-length: 60000\r\n\r\n"
    )
    with trio.fail_after(PATIENCE_S):
        async with (
            await trio.open_tcp_stream("127.0.0.1", rig.port) as stream,
            trio.open_nursery() as nursery,
        ):

            async def trickle() -> None:
                while True:
                    await stream.send_all(b"v")
                    await trio.sleep(0.05)

            await stream.send_all(head.encode())
            nursery.start_soon(trickle)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 408 ")
            nursery.cancel_scope.cancel(reason="tested")


async def test_candidates_are_taken_note_of_by_condition(rig: Rig, http: httpx.AsyncClient) -> None:
    """RFC 9725, section 4.3: 428 without a condition, 412 with another session's, 204 with this one's."""
    rig.lives.begin()
    client = Client()
    reply = await offered(http, client)
    where, etag = reply.headers["location"], reply.headers["etag"]

    async def patch(content: str, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await http.patch(where, content=content, headers=FRAGMENT | named)).status_code

    assert await patch(fragment(client)) == 428
    assert await patch(fragment(client), if_match='"another"') == 412
    assert await patch(fragment(client), if_match=etag) == 204
    assert await patch(fragment(Client()), if_match=etag) == 412
    assert await patch("a=ice-ufrag:x", if_match=etag) == 400
    assert await patch(fragment(client), if_match=etag, content_type="text/plain") == 415
    assert (await http.patch(where + "x", content="", headers=FRAGMENT)).status_code == 404


async def test_ice_begins_anew_with_the_same_keys(rig: Rig, http: httpx.AsyncClient) -> None:
    """If-Match: * and new credentials: 200 with ours and a new ETag; then the peer is heard from elsewhere."""
    rig.lives.begin()
    client = Client()
    reply = await offered(http, client)
    where = reply.headers["location"]
    async with connection(client) as wire:
        await wire.connect()
        await listening(rig, http, client, wire)
        again = {**FRAGMENT, "if-match": "*"}
        assert (await http.patch(where, content=fragment(client), headers=again)).status_code == 412
        client.local = Credentials.new()
        restarted = await http.patch(where, content=fragment(client), headers=again)
        assert restarted.status_code == 200
        assert restarted.headers["content-type"] == "application/trickle-ice-sdpfrag"
        assert restarted.headers["etag"] != reply.headers["etag"]
        client.answered("v=0\r\n" + restarted.text)
    client.answers.clear()
    async with connection(client) as moved:
        await moved.send(client.check())
        while not client.answers:
            await moved.receive()
        client.received.clear()
        await listening(rig, http, client, moved)


async def test_what_may_be_done_is_told(http: httpx.AsyncClient) -> None:
    """OPTIONS says what is taken; other methods are refused with what is allowed."""
    shared = {"origin": ORIGIN, "access-control-request-method": "POST"}
    reply = await http.options(WHIP, headers=shared)
    assert reply.status_code == 204
    assert reply.headers["accept-post"] == "application/sdp"
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert 'rel="ice-server"' in reply.headers["link"]
    session = await http.options(f"{WHIP}/abc", headers={"origin": "https://elsewhere.example"})
    assert session.headers["accept-patch"] == "application/trickle-ice-sdpfrag"
    assert "access-control-allow-origin" not in session.headers
    for method in ("GET", "PUT", "DELETE"):
        refused = await http.request(method, WHIP, headers={"origin": ORIGIN})
        assert (refused.status_code, refused.headers["allow"]) == (405, "OPTIONS, POST")


async def test_a_page_elsewhere_reads_the_session(rig: Rig, http: httpx.AsyncClient) -> None:
    """Location, ETag and Link are exposed, and errors readable, to allowed origins."""
    reply = await http.post(WHEP, content=Client().offer(), headers={**SDP, "origin": ORIGIN})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (409, ORIGIN)
    for path, text, status in (
        (WHEP, "v=0", 400),
        (WHIP, Client("sendonly").offer(), 401),
        (f"{WHEP}/0", "", 404),
    ):
        refused = await http.post(path, content=text, headers={**SDP, "origin": ORIGIN})
        assert refused.status_code == status
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert "www-authenticate" in refused.headers["access-control-expose-headers"]
    rig.lives.begin()
    reply = await http.post(WHEP, content=Client().offer(), headers={**SDP, "origin": ORIGIN})
    assert reply.status_code == 201
    assert {"location", "etag", "link"} <= set(reply.headers["access-control-expose-headers"].split(", "))


async def test_there_is_room_for_so_many() -> None:
    """429 past the limit of peers; a place is free again once one has gone."""
    with trio.fail_after(PATIENCE_S):
        async with (
            rigged(WebRtcSetup(endpoint=Options(peers_max=1))) as rig,
            httpx.AsyncClient(base_url=rig.url("")) as http,
        ):
            rig.lives.begin()
            first = await offered(http, Client())
            assert (await offered(http, Client())).status_code == 429
            await http.delete(first.headers["location"])
            assert (await offered(http, Client())).status_code == 201


async def test_the_end_of_a_stream_ends_its_listeners(rig: Rig, http: httpx.AsyncClient) -> None:
    """Those who hear it and those who are about to; the next one is told to come again."""
    live = rig.lives.begin()
    client = Client()
    await offered(http, client)
    await offered(http, Client())
    async with connection(client) as wire:
        await wire.connect()
        await listening(rig, http, client, wire)
        rig.lives.end(STREAM, "stopped")
        while not client.closed:
            await wire.receive()
    while rig.webrtc.endpoint.peers:
        await trio.lowlevel.checkpoint()
    assert live.ended.is_set()
    assert (await offered(http, Client())).status_code == 409


async def test_who_comes_again_after_a_crash_takes_the_place_of_the_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second publisher is told 409 while the first sends, and let in once that has fallen silent."""
    lives = Lives()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery, rigged(engine=lives) as rig:
            await nursery.start(lives.run)
            async with httpx.AsyncClient(base_url=rig.url("")) as http:
                first, second = Client("sendonly"), Client("sendonly")
                assert (await offered(http, first, WHIP)).status_code == 201
                refused = await offered(http, second, WHIP)
                assert refused.status_code == 409
                monkeypatch.setattr(publishing, "SILENT_S", 0.0)
                async with connection(first) as wire:
                    await wire.connect()
                    assert (await offered(http, second, WHIP)).status_code == 201
                    while not first.closed:
                        await wire.receive()
                assert rig.webrtc.endpoint.peers == 1
            nursery.cancel_scope.cancel(reason="tested")
