"""Every REST operation, with whatever its OpenAPI document allows and does not: schemathesis against the product.

`just test-api` runs it. Each operation is asked with made-up data, and then with what `tests/calls.py` asks of it,
about things that exist: alone at first, later laid over the made-up data, by each of those whom the call is for in
turn. No answer may be a server error, nor other than the document says; each operation succeeds at least once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.calls import ROWS
from tests.integration.acquaintance import LIFTED, Acquaintance, acquaintance
from tests.integration.succeeding import SUCCEEDING, Request, bearing
from tests.product import Product, running
from whispr import __version__
from whispr.config import SERVICES
from whispr.gateway import openapi
from whispr.gateway.rest import routes_for
from whispr.gateway.transcode import Route

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EXAMPLES = int(os.environ.get("WHISPR_API_EXAMPLES", "4"))
CALL_S = 20.0
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
SETTINGS = LIFTED | {
    "WHISPR_LIMITS_USER_SOCKETS": "0",
    "WHISPR_LIMITS_MEDIA_PENDING_UPLOADS": "0",
    "WHISPR_NOTIFICATION_ALLOW_HTTP": "true",
    "WHISPR_NOTIFICATION_ALLOW_PRIVATE_ADDRESSES": "true",
}

ROUTES = {f"{route.http_method} {route.template}": route for route in routes_for(dict.fromkeys(SERVICES))}
SCHEMA = schemathesis.openapi.from_dict(
    openapi.document(ROUTES.values(), openapi.load_comments(), __version__)
)


@dataclass
class Playground:
    """A product, people in it, and what came of asking it."""

    product: Product
    known: Acquaintance
    statuses: Counter[int] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    succeeded: set[str] = field(default_factory=set)

    def real(self, method: str, turn: int) -> Request:
        """A request about things that exist, as somebody who may make it."""
        return self.known.do(self._real, method, turn)

    async def _real(self, method: str, turn: int) -> Request:
        world = self.known.world
        if turn == 0:
            world.renew()
            if method in SUCCEEDING:
                return await SUCCEEDING[method](world)
        allowed = sorted(ROWS[method].allowed)
        role = allowed[turn % len(allowed)]
        return await ROWS[method].request(world, role), bearing(await world.new_token(role))

    def stranger(self) -> Mapping[str, str]:
        """Headers of somebody whom nobody misses if the call does away with them."""
        return bearing(self.known.do(self.known.world.sign_up).token)


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    with (
        running(tmp_path_factory.mktemp("api") / "data", SETTINGS) as product,
        acquaintance(product) as known,
    ):
        yield Playground(product, known)


def laid_over(
    case: schemathesis.Case[Any], route: Route, request: Mapping[str, Any]
) -> schemathesis.Case[Any]:
    """A case with a request's fields where the route wants them, beside what else is made up."""
    left = dict(request)
    names = [segment.variable for segment in route.segments if segment.variable]
    made_up_path = dict(case.path_parameters or {})
    more: dict[str, Any] = {"path_parameters": {n: left.pop(n, made_up_path.get(n, 0)) for n in names}}
    if route.body == "*":
        made_up = case.body if isinstance(case.body, dict) else {}
        more |= {"body": made_up | left, "media_type": "application/json"}
        left = {}
    elif route.body:
        more |= {"body": left.pop(route.body), "media_type": "application/json"}
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in left.items()}
    made: schemathesis.Case[Any] = case.operation.Case(**more, query=dict(case.query or {}) | texts)
    return made


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_operation(case: schemathesis.Case[Any], playground: Playground) -> None:
    """Whatever is asked, the answer is one of those that the document has."""
    label = case.operation.label
    route = ROUTES[label]
    turn = playground.asked[label]
    playground.asked[label] += 1
    ask(case, playground, playground.stranger())
    request, headers = playground.real(route.path.rpartition(".")[2], turn)
    beside = case.operation.Case() if turn == 0 else case
    ask(laid_over(beside, route, request), playground, headers)


def ask(case: schemathesis.Case[Any], playground: Playground, headers: Mapping[str, str]) -> None:
    """Make the call, and look at the answer."""
    response = case.call(base_url=playground.product.url(""), headers=dict(headers), timeout=CALL_S)
    playground.statuses[response.status_code] += 1
    if 200 <= response.status_code < 300:
        playground.succeeded.add(case.operation.label)
    case.validate_response(response, checks=CHECKS)


def test_each_operation_succeeded(playground: Playground, capsys: pytest.CaptureFixture[str]) -> None:
    """Made-up data that never gets past the first look would prove little."""
    asked = set(playground.asked)
    counted = ", ".join(f"{status}: {count}" for status, count in sorted(playground.statuses.items()))
    with capsys.disabled():
        print(f"\n{len(playground.succeeded)} of {len(asked)} operations succeeded; {counted}")
    never = asked - playground.succeeded
    assert not never, sorted(never)
