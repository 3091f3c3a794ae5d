"""What the tasks of this product are, for its task tree: the functions that tasks run in, and what they say.

Each is looked at only while somebody draws the tree; what is read are the local variables of a function that waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio

from whispr.asgi.connection import Connection as HttpConnection
from whispr.events.consumers import Consumers
from whispr.events.runner import Runner
from whispr.gateway.rest import RestApi
from whispr.gateway.tasks import Tasks
from whispr.identity import service_of
from whispr.realtime.socket import Socket
from whispr.realtime.worker import Worker
from whispr.rpc.call import Call
from whispr.rpc.driving import drive
from whispr.rpc.server import RpcServer
from whispr.rpc.server_connection import ServerConnection
from whispr.services.notification.dispatcher import Dispatcher
from whispr.telemetry.tasks import Facts, Here, describe, follow

_OWN = "/whispr.v1."


def describe_all() -> None:
    """Describe the tasks of services, sockets, calls and consumers. May be called again."""
    describe(Socket.run, _socket)
    describe(Worker._work, _channel)
    describe(RpcServer._serve, _listener)
    describe(RpcServer._serve_connection, _connection)
    describe(ServerConnection._run_alone, _call)
    describe(drive, _call)
    follow(drive, "coroutine")
    describe(HttpConnection.run, _http_connection)
    describe(RestApi._serve, _request)
    describe(
        Tasks.__call__, lambda here: Facts("request", f"{here['scope']['method']} {here['scope']['path']}")
    )
    describe(Consumers._run_held, _consumer)
    describe(Runner._run_one, _event)
    describe(Dispatcher._fly, lambda here: Facts("push", f"delivery {here['claim'].id}"))


def describe_service(run: Callable[..., Any], name: str, began_at: float) -> None:
    """Describe the task that runs a service: `run` is its method, `began_at` on Trio's clock."""
    describe(
        getattr(run, "__func__", run), lambda _: Facts("service", name, name, trio.current_time() - began_at)
    )


def _listener(here: Here) -> Facts:
    services = sorted({service_of(method) for method in here["self"].methods if method.startswith(_OWN)})
    name = f"{', '.join(services)} gRPC on " + ", ".join(
        _address(listener.socket.getsockname()) for listener in here["listeners"]
    )
    return Facts("listener", name, name)


def _address(name: object) -> str:
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)


def _socket(here: Here) -> Facts:
    socket: Socket = here["self"]
    topics = len(socket.links)
    name = f"of {socket.session.user_id}, {topics} topic{'s' * (topics != 1)}"
    return Facts("socket", name, "", trio.current_time() - socket.began_at, nursery=here["self"].nursery)


def _channel(here: Here) -> Facts:
    return Facts("channel", here["self"].topic)


def _connection(here: Here) -> Facts | None:
    connection = here.get("connection")
    if connection is None:
        return None
    age_s = time.time() - connection.opened_at
    nursery = getattr(connection, "nursery", None)
    calls = connection.calls_going
    name = f"of {connection.peer}, {calls} call{'s' * (calls != 1)}"
    return Facts("connection", name, "", age_s, nursery=nursery)


def _call(here: Here) -> Facts:
    call: Call = here["call"]
    age_s = time.perf_counter() - call.begun_at
    return Facts("call", call.method[1:], call.method[1:], age_s, call.deadline)


def _http_connection(here: Here) -> Facts:
    return Facts("http", "connection")


def _request(here: Here) -> Facts:
    scope, measured = here["scope"], here.get("measured")
    route = scope["path"] if measured is None or measured.route == "none" else measured.route
    age_s = None if measured is None else measured.age_s
    return Facts("request", f"{scope['method']} {route}", f"{scope['method']} {route}", age_s)


def _consumer(here: Here) -> Facts:
    runner: Runner = here["self"].runner(here["name"])
    return Facts("consumer", here["name"], here["name"], trio.current_time() - runner.began_at)


def _event(here: Here) -> Facts:
    runner: Runner = here["self"]
    return Facts("event", f"{here['work'].subject} for {runner.consumer.name}", runner.consumer.name)
