"""proto3 JSON: agrees with protobuf's own conversion, names what is wrong, and shows text as text."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as F
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from whispr.gateway import protojson
from whispr.v1.messaging_pb2 import GetMessagesRequest, SendMessageRequest
from whispr.v1.messaging_pb2 import Message as ChatMessage

SCALARS = {
    "a_double": F.TYPE_DOUBLE,
    "a_float": F.TYPE_FLOAT,
    "a_int32": F.TYPE_INT32,
    "a_int64": F.TYPE_INT64,
    "a_uint32": F.TYPE_UINT32,
    "a_uint64": F.TYPE_UINT64,
    "a_sint32": F.TYPE_SINT32,
    "a_fixed64": F.TYPE_FIXED64,
    "a_bool": F.TYPE_BOOL,
    "a_string": F.TYPE_STRING,
    "a_bytes": F.TYPE_BYTES,
}


def _build() -> type[Message]:
    """A message type with every kind of field, a nested one, lists, maps, an enum and a oneof."""
    file = descriptor_pb2.FileDescriptorProto(name="kinds_test.proto", package="kinds", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    colour = file.enum_type.add(name="Colour")
    for number, name in enumerate(("NONE", "RED", "BLUE")):
        colour.value.add(name=name, number=number)
    kinds = file.message_type.add(name="Kinds")
    kinds.oneof_decl.add(name="choice")
    numbers = iter(range(1, 100))
    for name, kind in SCALARS.items():
        kinds.field.add(name=name, number=next(numbers), type=kind, label=F.LABEL_OPTIONAL)
        kinds.field.add(name=f"many_{name}", number=next(numbers), type=kind, label=F.LABEL_REPEATED)
    for name in ("left", "right"):
        kinds.field.add(
            name=name, number=next(numbers), type=F.TYPE_STRING, label=F.LABEL_OPTIONAL, oneof_index=0
        )
    for name, label in (("colour", F.LABEL_OPTIONAL), ("many_colour", F.LABEL_REPEATED)):
        kinds.field.add(
            name=name, number=next(numbers), type=F.TYPE_ENUM, type_name=".kinds.Colour", label=label
        )
    for name, label in (("child", F.LABEL_OPTIONAL), ("children", F.LABEL_REPEATED)):
        kinds.field.add(
            name=name, number=next(numbers), type=F.TYPE_MESSAGE, type_name=".kinds.Kinds", label=label
        )
    stamp = ".google.protobuf.Timestamp"
    kinds.field.add(
        name="at_time", number=next(numbers), type=F.TYPE_MESSAGE, type_name=stamp, label=F.LABEL_OPTIONAL
    )
    for name, key, value in (
        ("by_name", F.TYPE_STRING, F.TYPE_INT64),
        ("by_flag", F.TYPE_BOOL, F.TYPE_STRING),
    ):
        entry = kinds.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=key, label=F.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=value, label=F.LABEL_OPTIONAL)
        kinds.field.add(
            name=name,
            number=next(numbers),
            type=F.TYPE_MESSAGE,
            type_name=f".kinds.Kinds.{entry.name}",
            label=F.LABEL_REPEATED,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(
        descriptor_pool.Default().FindFileByName("google/protobuf/timestamp.proto").serialized_pb
    )
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kinds.Kinds"))


Kinds: Any = _build()

_VALUES: dict[int, st.SearchStrategy[Any]] = {
    F.TYPE_DOUBLE: st.floats(allow_nan=False) | st.just(float("nan")),
    F.TYPE_FLOAT: st.floats(width=32, allow_nan=False) | st.just(float("nan")),
    F.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    F.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.TYPE_UINT32: st.integers(0, 2**32 - 1),
    F.TYPE_UINT64: st.integers(0, 2**64 - 1),
    F.TYPE_SINT32: st.integers(-(2**31), 2**31 - 1),
    F.TYPE_FIXED64: st.integers(0, 2**64 - 1),
    F.TYPE_BOOL: st.booleans(),
    F.TYPE_STRING: st.text(max_size=8),
    F.TYPE_BYTES: st.binary(max_size=8),
}


@st.composite
def kinds(draw: st.DrawFn, depth: int = 2) -> Any:
    message = Kinds()
    for name in draw(st.sets(st.sampled_from(sorted(SCALARS)), max_size=4)):
        setattr(message, name, draw(_VALUES[SCALARS[name]]))
        getattr(message, f"many_{name}").extend(draw(st.lists(_VALUES[SCALARS[name]], max_size=3)))
    if side := draw(st.sampled_from(["", "left", "right"])):
        setattr(message, side, draw(st.text(max_size=3)))
    message.colour = draw(st.integers(0, 4))
    message.many_colour.extend(draw(st.lists(st.integers(0, 2), max_size=2)))
    message.by_name.update(draw(st.dictionaries(st.text(max_size=3), _VALUES[F.TYPE_INT64], max_size=2)))
    message.by_flag.update(draw(st.dictionaries(st.booleans(), st.text(max_size=3), max_size=2)))
    if draw(st.booleans()):
        message.at_time.FromMilliseconds(draw(st.integers(0, 4_000_000_000_000)))
    if depth and draw(st.booleans()):
        message.child.CopyFrom(draw(kinds(depth=depth - 1)))
        message.children.add().CopyFrom(draw(kinds(depth=depth - 1)))
    return message


def parsed(value: object, into: type[Any] = Kinds) -> tuple[Any, protojson.Faults]:
    message = into()
    return message, protojson.merge_json(message, value)


@settings(max_examples=40)
@given(kinds())
def test_a_message_survives_the_trip(message: Any) -> None:
    """Any message shown as JSON, through text, and read again is the same message."""
    through = json.loads(json.dumps(protojson.to_json(message)))
    again, faults = parsed(through)
    assert not faults
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


@settings(max_examples=40)
@given(kinds())
def test_protobuf_reads_what_we_show(message: Any) -> None:
    """What we show is proto3 JSON to protobuf's own parser."""
    again = json_format.ParseDict(protojson.to_json(message), Kinds())
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


@settings(max_examples=40)
@given(kinds(), st.booleans())
def test_we_read_what_protobuf_shows(message: Any, camel_case: bool) -> None:
    """What protobuf's own printer shows, with names of either case, we read as the same message."""
    shown = json_format.MessageToDict(message, preserving_proto_field_name=not camel_case)
    again, faults = parsed(shown)
    assert not faults
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([f.name for f in Kinds.DESCRIPTOR.fields]), _JSON, max_size=3))
def test_wrong_values_are_faults_never_crashes(value: dict[str, Any]) -> None:
    """Whatever JSON stands in a field, it is read or named as a fault: nothing is raised."""
    _, faults = parsed(value)
    assert all(path.split(".")[0].split("[")[0] in value for path in faults)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a_int32": 2**31}, "a_int32"),
        ({"a_int32": 1.5}, "a_int32"),
        ({"a_int32": True}, "a_int32"),
        ({"a_int32": ""}, "a_int32"),
        ({"a_int32": " 1"}, "a_int32"),
        ({"a_int32": "1" * 5000}, "a_int32"),
        ({"a_uint32": -1}, "a_uint32"),
        ({"a_uint64": str(2**64)}, "a_uint64"),
        ({"a_float": 3.5e38}, "a_float"),
        ({"a_double": 10**400}, "a_double"),
        ({"a_double": "inf"}, "a_double"),
        ({"a_bool": "true"}, "a_bool"),
        ({"a_bool": 1}, "a_bool"),
        ({"a_string": 5}, "a_string"),
        ({"a_string": "\ud800"}, "a_string"),
        ({"a_bytes": "%%%"}, "a_bytes"),
        ({"colour": "GREEN"}, "colour"),
        ({"colour": 1.5}, "colour"),
        ({"many_a_int32": 5}, "many_a_int32"),
        ({"many_a_int32": [1, None]}, "many_a_int32[1]"),
        ({"many_a_int32": [1, "x"]}, "many_a_int32[1]"),
        ({"by_name": []}, "by_name"),
        ({"by_name": {"k": "v"}}, "by_name[k]"),
        ({"by_name": {"k": None}}, "by_name[k]"),
        ({"by_flag": {"yes": "v"}}, "by_flag[yes]"),
        ({"at_time": "yesterday"}, "at_time"),
        ({"at_time": 5}, "at_time"),
        ({"at_time": {}}, "at_time"),
        ({"child": 5}, "child"),
        ({"child": {"child": {"nope": 1}}}, "child.child.nope"),
        ({"children": [{}, {"a_int32": "x"}]}, "children[1].a_int32"),
        ({"left": "a", "right": "b"}, "right"),
        ({"a_int32": 1, "aInt32": 1}, "aInt32"),
        ({"nope": 1}, "nope"),
        ({"text": "a"}, "text"),
    ],
)
def test_a_fault_is_named_by_its_path(value: dict[str, Any], path: str) -> None:
    """A value that does not fit its field is named by the field's path, and nothing else is blamed."""
    assert list(parsed(value)[1]) == [path]


def test_every_fault_is_reported_at_once() -> None:
    """A client mends a request in one round."""
    assert set(parsed({"a_int32": "x", "nope": 1, "a_bool": 1})[1]) == {"a_int32", "nope", "a_bool"}


def test_null_leaves_a_field_unset() -> None:
    """Null is absence (proto3 JSON)."""
    message, faults = parsed({"a_int32": None, "child": None, "many_a_int32": None})
    assert not faults
    assert message == Kinds()


@pytest.mark.parametrize("value", [[], "x", 5, None, True])
def test_a_body_must_be_an_object(value: object) -> None:
    """JSON that is no object says so of the body."""
    assert list(parsed(value)[1]) == ["body"]


@given(st.binary(max_size=40))
def test_content_is_shown_as_text_when_it_is(content: bytes) -> None:
    """Content that is valid UTF-8 is shown as `text`, other content as base64, and both read back."""
    shown = protojson.to_json(ChatMessage(content=content))
    try:
        expected = {"text": content.decode()}
    except UnicodeDecodeError:
        expected = {"content": base64.b64encode(content).decode()}
    assert {name: shown[name] for name in ("text", "content") if name in shown} == expected
    again, faults = parsed(shown, ChatMessage)
    assert not faults
    assert again.content == content


def test_text_and_content_together_are_refused() -> None:
    """A request that gives a message twice is not guessed at."""
    _, faults = parsed({"text": "a", "content": "YQ=="}, SendMessageRequest)
    assert faults == {"content": "give either text or content, not both"}


@pytest.mark.parametrize("encoded", ["-_-_", "+/+/", "-_8=", "-_8"])
def test_base64_of_both_alphabets_is_read(encoded: str) -> None:
    """Standard and URL-safe base64, padded or not, are accepted (proto3 JSON)."""
    message, faults = parsed({"content": encoded}, SendMessageRequest)
    assert not faults
    assert message.content in (b"\xfb\xff\xbf", b"\xfb\xff")


def test_defaults_are_shown_and_unset_optionals_are_not() -> None:
    """A client sees every plain field of an answer; absence means that there is nothing to see."""
    shown = protojson.to_json(GetMessagesRequest())
    assert shown == {"conversation_id": "", "before_seq": 0, "page_size": 0}
    assert protojson.to_json(GetMessagesRequest(after_seq=0))["after_seq"] == 0


def from_query(*pairs: tuple[str, str]) -> tuple[Any, protojson.Faults]:
    message = Kinds()
    return message, protojson.merge_query(message, list(pairs))


def test_a_query_sets_fields() -> None:
    """Numbers, booleans, enums, times, lists and nested fields come from text."""
    message, faults = from_query(
        ("a_int32", "5"),
        ("a_bool", "true"),
        ("colour", "RED"),
        ("child.a_string", "x y"),
        ("many_a_int64", "1"),
        ("many_a_int64", "-2"),
        ("at_time", "2024-01-01T00:00:00Z"),
    )
    assert not faults
    assert (message.a_int32, message.a_bool, message.colour, message.child.a_string) == (5, True, 1, "x y")
    assert list(message.many_a_int64) == [1, -2]
    assert message.at_time.ToJsonString() == "2024-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "pairs",
    [
        [("nope", "1")],
        [("a_int32", "x")],
        [("a_int32", "1"), ("a_int32", "2")],
        [("a_bool", "yes")],
        [("child", "x")],
        [("child.nope", "x")],
        [("a_int32.x", "1")],
        [("by_name", "x")],
        [("by_name.key", "x")],
        [("children", "x")],
        [("colour", "9" * 20)],
        [("at_time", "x")],
    ],
)
def test_a_bad_parameter_is_named(pairs: list[tuple[str, str]]) -> None:
    """A parameter that is unknown, repeated or of the wrong type is named as it was given."""
    assert list(from_query(*pairs)[1]) == [pairs[-1][0]]
