"""HTTP ⇄ RPC: which request calls what, with which message, and how an error looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from whispr.errors import Code, WhisprError, denied, exhausted, invalid, unauthenticated
from whispr.gateway import transcode
from whispr.gateway.descriptors import descriptor_of
from whispr.gateway.transcode import MethodNotAllowedError, Router, request_message
from whispr.identity import access_of
from whispr.v1 import auth_pb2, messaging_pb2, options_pb2, user_pb2

MODULES: tuple[Any, ...] = (auth_pb2, user_pb2, messaging_pb2)
ROUTER = Router(
    [
        route
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for route in transcode.routes_of(service)
    ]
)
SEND = ("POST", "/v1/conversations/c1/messages")


def message_for(method: str, path: str, query: str = "", body: bytes = b"") -> Any:
    route, bindings = ROUTER.match(method, path)
    return request_message(route, bindings, query, body)


def faults(method: str, path: str, query: str = "", body: bytes = b"") -> dict[str, str]:
    with pytest.raises(WhisprError) as caught:
        message_for(method, path, query, body)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return dict(caught.value.fields)


def outcome_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except WhisprError as error:
        return error


def test_every_rpc_has_a_route() -> None:
    """No RPC of the API is out of reach of a script, but for those that services alone may call."""
    routed = {route.path for route in ROUTER.routes}
    declared = {
        f"/{service.full_name}/{method.name}"
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    for_services = {path for path in declared if access_of(path) == options_pb2.SERVICE_ONLY}
    assert declared - for_services <= routed <= declared


@pytest.mark.parametrize(
    ("method", "path", "rpc"),
    [
        ("POST", "/v1/auth/register", "/whispr.v1.AuthService/Register"),
        ("GET", "/v1/users", "/whispr.v1.UserService/SearchUsers"),
        ("GET", "/v1/users/me", "/whispr.v1.UserService/GetProfile"),
        ("GET", "/v1/users/me/blocks", "/whispr.v1.UserService/ListBlocks"),
        ("PUT", "/v1/users/u1/block", "/whispr.v1.UserService/BlockUser"),
        ("DELETE", "/v1/users/u1/block", "/whispr.v1.UserService/UnblockUser"),
        ("GET", "/.well-known/jwks.json", "/whispr.v1.AuthService/GetJwks"),
        ("GET", "/v1/conversations/c1/messages", "/whispr.v1.MessagingService/GetMessages"),
    ],
)
def test_a_path_and_method_choose_the_rpc(method: str, path: str, rpc: str) -> None:
    """Each path of the API leads to its RPC."""
    assert ROUTER.match(method, path)[0].path == rpc


def test_a_literal_wins_over_a_variable() -> None:
    """`/v1/users/me` is not the user called me, yet `/v1/users/me/block` still is a path."""
    assert ROUTER.match("GET", "/v1/users/me")[1] == {}
    assert ROUTER.match("GET", "/v1/users/u1")[1] == {"user_id": "u1"}
    assert ROUTER.match("PUT", "/v1/users/me/block")[1] == {"user_id": "me"}


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_a_variable_is_decoded_whole(text: str) -> None:
    """Percent-encoding carries any text in a path, slashes included."""
    encoded = "".join(f"%{byte:02X}" for byte in text.encode())
    assert ROUTER.match("GET", f"/v1/users/{encoded}")[1].get("user_id", "me") == text


@pytest.mark.parametrize(
    "path", ["/", "", "/v1", "/v1/users/", "/v1/users//block", "/v1/nothing", "/v1/users/u1/x", "/V1/users"]
)
def test_an_unknown_path_is_not_found(path: str) -> None:
    """What leads nowhere is NOT_FOUND; an empty id is not an id."""
    with pytest.raises(WhisprError) as caught:
        ROUTER.match("GET", path)
    assert caught.value.code is Code.NOT_FOUND


def test_a_wrong_method_says_which_are_right() -> None:
    """The error lists the methods of every route that the path fits."""
    with pytest.raises(MethodNotAllowedError) as caught:
        ROUTER.match("DELETE", "/v1/conversations/c1")
    assert caught.value.allowed == ["GET", "PATCH"]
    assert caught.value.reason == "method_not_allowed"


def test_two_routes_on_one_path_are_refused_at_start() -> None:
    """A clash in the protos is found when the gateway starts, not when a request goes astray."""
    with pytest.raises(ValueError, match="is both"):
        Router([*ROUTER.routes, ROUTER.routes[0]])


@pytest.mark.parametrize(
    "template", ["v1/x", "/v1/{nope}", "/v1/**", "/v1/x:act", "/v1//x", "/v1/{last_message}"]
)
def test_templates_beyond_us_are_refused_at_start(template: str) -> None:
    """A path template that cannot be served is an error when the gateway starts."""
    with pytest.raises(ValueError):
        transcode.parse_template(template, descriptor_of(messaging_pb2.Conversation()))


def test_streaming_methods_are_refused_at_start() -> None:
    """An annotation on a streaming method cannot be served as one answer."""
    file = descriptor_pb2.FileDescriptorProto(name="streaming_test.proto", package="streaming")
    file.message_type.add(name="Nothing")
    method = file.service.add(name="Streams").method.add(
        name="Watch", input_type=".streaming.Nothing", output_type=".streaming.Nothing", server_streaming=True
    )
    method.options.Extensions[annotations_pb2.http].get = "/v1/watch"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(ValueError, match="only unary"):
        transcode.routes_of(pool.FindServiceByName("streaming.Streams"))


def test_body_and_path_make_the_message() -> None:
    """Ids come from the path, the rest from the body."""
    message = message_for(*SEND, body=b'{"text": "h\xc3\xa9", "metadata": {"k": "v"}}')
    assert message.conversation_id == "c1"
    assert message.content == "hé".encode()
    assert message.metadata == {"k": "v"}


def test_an_empty_body_is_an_empty_object() -> None:
    """A POST without a body asks with defaults."""
    assert message_for("POST", "/v1/auth/logout") == auth_pb2.LogoutRequest()


def test_the_query_makes_the_message_of_a_get() -> None:
    """Where there is no body, the query sets fields."""
    message = message_for("GET", "/v1/conversations/c1/messages", "after_seq=0&page_size=5")
    assert (message.conversation_id, message.after_seq, message.page_size) == ("c1", 0, 5)
    assert message.HasField("after_seq")


@pytest.mark.parametrize(
    ("request_parts", "field"),
    [
        ((*SEND, "", b'{"conversation_id": "c2"}'), "conversation_id"),
        ((*SEND, "text=a", b""), "text"),
        ((*SEND, "", b'{"txt": "a"}'), "txt"),
        ((*SEND, "", b'{"text": 5}'), "text"),
        ((*SEND, "", b"[]"), "body"),
        (("GET", "/v1/users", "quary=a"), "quary"),
        (("GET", "/v1/users", "page_size=many"), "page_size"),
        (("GET", "/v1/users", "query=a&query=b"), "query"),
        (("GET", "/v1/users", "query=%ff"), "query"),
        (("GET", "/v1/users", "&".join(["query=a"] * 300)), "query"),
        (("GET", "/v1/users/u1", "user_id=u1"), "user_id"),
        (("GET", "/v1/users", "", b"{}"), "body"),
    ],
)
def test_what_does_not_fit_is_named(request_parts: tuple[Any, ...], field: str) -> None:
    """A contradiction, an unknown name or a wrong type is INVALID_ARGUMENT naming the field."""
    assert list(faults(*request_parts)) == [field]


def test_the_same_id_in_path_and_body_is_fine() -> None:
    """Repeating the path's id in the body contradicts nothing."""
    assert message_for(*SEND, body=b'{"conversation_id": "c1"}').conversation_id == "c1"


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b'{"text": "a",}', "byte 13"),
        (b'{"text": ', "byte 9"),
        (b'{"text": NaN}', "byte 9"),
        (b"{'text': 1}", "byte 1"),
        (b'{"text": "\xff"}', "byte"),
        (b"[" * 50_000, "too deeply"),
    ],
)
def test_malformed_json_says_where(body: bytes, position: str) -> None:
    """A client learns at which byte its JSON went wrong."""
    assert position in faults(*SEND, body=body)["body"]


@given(st.binary(max_size=60))
def test_no_body_crashes(body: bytes) -> None:
    """Any bytes are a message or INVALID_ARGUMENT."""
    route, bindings = ROUTER.match(*SEND)
    outcome: Any = outcome_of(lambda: request_message(route, bindings, "", body))
    assert getattr(outcome, "code", Code.INVALID_ARGUMENT) is Code.INVALID_ARGUMENT


def test_an_error_keeps_its_details() -> None:
    """REST shows the number of the code, the message, and every google.rpc detail with its type."""
    body = transcode.error_body(exhausted("slow down", retry_after_s=1.5))
    assert (body["code"], body["message"]) == (8, "slow down")
    by_type = {detail["@type"].rpartition(".")[2]: detail for detail in body["details"]}
    assert by_type["ErrorInfo"]["reason"] == "rate_limited"
    assert by_type["RetryInfo"]["retry_delay"] == "1.500s"
    violations = transcode.error_body(invalid({"a": "b"}))["details"][0]["field_violations"]
    assert violations == [{"field": "a", "description": "b"}]


def test_every_code_has_a_status() -> None:
    """No error is left without an HTTP status, and each has grpc-gateway's."""
    assert set(transcode.HTTP_STATUS) == set(Code) - {Code.OK}
    statuses = {
        error.code: transcode.HTTP_STATUS[error.code] for error in (unauthenticated("x"), denied("x"))
    }
    assert statuses == {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403}
