"""The OpenAPI document: valid, complete, and saying what the protos say."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

from whispr.gateway import openapi, transcode
from whispr.v1 import auth_pb2, chat_pb2, media_pb2, messaging_pb2, notification_pb2, user_pb2

MODULES: tuple[Any, ...] = (auth_pb2, user_pb2, media_pb2, notification_pb2, messaging_pb2, chat_pb2)


@cache
def document() -> dict[str, Any]:
    routes = [
        route
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for route in transcode.routes_of(service)
    ]
    return openapi.document(routes, openapi.load_comments(), "1.2.3")


def test_the_document_is_valid() -> None:
    """It is OpenAPI 3.1 to a validator nobody here wrote, and plain JSON."""
    assert list(OpenAPIV31SpecValidator(json.loads(json.dumps(document()))).iter_errors()) == []


def test_comments_of_the_protos_are_its_descriptions() -> None:
    """An RPC, a message and a field are described by their comments."""
    described = document()
    assert "Creates an account" in described["paths"]["/v1/auth/register"]["post"]["description"]
    schemas = described["components"]["schemas"]
    assert "RFC 8037" in schemas["Jwk"]["description"]
    assert schemas["RegisterRequest"]["properties"]["password"]["description"] == "At least 8 characters."
    assert schemas["Message"]["properties"]["seq"]["description"].startswith("1, 2, 3")


def test_only_public_paths_need_no_token() -> None:
    """What needs a token says so, and says what happens without."""
    paths = document()["paths"]
    assert "security" not in paths["/v1/auth/login"]["post"]
    protected = paths["/v1/conversations/{conversation_id}/messages"]["post"]
    assert protected["security"] == [{"bearer": []}]
    assert "401" in protected["responses"]


def test_parameters_come_from_path_and_query() -> None:
    """A GET's fields are query parameters, less those in the path."""
    operation = document()["paths"]["/v1/conversations/{conversation_id}/messages"]["get"]
    places = {parameter["name"]: parameter["in"] for parameter in operation["parameters"]}
    assert places == {
        "conversation_id": "path",
        "before_seq": "query",
        "after_seq": "query",
        "page_size": "query",
    }


def test_a_body_leaves_out_what_is_in_the_path() -> None:
    """The body of a POST shows the fields that belong there, and `text` beside `content`."""
    operation = document()["paths"]["/v1/conversations/{conversation_id}/messages"]["post"]
    properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "conversation_id" not in properties
    assert {"text", "content", "client_id"} <= set(properties)


def test_shapes_are_those_of_the_json() -> None:
    """int64 is a string, uint32 a number, a map an object, a time an RFC 3339 string."""
    schemas = document()["components"]["schemas"]
    stats = schemas["GetConversationStatsResponse"]["properties"]["stats"]
    assert stats["additionalProperties"] == {"type": "string", "format": "int64"}
    assert schemas["Message"]["properties"]["seq"]["type"] == "integer"
    assert schemas["Message"]["properties"]["sent_at"]["format"] == "date-time"
    assert schemas["Conversation"]["properties"]["members"]["items"] == {
        "$ref": "#/components/schemas/Member"
    }
