"""Every REST operation, with whatever its OpenAPI document allows and does not: schemathesis against the product.

`just test-api` runs it. Each operation is asked as a person and as a service, with made-up data, and with ids of
things that exist in place of made-up ones, so that it gets past the first look. No answer may be a server error,
nor other than the document says.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, running
from whispr import __version__
from whispr.config import SERVICES
from whispr.gateway import openapi
from whispr.gateway.rest import routes_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EXAMPLES = int(os.environ.get("WHISPR_API_EXAMPLES", "4"))
CALL_S = 20.0
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]

SCHEMA = schemathesis.openapi.from_dict(
    openapi.document(routes_for(dict.fromkeys(SERVICES)), openapi.load_comments(), __version__)
)


@dataclass
class Playground:
    """A product, somebody in it, and things they have."""

    product: Product
    service: str
    user_id: str = ""
    token: str = ""
    known: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    turns: Iterator[int] = field(default_factory=count)

    def begin(self) -> None:
        """Sign somebody up, with a group, a room and messages in them."""
        name = f"p{uuid4().hex[:12]}"
        self.user_id, self.token = self.product.sign_up(name)
        friend, _ = self.product.sign_up(f"f{uuid4().hex[:12]}")
        group = self.product.conversation(self.token, "group", friend)
        sent = self.must(
            "POST", f"/v1/conversations/{group}/messages", {"text": "hello", "client_id": uuid4().hex}
        )
        room = self.must("POST", "/v1/rooms", {"name": "test", "type": "PUBLIC"})
        room_id = room["room"]["id"]
        self.known = {
            "user_id": friend, "other_user_id": friend, "target_id": friend, "member_ids": friend,
            "conversation_id": group, "room_id": room_id, "message_id": sent["message"]["id"],
            "username": name, "password": "correct horse",
        }  # fmt: skip

    def must(self, method: str, path: str, body: Any) -> Any:
        status, reply = self.product.call(method, path, body, self.token)
        assert status == 200, (path, status, reply)
        return reply

    def still_signed_in(self) -> None:
        """Begin anew once an operation has ended the session or the account."""
        if self.product.call("GET", "/v1/users/me", token=self.token)[0] == 401:
            self.begin()


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    with running(tmp_path_factory.mktemp("api") / "data", UNLIMITED) as product:
        minted = whispr("token", "tests", WHISPR_DATA_DIR=str(product.data_dir))
        playground = Playground(product, minted.stdout.strip())
        playground.begin()
        yield playground


def real(value: Any, known: Mapping[str, str]) -> Any:
    """The same, with what exists in place of made-up ids."""
    if isinstance(value, dict):
        return {
            name: known[name] if name in known and isinstance(inner, str) else real(inner, known)
            for name, inner in value.items()
        }
    return [real(inner, known) for inner in value] if isinstance(value, list) else value


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
    playground.still_signed_in()
    # Every other time what is made up stays so; a service asks one time in four.
    turn = next(playground.turns)
    asking = [(playground.token, playground.known if turn % 2 else {})]
    if turn % 4 == 0:
        asking.append((playground.service, playground.known))
    for token, known in asking:
        case.path_parameters = real(dict(case.path_parameters or {}), known)
        case.body = real(case.body, known)
        headers = {"authorization": f"Bearer {token}"}
        response = case.call(base_url=playground.product.url(""), headers=headers, timeout=CALL_S)
        playground.statuses[response.status_code] += 1
        if response.status_code == 200:
            playground.answered.add(case.operation.label)
        case.validate_response(response, checks=CHECKS)


def test_most_operations_were_answered(playground: Playground, capsys: pytest.CaptureFixture[str]) -> None:
    """Made-up data that never gets past the first look would prove little."""
    total = sum(1 for _ in SCHEMA.get_all_operations())
    with capsys.disabled():
        counted = ", ".join(f"{status}: {count}" for status, count in sorted(playground.statuses.items()))
        print(f"\n{total} operations, {len(playground.answered)} of them answered with 200; {counted}")
    assert len(playground.answered) >= total // 3, sorted(playground.answered)
