"""The gateway over a real socket: REST, its errors, health, metrics, pages, and its end."""

from __future__ import annotations

import base64
import json
import re
import socket
from typing import Any

import httpx
import pytest
import structlog
import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi import HttpServer
from whispr.asgi.metrics import CLIENTS_GONE, FAILURES
from whispr.errors import Code, WhisprError, conflict, denied, exhausted, exists, not_found, unavailable
from whispr.gateway.http import read_body
from whispr.gateway.rest import RestLimits
from whispr.gateway.server import Endpoint, ListenError, _Front

GOOD = {"authorization": "Bearer good"}
MESSAGES = "/v1/conversations/c1/messages"


def reason(response: httpx.Response) -> str:
    return next((d["reason"] for d in response.json()["details"] if "reason" in d), "")


async def test_a_call_goes_through(served: Any) -> None:
    """A POST with JSON is a call with a message, its answer JSON with every field."""
    response = await served.client.post("/v1/auth/login", json={"username": "ada", "password": "secret"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "access_token": "a.b.c",
        "refresh_token": "",
        "expires_in": 900,
        "session_id": "",
    }
    assert served.script.requests[0].username == "ada"


async def test_text_goes_in_and_comes_out(served: Any) -> None:
    """A message's content is text to a script, and base64 where it is not text."""
    sent = await served.client.post(MESSAGES, json={"text": "héllo"}, headers=GOOD)
    assert sent.json()["message"]["text"] == "héllo"
    raw = base64.b64encode(b"\xff\x00").decode()
    sent = await served.client.post(MESSAGES, json={"content": raw}, headers=GOOD)
    assert sent.json()["message"]["content"] == raw
    assert "text" not in sent.json()["message"]


async def test_a_get_takes_its_query_and_a_delete_its_path(served: Any) -> None:
    """Parameters in path and query become fields."""
    await served.client.get(f"{MESSAGES}?after_seq=7&page_size=2", headers=GOOD)
    request = served.script.requests[-1]
    assert (request.conversation_id, request.after_seq, request.page_size) == ("c1", 7, 2)
    await served.client.delete("/v1/conversations/c1/members/a%2Fb", headers=GOOD)
    assert served.script.requests[-1].user_id == "a/b"


async def test_me_is_not_somebody_called_me(served: Any) -> None:
    """`/v1/users/me` asks for the caller."""
    assert (await served.client.get("/v1/users/me", headers=GOOD)).json()["profile"]["id"] == "me"
    assert served.script.requests[-1].user_id == ""
    assert (await served.client.get("/v1/users/u1", headers=GOOD)).json()["profile"]["id"] == "u1"


async def test_the_token_and_the_request_id_travel(served: Any) -> None:
    """The service sees the caller's token, the request's id and trace, the deadline and the address we vouch for."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = GOOD | {"x-request-id": "abc-1", "traceparent": trace, "x-whispr-actor": "u9", "cookie": "x"}
    headers |= {"x-whispr-client-address": "6.6.6.6", "x-whispr-voucher": "forged"}
    response = await served.client.get("/v1/users/u1", headers=headers)
    assert response.headers["x-request-id"] == "abc-1"
    metadata = served.script.metadata
    assert metadata["authorization"] == "Bearer good"
    assert (metadata["x-request-id"], metadata["traceparent"]) == ("abc-1", trace)
    assert (metadata["x-whispr-client-address"], metadata["x-whispr-voucher"]) == ("127.0.0.1", "vouched")
    assert metadata["x-whispr-actor"] == "u9"  # whether the token may say so is for the service to judge
    assert "cookie" not in metadata
    assert 0 < served.script.deadline_s <= 2.0


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a;b"])
async def test_a_bad_request_id_is_replaced(served: Any, given: str) -> None:
    """What cannot go into a log as it is gets a new id, which the client is told."""
    response = await served.client.get("/v1/users/u1", headers=GOOD | {"x-request-id": given})
    assert response.headers["x-request-id"] != given
    assert served.script.metadata["x-request-id"] == response.headers["x-request-id"]


async def test_the_gateway_vouches_for_the_address(served: Any) -> None:
    """Where nobody is signed in the service learns the client's address, from us and not from the client."""
    headers = {
        "x-whispr-client-address": "6.6.6.6",
        "x-forwarded-for": "7.7.7.7",
        "authorization": "Bearer x",
    }
    await served.client.post("/v1/auth/login", json={}, headers=headers)
    metadata = served.script.metadata
    assert metadata["x-whispr-client-address"] == "127.0.0.1"
    assert metadata["x-whispr-voucher"] == "vouched"
    assert "authorization" not in metadata


async def test_a_trusted_proxy_is_believed(open_gateway: Any) -> None:
    """Behind a proxy of ours the client is the nearest address that is not a proxy's."""
    async with open_gateway(trusted_proxies=("127.0.0.0/8", "10.0.0.0/8")) as served:
        for forwarded, client in {
            "192.0.2.7": "192.0.2.7",
            "6.6.6.6, 192.0.2.7, 10.1.2.3": "192.0.2.7",
            "6.6.6.6, nonsense": "127.0.0.1",
            "": "127.0.0.1",
        }.items():
            await served.client.post("/v1/auth/login", json={}, headers={"x-forwarded-for": forwarded})
            assert served.script.metadata["x-whispr-client-address"] == client


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (denied("no"), 403, 7),
        (not_found("message", "m1"), 404, 5),
        (exists("taken", "username_taken"), 409, 6),
        (conflict("not now", "not_editable"), 400, 9),
        (exhausted("slow down", 12.2), 429, 8),
        (unavailable("away"), 503, 14),
        (WhisprError(Code.UNIMPLEMENTED, "not built"), 501, 12),
        (WhisprError(Code.ABORTED, "again"), 409, 10),
        (WhisprError(Code.DATA_LOSS, "gone"), 500, 15),
        (RuntimeError("secret detail"), 500, 13),
    ],
)
async def test_errors_of_services_keep_their_meaning(
    served: Any, error: Exception, status: int, code: int
) -> None:
    """Each code has grpc-gateway's HTTP status; the body says code, message, details; no insides show."""
    served.fails_with(error)
    response = await served.client.post(MESSAGES, json={"text": "a"}, headers=GOOD)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert set(response.json()) == {"code", "message", "details"}
    assert "secret" not in response.text
    if isinstance(error, WhisprError):
        assert response.json()["message"] == error.message
        assert not error.details or reason(response) == error.reason


async def test_one_thing_has_a_tag_to_ask_again_by(served: Any) -> None:
    """304 without a body while it is the same; its reader alone may keep it, and asks each time."""
    first = await served.client.get("/v1/users/u1", headers=GOOD)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    assert first.headers["vary"] == "authorization"
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await served.client.get("/v1/users/u1", headers=GOOD | {"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert "x-request-id" in again.headers
    head = await served.client.head("/v1/users/u1", headers=GOOD | {"if-none-match": etag})
    assert head.status_code == 304
    other = await served.client.get("/v1/users/u2", headers=GOOD | {"if-none-match": etag})
    assert (other.status_code, other.headers["etag"] == etag) == (200, False)
    served.fails_with(not_found("user", "u1"))
    gone = await served.client.get("/v1/users/u1", headers=GOOD | {"if-none-match": "*"})
    assert (gone.status_code, "etag" in gone.headers) == (404, False)


async def test_pages_and_answers_to_calls_have_no_tag(served: Any) -> None:
    """Lists change with every look, and what holds tokens is kept nowhere."""
    page = await served.client.get("/v1/conversations/c1/messages", headers=GOOD)
    login = await served.client.post("/v1/auth/login", json={})
    for response in (page, login):
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers


async def test_pages_for_people_have_tags(served: Any) -> None:
    """The documentation is not sent again to who has it."""
    for path in ("/", "/docs", "/assets/docs.js", "/assets/style.css"):
        first = await served.client.get(path)
        again = await served.client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_retry_after_is_in_whole_seconds(served: Any) -> None:
    """RetryInfo becomes Retry-After, rounded up; a second where the service says nothing."""
    for error, status, seconds in (
        (exhausted("slow down", 12.2), 429, "13"),
        (unavailable("away", retry_after_s=2.5), 503, "3"),
        (WhisprError(Code.UNAVAILABLE, "away"), 503, "1"),
        (WhisprError(Code.RESOURCE_EXHAUSTED, "full"), 429, "1"),
    ):
        served.fails_with(error)
        response = await served.client.post(MESSAGES, json={"text": "a"}, headers=GOOD)
        assert (response.status_code, response.headers["retry-after"]) == (status, seconds)


async def test_without_a_token_there_is_a_challenge(served: Any) -> None:
    """A missing token is 401 with WWW-Authenticate, before the body is even looked at."""
    response = await served.client.post(MESSAGES, content=b"{broken")
    assert (response.status_code, response.json()["code"]) == (401, 16)
    assert response.headers["www-authenticate"] == 'Bearer realm="whispr"'
    assert reason(response) == "unauthorized"
    assert not served.script.requests


async def test_a_bad_token_is_401_too(served: Any) -> None:
    """What the service refuses comes back with its reason."""
    response = await served.client.get("/v1/users/u1", headers={"authorization": "Bearer stale"})
    assert (response.status_code, reason(response)) == (401, "token_expired")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


async def test_an_odd_authorization_is_refused(served: Any) -> None:
    """Bytes that cannot travel as metadata are 401, not a crash."""
    response = await served.client.get("/v1/users/u1", headers={"authorization": b"Bearer \xff\xfe"})
    assert response.status_code == 401


async def test_malformed_json_says_where(served: Any) -> None:
    """400, with the byte."""
    response = await served.client.post(MESSAGES, content=b'{"text": "a",}', headers=GOOD)
    assert response.status_code == 400
    assert "byte 13" in response.json()["message"]


async def test_an_unknown_field_is_named(served: Any) -> None:
    """400, with the field, in a BadRequest detail."""
    response = await served.client.post(MESSAGES, json={"txt": "a"}, headers=GOOD)
    assert response.status_code == 400
    assert response.json()["details"][0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert response.json()["details"][0]["field_violations"] == [
        {"field": "txt", "description": "no such field"}
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_other_media_types_are_refused(served: Any, headers: dict[str, str]) -> None:
    """415 for what is not JSON in UTF-8."""
    response = await served.client.post(MESSAGES, content=b"{}", headers=GOOD | headers)
    assert (response.status_code, reason(response)) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=UTF-8", "Application/LD+JSON", ""]
)
async def test_json_is_accepted_under_its_names(served: Any, kind: str) -> None:
    """application/json, with or without a charset, its relatives, and none at all."""
    headers = GOOD | ({"content-type": kind} if kind else {})
    response = await served.client.post(MESSAGES, content=b'{"text": "a"}', headers=headers)
    assert response.status_code == 200


async def chunks(count: int) -> Any:
    for _ in range(count):
        yield b" " * 1024


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(served: Any, chunked: bool) -> None:
    """413, whether the size was declared or turned out on the way; the next request is served."""
    content: Any = chunks(2048) if chunked else b" " * 2_000_000
    response = await served.client.post(MESSAGES, content=content, headers=GOOD)
    assert (response.status_code, reason(response)) == (413, "body_too_large")
    assert "4096" in response.json()["message"]
    assert (await served.client.get("/healthz")).status_code == 200


async def test_a_body_at_the_limit_passes(served: Any) -> None:
    """The limit itself is allowed."""
    body = json.dumps({"text": "x" * (4096 - 12)}).encode()
    assert len(body) == 4096
    assert (await served.client.post(MESSAGES, content=body, headers=GOOD)).status_code == 200
    assert (await served.client.post(MESSAGES, content=body + b" ", headers=GOOD)).status_code == 413


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/nothing", "/docs/", "/healthz/", "/assets/nothing", "/v1//users"]
)
async def test_an_unknown_path_is_404_in_json(served: Any, path: str) -> None:
    """Nothing answers with a page of somebody else's."""
    response = await served.client.get(path, headers=GOOD)
    assert (response.status_code, response.json()["code"]) == (404, 5)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/auth/login", "POST"),
        ("POST", "/v1/conversations/c1", "GET, PATCH"),
        ("POST", "/healthz", "GET"),
    ],
)
async def test_a_wrong_method_is_405_with_allow(served: Any, method: str, path: str, allowed: str) -> None:
    """The answer lists what is allowed."""
    response = await served.client.request(method, path, headers=GOOD)
    assert (response.status_code, response.json()["code"]) == (405, 12)
    assert set(allowed.split(", ")) <= set(response.headers["allow"].split(", "))


async def test_head_is_get_without_a_body(served: Any) -> None:
    """HEAD answers with GET's status and headers."""
    response = await served.client.head("/v1/users/u1", headers=GOOD)
    assert (response.status_code, response.content) == (200, b"")


async def test_a_slow_service_is_504(open_gateway: Any) -> None:
    """The deadline ends the wait, and the call in the service with it."""
    async with open_gateway(rest=RestLimits(deadline_s=0.2)) as served:
        served.script.hang = True
        response = await served.client.post(MESSAGES, json={"text": "a"}, headers=GOOD)
        assert (response.status_code, response.json()["code"]) == (504, 4)
        with trio.fail_after(10):
            await served.script.cancelled.wait()


async def test_a_slow_body_is_408(open_gateway: Any) -> None:
    """A body that does not arrive within the deadline is given up."""
    async with open_gateway(rest=RestLimits(deadline_s=0.2)) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        async with stream:
            head = f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\ncontent-length: 5\r\n\r\n{{"
            await stream.send_all(head.encode())
            with trio.fail_after(10):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 408")


async def test_who_leaves_in_the_middle_of_a_body_is_no_failure_of_ours(served: Any) -> None:
    """Of the API or an endpoint beside it: counted as gone, and nothing is logged that would call somebody."""

    async def reads(scope: Scope, receive: Receive, _: Send) -> None:
        await read_body(receive, Headers(scope=scope), 100)

    app = served.gateway.app
    server = HttpServer(_Front(app, app, [Endpoint("reads", re.compile("/reads"), reads)]))
    with structlog.testing.capture_logs() as logs, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
            for path in ("/v1/auth/login", "/reads"):
                gone, failed = CLIENTS_GONE._value.get(), FAILURES._value.get()
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(
                    f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{{".encode()
                )
                await stream.aclose()
                while CLIENTS_GONE._value.get() == gone:
                    await trio.lowlevel.checkpoint()
                assert FAILURES._value.get() == failed
            nursery.cancel_scope.cancel(reason="tested")
    assert not [each for each in logs if each["log_level"] == "error"]


async def test_a_client_that_hangs_up_cancels_the_call(open_gateway: Any) -> None:
    """Nobody waits for the answer, so nobody works on it."""
    async with open_gateway(rest=RestLimits(deadline_s=30)) as served:
        served.script.hang = True
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(b"GET /v1/users/u1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\n\r\n")
        with trio.fail_after(10):
            await served.script.reached.wait()
            await stream.aclose()
            await served.script.cancelled.wait()


async def test_a_service_that_is_away_is_503(served: Any, open_gateway: Any) -> None:
    """With nobody at the endpoint the answer is UNAVAILABLE, at once."""
    from whispr.gateway.server import Gateway
    from whispr.rpc.channel import open_channel

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with (
            open_channel(f"127.0.0.1:{taken.getsockname()[1]}") as channel,
            trio.open_nursery() as nursery,
        ):
            gateway = Gateway({"auth": channel}, readiness=served.script.readiness, voucher=lambda: "v")
            port = await nursery.start(gateway.serve, "127.0.0.1", 0)
            async with httpx.AsyncClient(trust_env=False) as client:
                response = await client.post(f"http://127.0.0.1:{port}/v1/auth/login", json={})
            assert (response.status_code, response.json()["code"]) == (503, 14)
            nursery.cancel_scope.cancel(reason="seen enough")


async def test_alive_and_ready_are_two_things(served: Any) -> None:
    """`/healthz` says that we run, `/readyz` whether all is there, and names what is not."""
    assert (await served.client.get("/healthz")).json() == {"status": "alive"}
    assert (await served.client.get("/readyz")).json() == {"status": "ready"}
    served.script.missing = {"postgres": "no connection"}
    response = await served.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "missing": {"postgres": "no connection"}}
    assert (await served.client.get("/healthz")).status_code == 200


async def test_metrics_count_requests_by_route(served: Any) -> None:
    """Prometheus sees templates of paths, never ids."""
    await served.client.get("/v1/users/some-very-special-id", headers=GOOD)
    text = (await served.client.get("/metrics")).text
    assert 'http_requests_total{method="GET",route="/v1/users/{user_id}",status="200"}' in text
    assert "some-very-special-id" not in text


async def test_the_document_describes_what_is_served(served: Any) -> None:
    """`/openapi.json` lists the paths that answer."""
    document = (await served.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert {"/v1/auth/login", "/v1/users/me", "/.well-known/jwks.json"} <= document["paths"].keys()


async def test_keys_are_public(served: Any) -> None:
    """The key set is where RFC 8414's readers look for it, for anybody."""
    answer = (await served.client.get("/.well-known/jwks.json")).json()
    assert answer["keys"][0]["kty"] == "OKP"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/assets/docs.js", "text/javascript"),
        ("/assets/style.css", "text/css"),
    ],
)
async def test_pages_need_no_other_host(served: Any, path: str, kind: str) -> None:
    """Every page is whole by itself, and forbids itself anything from elsewhere."""
    response = await served.client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert "//" not in response.text.replace("// ", "").replace("http://www.w3.org", "")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


async def test_other_origins_may_not_call_by_default(served: Any, open_gateway: Any) -> None:
    """Without a list no page of another origin may read an answer; with one, only the listed may."""
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    response = await served.client.options("/v1/auth/login", headers=preflight)
    assert "access-control-allow-origin" not in response.headers
    async with open_gateway(cors_origins=("https://app.example",)) as open_served:
        allowed = await open_served.client.options("/v1/auth/login", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        refused = await open_served.client.options(
            "/v1/auth/login", headers=preflight | {"origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in refused.headers


async def test_a_port_in_use_names_the_setting(served: Any) -> None:
    """The error says which port, and what to set."""
    with pytest.raises(ListenError, match="WHISPR_GATEWAY_PORT") as caught:
        await served.gateway.serve("127.0.0.1", served.port)
    assert str(served.port) in str(caught.value)


async def test_a_host_that_is_not_ours_names_the_setting(served: Any) -> None:
    """An address of another machine cannot be listened on."""
    with pytest.raises(ListenError, match="WHISPR_GATEWAY_HOST"):
        await served.gateway.serve("192.0.2.1", 0)


async def test_a_drain_answers_what_is_in_flight(served: Any) -> None:
    """After a drain new connections are refused, and the request under way gets its answer."""
    served.script.hang = True
    answers: list[httpx.Response] = []

    async def ask() -> None:
        answers.append(await served.client.get("/v1/users/u1", headers=GOOD))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await served.script.reached.wait()
        nursery.start_soon(served.gateway.drain)
        with trio.fail_after(10):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", served.port)
                except OSError:
                    break
                await stream.aclose()
        served.script.release.set()
    assert answers[0].status_code == 200


async def test_a_drain_is_bounded(served: Any) -> None:
    """A request that does not end is cut off when the drain's time is up."""
    served.script.hang = True

    async def ask() -> None:
        with pytest.raises(httpx.HTTPError):
            await served.client.get("/v1/users/u1", headers=GOOD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await served.script.reached.wait()
        with trio.fail_after(10):
            await served.gateway.drain()


async def test_nonsense_on_the_wire_is_400(served: Any) -> None:
    """What is not HTTP is answered as such and closed; headers beyond the limit too."""
    for nonsense in (b"\x16\x03\x01nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000):
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        async with stream:
            await stream.send_all(nonsense)
            with trio.fail_after(10):
                assert (await stream.receive_some()).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert (await served.client.get("/healthz")).status_code == 200


async def test_a_websocket_upgrade_is_refused(served: Any) -> None:
    """WebSockets have a listener of their own."""
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(b"0" * 16).decode(),
    }
    response = await served.client.get("/socket/websocket", headers=headers)
    assert response.status_code == 403


async def test_a_cancel_ends_everything_quietly(open_gateway: Any) -> None:
    """Cancelled with an idle connection and a call under way, the gateway is gone at once, without noise."""
    async with open_gateway(rest=RestLimits(deadline_s=30)) as served:
        served.script.hang = True
        idle = await trio.open_tcp_stream("127.0.0.1", served.port)
        busy = await trio.open_tcp_stream("127.0.0.1", served.port)
        await busy.send_all(b"GET /v1/users/u1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\n\r\n")
        with trio.fail_after(10):
            await served.script.reached.wait()
    for stream in (idle, busy):
        async with stream:
            with trio.fail_after(10):
                assert await stream.receive_some() == b""


async def test_a_proxy_that_is_no_address_names_the_setting(open_gateway: Any) -> None:
    """A name where an address is wanted is found at the start."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(WhisprError, match="WHISPR_GATEWAY_TRUSTED_PROXIES"), flatten_subgroups=True
    ):
        async with open_gateway(trusted_proxies=("proxy.example",)):
            pass
