"""The success criteria of what Whispr replaces, each measured on a running product: `just validate`.

Two processes: one with authentication, messaging and chat, and the backends; the other with the user, media and
notification services, which the first calls by gRPC and finds by the variables there have always been (GRPC_PORT,
USER_SERVICE_GRPC_ENDPOINT and the like). Each criterion is a line: what was measured, PASS or FAIL. Exit code 1 when
one of them fails.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import trio

from tests.integration.load import RETRY_S
from tests.product import Product, spawn, start, wait_ready
from tests.world import METHODS, _message
from whispr.adapters.bus import open_bus
from whispr.bridge import open_bridge
from whispr.config import SERVICES, load
from whispr.credentials import mint
from whispr.embed import find_running
from whispr.errors import Code, WhisprError
from whispr.identity import ACTOR_KEY
from whispr.realtime.client import Disconnected, open_phoenix
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.health import SERVING, HealthCheckRequest, HealthStub
from whispr.rpc.stubs import UnaryUnary
from whispr.telemetry.logging import configure_logging
from whispr.v1.auth_grpc import AuthServiceStub
from whispr.v1.auth_pb2 import ValidateTokenRequest
from whispr.v1.messaging_grpc import MessagingServiceStub
from whispr.v1.messaging_pb2 import GetConversationStatsRequest
from whispr.v1.user_grpc import UserServiceStub
from whispr.v1.user_pb2 import CheckUserBlocksRequest

ELSEWHERE = ("user", "media", "notification")
"""Services of the second process."""
CALLS = 300
PATIENCE_S = 15.0
REVOKED_S = 1.0
"""Within which a session that has been ended is over everywhere."""
DEADLINE_S = 5.0


@dataclass
class Criterion:
    """One line of the report."""

    title: str
    check: Callable[[Ground], Awaitable[tuple[bool, str]]]


@dataclass
class Ground:
    """What the criteria are measured on."""

    folder: Path
    latency_ms: float
    here: Product = None  # type: ignore[assignment]  # there once it runs
    there: Product = None  # type: ignore[assignment]
    channels: dict[str, Channel] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    """Of the second process."""
    urls: dict[str, str] = field(default_factory=dict)
    token: str = ""
    user_id: str = ""
    peer_token: str = ""
    peer_id: str = ""
    conversation: str = ""
    service_token: str = ""

    def port(self, service: str) -> int:
        """Where a service listens."""
        return (self.there if service in ELSEWHERE else self.here).ports[service]

    async def rest(
        self, product: Product, method: str, path: str, body: object = None, token: str = ""
    ) -> Any:
        """Make a REST call without blocking; returns status and body."""
        return await trio.to_thread.run_sync(product.call, method, path, body, token)

    async def say(self, text: str) -> int:
        """Send a message by REST; return the status of the answer."""
        path = f"/v1/conversations/{self.conversation}/messages"
        status, _ = await self.rest(self.here, "POST", path, {"text": text}, self.token)
        return int(status)


CRITERIA: list[Criterion] = []


def criterion(title: str) -> Callable[[Any], Any]:
    """Enter a check under its title, in the order of the report."""

    def enter(check: Callable[[Ground], Awaitable[tuple[bool, str]]]) -> Any:
        CRITERIA.append(Criterion(title, check))
        return check

    return enter


def bearer(token: str) -> list[tuple[str, str]]:
    """Metadata that shows a token."""
    return [("authorization", f"Bearer {token}")] if token else []


# --- The criteria -----------------------------------------------------------------------------------------------


@criterion("gRPC servers of all services")
async def servers(ground: Ground) -> tuple[bool, str]:
    serving = 0
    for name in SERVICES:
        request = HealthCheckRequest(service=f"whispr.v1.{name.capitalize()}Service")
        serving += (await HealthStub(ground.channels[name]).Check(request)).status == SERVING
    stats = await MessagingServiceStub(ground.channels["messaging"]).GetConversationStats(
        GetConversationStatsRequest(conversation_id=ground.conversation), metadata=bearer(ground.token)
    )
    own = ground.here.ports["messaging"] == int(ground.here.environ["GRPC_PORT"])
    told = f"{serving} of {len(SERVICES)} serving; GetConversationStats answers; GRPC_PORT obeyed"
    return serving == len(SERVICES) and own and stats is not None, told


@criterion("gRPC between services")
async def between(ground: Ground) -> tuple[bool, str]:
    before = _served(ground, "UserService")
    async with _members(ground) as (sender, receiver):
        await sender.push("send_message", {"text": "validated by the user service"})
        await _next(receiver, "new_message")
    calls = _served(ground, "UserService") - before
    return (
        calls > 0,
        f"a message by WebSocket made {calls:.0f} call(s) to the user service in the other process",
    )


@criterion("JWT on every side")
async def jwt(ground: Ground) -> tuple[bool, str]:
    forged = ground.token[:-6] + ("aaaaaa" if not ground.token.endswith("aaaaaa") else "bbbbbb")
    refused, tried = 0, 0
    for token in ("", forged):
        for name in SERVICES:
            tried += 1
            refused += await _code_of(ground, name, token) is Code.UNAUTHENTICATED
        tried += 2
        refused += (await ground.rest(ground.here, "GET", "/v1/conversations", None, token))[0] == 401
        refused += await _websocket_refuses(ground, token)
    admitted = [
        name for name in SERVICES if await _code_of(ground, name, ground.token) is not Code.UNAUTHENTICATED
    ]
    good = refused == tried and len(admitted) == len(SERVICES)
    return (
        good,
        f"{refused} of {tried} refused without one or with a forged one; a good one opens {len(admitted)}",
    )


@criterion("a revoked session is over")
async def revoked(ground: Ground) -> tuple[bool, str]:
    _, token = await trio.to_thread.run_sync(ground.here.sign_up, "leaver")
    async with open_phoenix(ground.here.websocket_url, token) as phoenix:
        await phoenix.join(
            f"user:{(await ground.rest(ground.here, 'GET', '/v1/users/me', None, token))[1]['profile']['id']}"
        )
        began = time.monotonic()
        await ground.rest(ground.there, "POST", "/v1/auth/logout", {}, token)
        with trio.fail_after(PATIENCE_S):
            closed: Disconnected = await phoenix.wait_closed()
            while await _code_of(ground, "user", token) is not Code.UNAUTHENTICATED:  # noqa: ASYNC110
                await trio.sleep(0.01)  # it crosses the bus, and nobody tells us
    took = time.monotonic() - began
    return (
        took < REVOKED_S + RETRY_S,
        f"socket closed ({closed.close_code}) and refused elsewhere after {took:.2f} s",
    )


@criterion("event bus live")
async def events(ground: Ground) -> tuple[bool, str]:
    async with open_bridge() as bridge, open_bus(bridge, ground.urls["nats"]) as bus:
        await bus.wait_connected()
        async with bus.subscribe("messaging.events.>") as subscription:
            began = time.monotonic()
            await ground.say("an event")
            with trio.fail_after(PATIENCE_S):
                async for message in subscription:
                    event = msgspec.json.decode(message.payload)
                    if event["type"].endswith("message_sent") and event["subject"] == ground.conversation:
                        break
    took = time.monotonic() - began
    return took < PATIENCE_S, f"{message.subject} of the message, {took * 1000:.0f} ms after it was sent"


@criterion("latency between services")
async def latency(ground: Ground) -> tuple[bool, str]:
    request = CheckUserBlocksRequest(user_id=ground.user_id, target_user_ids=[ground.peer_id])
    metadata = [*bearer(ground.service_token), (ACTOR_KEY, ground.user_id)]
    user = UserServiceStub(ground.channels["user"])
    checked = AuthServiceStub(ground.channels["auth"])
    validate = ValidateTokenRequest(token=ground.token)
    blocks = await _timed(lambda: user.CheckUserBlocks(request, metadata=metadata))
    tokens = await _timed(lambda: checked.ValidateToken(validate, metadata=bearer(ground.service_token)))
    told = (
        f"CheckUserBlocks (PostgreSQL) p50 {blocks[0]:.1f}, p95 {blocks[1]:.1f} ms; "
        f"ValidateToken p50 {tokens[0]:.1f}, p95 {tokens[1]:.1f} ms; limit {ground.latency_ms:g}"
    )
    return max(blocks[1], tokens[1]) < ground.latency_ms, told


@criterion("WebSocket to push, all the way")
async def all_the_way(ground: Ground) -> tuple[bool, str]:
    async with _members(ground) as (sender, receiver):
        began = time.monotonic()
        reply: Any = await sender.push("send_message", {"text": "all the way"})
        acked = time.monotonic() - began
        await _next(receiver, "new_message")
        told = time.monotonic() - began
    _, stored = await ground.rest(
        ground.here, "GET", f"/v1/conversations/{ground.conversation}/messages", None, ground.peer_token
    )
    is_stored = any(message["seq"] == reply["seq"] for message in stored["messages"])

    async def notified() -> bool:
        _, listed = await ground.rest(ground.there, "GET", "/v1/notifications", None, ground.peer_token)
        return any(each["type"] == "message" for each in listed["notifications"])

    await _until("notified", notified)
    noted = time.monotonic() - began
    return is_stored, (
        f"acknowledged {acked * 1000:.0f} ms, broadcast {told * 1000:.0f} ms, "
        f"in the inbox of who is away {noted:.1f} s"
    )


@criterion("metrics by service, method, status")
async def metrics(ground: Ground) -> tuple[bool, str]:
    text = await trio.to_thread.run_sync(_exposition, ground.there)
    labels = ('service="', 'method="', 'status="')
    found = [
        name
        for name in ("grpc_request_duration_seconds_count", "grpc_requests_total")
        if any(line.startswith(name) and all(label in line for label in labels) for line in text.splitlines())
    ]
    return len(found) == 2, f"{', '.join(found)} on /metrics"


@criterion("one trace, and a log line for each call")
async def traces(ground: Ground) -> tuple[bool, str]:
    trace = os.urandom(16).hex()
    metadata = [*bearer(ground.token), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01")]
    stub = MessagingServiceStub(ground.channels["messaging"])
    await stub.GetConversationStats(
        GetConversationStatsRequest(conversation_id=ground.conversation), metadata=metadata
    )
    user = UserServiceStub(ground.channels["user"])
    request = CheckUserBlocksRequest(user_id=ground.user_id, target_user_ids=[ground.peer_id])
    await user.CheckUserBlocks(
        request, metadata=[*metadata[1:], *bearer(ground.service_token), (ACTOR_KEY, ground.user_id)]
    )

    async def logged() -> bool:
        return all(trace in _log_of(product) for product in (ground.here, ground.there))

    await _until("logged", logged)
    return True, "the caller's trace id is in the logs of both processes"


@criterion("mutual health checks")
async def health(ground: Ground) -> tuple[bool, str]:
    seen = []
    for product in (ground.here, ground.there):
        _, report = await ground.rest(product, "GET", "/v1/health")
        services = report["services"]
        seen.append(sum(facts["status"] == "up" for facts in services.values() if not facts["here"]))
    others = (len(SERVICES) - len(ELSEWHERE), len(ELSEWHERE))
    return seen == [
        others[1],
        others[0],
    ], f"each process sees the other's services up: {seen[0]} and {seen[1]}"


@criterion("deadline of 5 s")
async def deadline(ground: Ground) -> tuple[bool, str]:
    os.kill(ground.there.process.pid, 19)
    try:
        began = time.monotonic()
        status, _ = await ground.rest(ground.here, "DELETE", _harmless(ground), None, ground.token)
        took = time.monotonic() - began
    finally:
        os.kill(ground.there.process.pid, 18)
    return status in (
        503,
        504,
    ) and took < DEADLINE_S + 1, f"a service that hangs: refused ({status}) after {took:.1f} s"


@criterion("circuit breaker, fallback and back")
async def breaker(ground: Ground) -> tuple[bool, str]:
    await _until("well after the pause", partial(_user_is, ground, "closed"))
    await ground.say("known")
    await trio.to_thread.run_sync(ground.there.kill)
    began = time.monotonic()
    path = _harmless(ground)

    async def is_open() -> bool:
        await ground.rest(ground.here, "DELETE", path, None, ground.token)
        return await _user_is(ground, "open")

    async def is_closed() -> bool:
        await ground.rest(ground.here, "DELETE", path, None, ground.token)  # one of them is the probe
        return await _user_is(ground, "closed")

    await _until("open", is_open)
    opened = time.monotonic() - began
    began = time.monotonic()
    status, _ = await ground.rest(ground.here, "DELETE", path, None, ground.token)
    refused_ms = (time.monotonic() - began) * 1000
    talked = await ground.say("by the last good permissions")
    again = await trio.to_thread.run_sync(partial(start, ground.there.data_dir, ground.environ, *ELSEWHERE))
    ground.there.process = again.process
    began = time.monotonic()
    await _until("closed after the return", is_closed)
    closed = time.monotonic() - began
    return status == 503 and talked == 200, (
        f"open {opened:.1f} s after the service was killed, then refused in {refused_ms:.0f} ms; "
        f"messages go on ({talked}); closed {closed:.1f} s after its return"
    )


# --- Looking ----------------------------------------------------------------------------------------------------


def _harmless(ground: Ground) -> str:
    """What only the user service can do, and what changes nothing: an end to a block that there is not."""
    return f"/v1/users/{ground.peer_id}/block"


async def _user_is(ground: Ground, state: str) -> bool:
    _, report = await ground.rest(ground.here, "GET", "/v1/health")
    user = report["services"]["user"]
    return bool(user["breaker"] == state and (state == "open" or user["status"] == "up"))


async def _until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is so. Raises AssertionError."""
    with trio.move_on_after(PATIENCE_S):
        while not await check():  # noqa: ASYNC110  # another process, which tells nobody
            await trio.sleep(RETRY_S)
        return
    raise AssertionError(f"after {PATIENCE_S:g} s still not {what}")


async def _timed(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Make a call many times; return p50 and p95 in ms."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took), statistics.quantiles(took, n=20)[-1]


@asynccontextmanager
async def _members(ground: Ground) -> AsyncIterator[tuple[Any, Any]]:
    """Two members on sockets of their own; the second one leaves the inbox to who is not there: a third."""
    topic = f"conversation:{ground.conversation}"
    async with (
        open_phoenix(ground.here.websocket_url, ground.token) as first,
        open_phoenix(ground.here.websocket_url, ground.token) as second,
    ):
        yield await first.join(topic), await second.join(topic)


async def _next(channel: Any, wanted: str) -> Any:
    with trio.fail_after(PATIENCE_S):
        while True:
            event, payload = await anext(channel)
            if event == wanted:
                return payload


_ASKED = {
    "auth": "AuthService/ListSessions",
    "user": "UserService/ListContacts",
    "media": "MediaService/ListMedia",
    "notification": "NotificationService/ListNotifications",
    "messaging": "MessagingService/ListConversations",
    "chat": "ChatService/ListRooms",
    "stream": "StreamService/ListActiveStreams",
}
"""A read of each service that wants a token."""


async def _code_of(ground: Ground, service: str, token: str) -> Code:
    descriptor = METHODS[_ASKED[service]]
    name = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    call: Any = UnaryUnary(ground.channels[service], name, _message(descriptor.output_type))
    try:
        await call(_message(descriptor.input_type)(), metadata=bearer(token))
    except WhisprError as error:
        return error.code
    return Code.OK


async def _websocket_refuses(ground: Ground, token: str) -> bool:
    try:
        async with open_phoenix(ground.here.websocket_url, token):
            return False
    except WhisprError:
        return True


def _exposition(product: Product) -> str:
    with urlopen(product.url("/metrics")) as response:  # noqa: S310  # a URL of ours
        return str(response.read().decode())


def _served(ground: Ground, service: str) -> float:
    """Calls of a service that the second process has served."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in _exposition(ground.there).splitlines()
        if line.startswith("grpc_requests_total{") and service in line
    )


def _log_of(product: Product) -> str:
    return (product.data_dir.parent / f"{product.data_dir.name}.stderr").read_text()


# --- The ground -------------------------------------------------------------------------------------------------


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return found


async def _build(ground: Ground) -> None:
    """Start both processes and sign people up."""
    ports = dict(zip(ELSEWHERE, _free_ports(len(ELSEWHERE)), strict=True))
    names = {name: f"{name.upper()}_SERVICE_GRPC_ENDPOINT" for name in ELSEWHERE}
    common = {
        "WHISPR_LOG_FORMAT": "json",
        "WHISPR_LOG_CALLS": "1",  # of all calls, not of a sample
        "WHISPR_NOTIFICATION_BATCH_S": "0",
    }
    own = (
        common
        | {"GRPC_PORT": str(_free_ports(1)[0])}
        | {names[name]: f"127.0.0.1:{ports[name]}" for name in ELSEWHERE}
    )
    first = tuple(name for name in SERVICES if name not in ELSEWHERE)
    here = spawn(ground.folder / "here", {"WHISPR_MESSAGING_PORT": "", **own}, *first)
    ground.here = await trio.to_thread.run_sync(wait_ready, here)
    ground.urls = await find_running(ground.here.data_dir, ("postgres", "redis", "nats"))
    settings = load({"WHISPR_DATA_DIR": str(ground.here.data_dir)}).settings
    ground.service_token = mint(settings, "validate", 600)
    token_file = ground.folder / "token"
    token_file.write_text(mint(settings, "whispr", 600))
    ground.environ = (
        common
        | {f"WHISPR_{name.upper()}_PORT": str(port) for name, port in ports.items()}
        | {f"WHISPR_{name.upper()}_URL": url for name, url in ground.urls.items()}
        | {f"WHISPR_{name.upper()}_ENDPOINT": f"127.0.0.1:{ground.here.ports[name]}" for name in first}
        | {
            "WHISPR_AUTH_SERVICE_TOKEN_FILE": str(token_file),
            "WHISPR_GATEWAY_PORT": str(_free_ports(1)[0]),
        }
    )
    ground.there = await trio.to_thread.run_sync(
        partial(start, ground.folder / "there", ground.environ, *ELSEWHERE)
    )
    await _until("closed", partial(_user_is, ground, "closed"))
    ground.user_id, ground.token = await trio.to_thread.run_sync(ground.here.sign_up, "validator")
    ground.peer_id, ground.peer_token = await trio.to_thread.run_sync(ground.here.sign_up, "peer")
    ground.conversation = await trio.to_thread.run_sync(
        ground.here.conversation, ground.token, "group", ground.peer_id
    )


async def validate(folder: Path, latency_ms: float) -> bool:
    """Measure everything; return whether all criteria are met."""
    began = time.monotonic()
    ground = Ground(folder, latency_ms)
    met = 0
    try:
        await _build(ground)
        print(f"two processes ready after {time.monotonic() - began:.1f} s")
        async with AsyncExitStack() as stack:
            for name in SERVICES:
                opened = open_channel(f"127.0.0.1:{ground.port(name)}")
                ground.channels[name] = await stack.enter_async_context(opened)
            for each in CRITERIA:
                try:
                    passed, told = await each.check(ground)
                except (WhisprError, trio.TooSlowError, AssertionError, KeyError, ExceptionGroup) as error:
                    passed, told = False, f"{type(error).__name__}: {error}"
                met += passed
                print(f"{'PASS' if passed else 'FAIL'}  {each.title:<40} {told}", flush=True)
    finally:
        for product in (ground.there, ground.here):
            if product is not None:
                product.stop()
    print(f"{met} of {len(CRITERIA)} criteria met, in {time.monotonic() - began:.0f} s")
    return met == len(CRITERIA)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--latency-ms", type=float, default=10, help="what p95 of a call between services may take"
    )
    options = parser.parse_args()
    configure_logging("error", "console")
    with tempfile.TemporaryDirectory(prefix="whispr-validate-") as folder:
        return 0 if trio.run(validate, Path(folder), options.latency_ms) else 1


if __name__ == "__main__":
    sys.exit(main())
