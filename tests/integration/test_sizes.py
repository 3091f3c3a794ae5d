"""Requests at, over and far over what each of their fields holds, over gRPC and REST; and a test for each limit.

The bounds are in `tests/sizes.py`. What is at its bound is taken; what is over it is refused with an error that
names the field; nothing is a server error, and the server answers the next call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.rpc.error_details_pb2 import BadRequest

from tests.calls import ROWS
from tests.integration.limits import LIMITS
from tests.integration.succeeding import SUCCEEDING
from tests.sizes import EVERY_FIELD, RULES, Anything, Rule, rule_of
from tests.world import METHODS, World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.config import SERVICES, Limits
from whispr.errors import Code, WhisprError
from whispr.gateway.rest import routes_for
from whispr.gateway.transcode import Route

SERVER_ERRORS = {Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}
TOO_MUCH = {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED}
LONG_LINE = {414, 431}
"""REST's answers to a query that is longer than a request's line may be."""
FAST = {
    "MessagingService/SendMessage": ("content", "client_id", "metadata"),
    "AuthService/Register": ("display_name", "email"),
    "UserService/UpdateProfile": ("bio", "status_text"),
}
"""What is tried each time; the slow test tries everything."""

GROUPS = {"kind": "group", "name": "group"}
"""What a conversation needs that has settings and many members."""

ROUTES: Mapping[str, Route] = {
    route.path.rpartition(".")[2]: route for route in routes_for(dict.fromkeys(SERVICES))
}
_TESTS = Path(__file__).parent.parent


@dataclass
class Outcome:
    """How a request ended."""

    code: Code
    said: str
    """Everything the error says; empty of an answer."""
    fields: frozenset[str] = frozenset()
    """The fields it finds fault with."""
    reason: str = ""


def test_every_field_has_a_rule() -> None:
    """A new text, list or map has its bound in the table before it is anywhere else; no rule is a leftover."""
    assert [f"{method}.{path}" for method, path in EVERY_FIELD if rule_of(method, path) is None] == []
    known = {name for method, path in EVERY_FIELD for name in (f"{method}.{path}", path.rpartition(".")[2])}
    assert sorted(RULES.keys() - known) == []


def test_every_limit_has_a_test() -> None:
    """Of every limit an operator may move it is said which test goes beyond it, and that test is there."""
    assert sorted(LIMITS) == sorted(Limits.model_fields)
    for limit, test in LIMITS.items():
        file, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (_TESTS / file).read_text(), re.MULTILINE), (limit, test)


async def test_sizes_that_matter_most(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Messages, names and profiles: at, over, and far over their bounds."""
    wrong: list[str] = []
    async with open_world(db, cache, bus, tmp_path) as world, httpx.AsyncClient(timeout=30) as client:
        for method, paths in FAST.items():
            for path in paths:
                wrong += await Try(world, client, method, path).faults()
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("service", sorted({method.partition("/")[0] for method in METHODS}))
async def test_each_size(service: str, db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Every text, list and map of every request: at, over, and far over its bound."""
    wrong: list[str] = []
    sections = {"notification": {"allow_http": True, "allow_private_addresses": True}}
    async with (
        open_world(db, cache, bus, tmp_path, **sections) as world,
        httpx.AsyncClient(timeout=30) as client,
    ):
        for method, path in EVERY_FIELD:
            if method.startswith(service):
                wrong += await Try(world, client, method, path).faults()
    assert not wrong, "\n".join(wrong)


@dataclass
class Try:
    """One field of one RPC, tried in every size on both ways in."""

    world: World
    client: httpx.AsyncClient
    method: str
    path: str

    async def faults(self) -> list[str]:
        """Try it; return what is wrong."""
        rule = rule_of(self.method, self.path)
        assert rule is not None
        sizes = {"far over": rule.size} if isinstance(rule, Anything) else rule.sizes()
        ways = [self._over_grpc] + ([self._over_rest] if self.method in ROUTES else [])
        wrong = []
        for what, size in sizes.items():
            for way in ways:
                request, token = await self._request(rule.make(size))
                fault = self._judged(rule, what, await way(request, token))
                if fault:
                    wrong.append(f"{self.method}.{self.path} {what} ({size}), {way.__name__[1:]}: {fault}")
        return wrong

    async def _request(self, value: Any) -> tuple[dict[str, Any], str]:
        """A request that is good but for this value, and the token to make it with."""
        self.world.renew()
        row = ROWS[self.method]
        role = next(role for role in ("owner", "member", "admin", "service") if role in row.allowed)
        token = await self.world.new_token(role)
        request: dict[str, Any] = deepcopy(dict(await row.request(self.world, role)))
        if self.method in SUCCEEDING and not self.method.startswith("MediaService"):
            made, headers = await SUCCEEDING[self.method](self.world)
            request, token = dict(made), headers["authorization"].removeprefix("Bearer ")
        if self.method == "MessagingService/CreateConversation":
            request |= GROUPS
        at: Any = request
        message = METHODS[self.method].input_type
        *before, last = self.path.split(".")
        for name in before:
            field = message.fields_by_name[name]
            assert field.message_type is not None, "a path leads through messages"
            message = field.message_type
            at = at.setdefault(name, [{}] if field.is_repeated else {})
            at = at[0] if field.is_repeated else at
        at[last] = value
        return request, token

    async def _over_grpc(self, request: Mapping[str, Any], token: str) -> Outcome:
        try:
            await self.world.call_with(self.method, request, token)
        except WhisprError as error:
            violations = [
                v.field for d in error.details if isinstance(d, BadRequest) for v in d.field_violations
            ]
            said = f"{error.message} {[json_format.MessageToDict(d) for d in error.details]}"
            return Outcome(error.code, said, frozenset(violations), error.reason)
        return Outcome(Code.OK, "")

    async def _over_rest(self, request: Mapping[str, Any], token: str) -> Outcome:
        route, left = ROUTES[self.method], dict(request)
        template = route.template
        for name in [segment.variable for segment in route.segments if segment.variable]:
            template = template.replace(f"{{{name}}}", str(left.pop(name, "") or "none")[:8000])
        body = left if route.body == "*" else left.pop(route.body, {}) if route.body else None
        query = {} if route.body == "*" else {k: _text(v) for k, v in left.items()}
        too_long = Outcome(Code.INVALID_ARGUMENT, "the line is too long", frozenset([self.path]))
        try:
            response = await self.client.request(
                route.http_method, f"http://127.0.0.1:{self.world.ports['gateway']}{template}",
                params=query, json=body, headers={"authorization": f"Bearer {token}"} if token else {},
            )  # fmt: skip
        except httpx.InvalidURL:
            return too_long  # The client itself sends no such line.
        if response.status_code in LONG_LINE:
            return too_long
        if response.is_success:
            return Outcome(Code.OK, "")
        error = response.json()
        details = error["details"]
        violations = [v["field"] for d in details for v in d.get("field_violations", [])]
        reason = next((d["reason"] for d in details if "reason" in d), "")
        return Outcome(Code(error["code"]), f"{error['message']} {details}", frozenset(violations), reason)

    def _judged(self, rule: Rule | Anything, what: str, outcome: Outcome) -> str:
        """What is wrong with an outcome; empty if nothing is."""
        last = self.path.rpartition(".")[2]
        named = any(field.rpartition(".")[2].partition("[")[0] == last for field in outcome.fields)
        if outcome.code in SERVER_ERRORS:
            return f"{outcome.code.name}: {outcome.said}"
        if isinstance(rule, Anything):
            return ""
        if what == "at":
            return f"refused: {outcome.said}" if named or outcome.code in TOO_MUCH else ""
        if outcome.code in TOO_MUCH and (named or (rule.reason and rule.reason == outcome.reason)):
            return ""
        return f"{outcome.code.name}, not naming {last}: {outcome.said}"


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
