"""HTTP ⇄ RPC by `google.api.http` (google/api/http.proto). Pure: requests and answers as values.

Routes come from the method options in the descriptors, additional bindings included. A path is matched
segment by segment, a literal before a variable, so `/v1/users/me` wins over `/v1/users/{user_id}`. A request
message is filled from three places: the path's variables, the body (`*`, one field, or nothing), and, where
the body is not `*`, the query. The same field from two places with two values is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo

from whispr.errors import DOMAIN, Code, WhisprError, invalid, not_found
from whispr.gateway import protojson
from whispr.gateway.descriptors import field_named, holds_message

Bindings = Mapping[str, str]
"""Path variable (a field's dotted path) → its decoded text."""

HTTP_STATUS: Mapping[Code, int] = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""grpc-gateway's mapping (runtime/errors.go, HTTPStatusFromCode)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a path: a literal, or the variable that takes its place."""

    literal: str = ""
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP method and path, and the RPC that it calls."""

    http_method: str
    template: str
    segments: tuple[Segment, ...]
    method: MethodDescriptor
    body: str
    """`*`, the name of one field, or empty for no body."""

    @property
    def path(self) -> str:
        """The RPC's path: `/package.Service/Method`."""
        return f"/{self.service}/{self.method.name}"

    @property
    def reads_one(self) -> bool:
        """Whether it reads a thing by its id, rather than a page of many: it is worth asking if that has changed."""
        last = self.segments[-1]
        return self.http_method == "GET" and (bool(last.variable) or last.literal == "me")

    @property
    def service(self) -> str:
        """The full name of the RPC's service."""
        return str(self.method.containing_service.full_name)

    @property
    def input(self) -> type[Message]:
        """The class of the RPC's request."""
        return message_factory.GetMessageClass(self.method.input_type)

    @property
    def output(self) -> type[Message]:
        """The class of the RPC's response."""
        return message_factory.GetMessageClass(self.method.output_type)


def parse_template(template: str, message: Descriptor) -> tuple[Segment, ...]:
    """Split a path template. Raises ValueError for what is not supported, or names no scalar field."""
    if not template.startswith("/"):
        raise ValueError(f"{template}: a path begins with a slash")
    return tuple(_segment(part, template, message) for part in template[1:].split("/"))


def _segment(part: str, template: str, message: Descriptor) -> Segment:
    if part.startswith("{") and part.endswith("}"):
        name = part[1:-1].removesuffix("=*")
        variable = field_named(message, name)
        if variable is None or holds_message(variable) or variable.is_repeated:
            raise ValueError(f"{template}: {name!r} is not a single-valued field of {message.full_name}")
        return Segment(variable=name)
    if not part or any(char in "{}*:" for char in part):
        raise ValueError(f"{template}: {part!r} is not a literal or a variable of one segment")
    return Segment(literal=part)


def routes_of(service: ServiceDescriptor) -> list[Route]:
    """Return the routes of every annotated method. Raises ValueError for a rule that cannot be served."""
    routes = []
    for method in service.methods:
        options = method.GetOptions()
        if not options.HasExtension(annotations_pb2.http):
            continue
        rule = options.Extensions[annotations_pb2.http]
        routes += [_route(method, binding) for binding in (rule, *rule.additional_bindings)]
    return routes


def _route(method: MethodDescriptor, rule: HttpRule) -> Route:
    kind = rule.WhichOneof("pattern")
    if kind in (None, "custom") or method.client_streaming or method.server_streaming:
        raise ValueError(f"{method.full_name}: only unary methods on a plain HTTP method can be transcoded")
    template = getattr(rule, kind)
    segments = parse_template(template, method.input_type)
    if rule.body not in ("", "*") and field_named(method.input_type, rule.body) is None:
        raise ValueError(f"{method.full_name}: body {rule.body!r} is not a field")
    return Route(kind.upper(), template, segments, method, rule.body)


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    variable: _Node | None = None
    routes: dict[str, Route] = field(default_factory=dict)


class MethodNotAllowedError(WhisprError):
    """The path exists, the method on it does not; `allowed` are those that do."""

    def __init__(self, http_method: str, allowed: Iterable[str]) -> None:
        self.allowed = sorted(allowed)
        super().__init__(
            Code.UNIMPLEMENTED,
            f"{http_method} is not allowed here, only {', '.join(self.allowed)}",
            [ErrorInfo(reason="method_not_allowed", domain=DOMAIN)],
        )


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = list(routes)
        self._root = _Node()
        for route in self.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in route.segments:
            if segment.variable:
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literals.setdefault(segment.literal, _Node())
        if (other := node.routes.get(route.http_method)) is not None:
            raise ValueError(f"{route.http_method} {route.template} is both {other.path} and {route.path}")
        node.routes[route.http_method] = route

    def match(self, http_method: str, raw_path: str) -> tuple[Route, Bindings]:
        """Find the route and the path's variables; `raw_path` is still percent-encoded.

        A variable is decoded after the split, so that it may hold a slash. Raises NOT_FOUND, or
        MethodNotAllowedError when the path is served by other methods only.
        """
        parts = [unquote(part, errors="replace") for part in raw_path.removeprefix("/").split("/")]
        found: set[str] = set()
        for node in _nodes_at(self._root, parts, 0):
            if (route := node.routes.get(http_method)) is not None:
                pairs = zip(route.segments, parts, strict=True)
                return route, {segment.variable: part for segment, part in pairs if segment.variable}
            found |= node.routes.keys()
        if found:
            raise MethodNotAllowedError(http_method, found)
        raise not_found("path", raw_path)


def _nodes_at(node: _Node, parts: list[str], at: int) -> Iterable[_Node]:
    """The nodes that a path leads to, the most literal first."""
    if at == len(parts):
        yield node
        return
    if (child := node.literals.get(parts[at])) is not None:
        yield from _nodes_at(child, parts, at + 1)
    if node.variable is not None and parts[at]:
        yield from _nodes_at(node.variable, parts, at + 1)


def request_message(route: Route, bindings: Bindings, query: str, body: bytes) -> Message:
    """Fill the RPC's request. Raises INVALID_ARGUMENT with the position, or naming every field at fault."""
    message = route.input()
    faults = _merge_body(message, route, body)
    pairs = _query_pairs(query)
    if route.body == "*":
        faults |= {name: "give it in the body" for name, _ in pairs}
    else:
        bound = {name: "give it in the path" for name, _ in pairs if name in bindings}
        faults |= bound | protojson.merge_query(message, [pair for pair in pairs if pair[0] not in bound])
    for name, text in bindings.items():
        faults |= _bind(message, name, text, faults)
    if faults:
        raise invalid(faults)
    return message


def _query_pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=200)
    except ValueError:
        raise invalid({"query": "not valid UTF-8, or over 200 parameters"}) from None


def _merge_body(message: Message, route: Route, body: bytes) -> protojson.Faults:
    if not route.body:
        return {"body": f"{route.http_method} {route.template} takes none"} if body else {}
    value = parse_json(body) if body else {}
    if route.body == "*":
        return protojson.merge_json(message, value)
    return protojson.merge_json(message, {route.body: value})


def parse_json(body: bytes) -> Any:
    """Parse JSON (RFC 8259). Raises INVALID_ARGUMENT saying where it went wrong."""
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise invalid({"body": "JSON is nested too deeply"}) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = str(error)
        where = "" if "byte" in why else f" (byte {len(body)})"
        raise invalid({"body": f"not valid JSON: {why}{where}"}) from None


def _bind(message: Message, name: str, text: str, faults: protojson.Faults) -> protojson.Faults:
    """Set a path variable, unless the body says something else for the same field."""
    given = _value_at(message, name)
    fault = protojson.set_from_text(message, name, text)
    if fault is not None:
        return {name: fault}
    if given and name not in faults and given != _value_at(message, name):
        return {name: "differs from the one in the path"}
    return {}


def _value_at(message: Message, path: str) -> object:
    value: Any = message
    for name in path.split("."):
        value = getattr(value, name)
    return value


def error_body(error: WhisprError) -> dict[str, Any]:
    """Return an error as REST shows it: `{code, message, details}`, `code` being gRPC's number."""
    details = []
    for packed in error.to_status().details:
        try:
            details.append(json_format.MessageToDict(packed, preserving_proto_field_name=True))
        except TypeError:
            continue  # A detail of a type that this program has not been built with.
    return {"code": int(error.code), "message": error.message, "details": details}
