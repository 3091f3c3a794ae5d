"""What is written by hand is what OTLP's own classes read."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1 import trace_pb2

from whispr.errors import Code
from whispr.telemetry import otlp_wire
from whispr.telemetry.tracing import AttributeValue, Context, Kind, Span

HEX = "0123456789abcdef"
INTEGERS = st.integers(-(2**63), 2**63 - 1)
VALUES = st.one_of(st.text(max_size=300), st.booleans(), INTEGERS, st.floats(allow_nan=False))
TIMES = st.integers(0, 2**63)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """Any span that has ended."""
    span_id = st.text(HEX, min_size=16, max_size=16)
    context = Context(
        draw(st.text(HEX, min_size=32, max_size=32)), draw(span_id), True, draw(st.text(max_size=200))
    )
    name, kind = draw(st.text(max_size=300)), draw(st.sampled_from(Kind))
    span = Span(name, kind, context, draw(st.one_of(st.just(""), span_id)), lambda _: None)
    span.begun_ns, span.ended_ns = draw(TIMES), draw(TIMES)
    span.attributes = draw(
        st.dictionaries(st.text(string.ascii_lowercase + ".", max_size=20), VALUES, max_size=5)
    )
    span.code = draw(st.sampled_from(Code))
    return span


def value_of(given: object) -> AttributeValue:
    """An attribute's value, whatever it is."""
    which = given.WhichOneof("value")  # type: ignore[attr-defined]  # AnyValue
    value: AttributeValue = getattr(given, which)
    return value


@given(st.lists(spans(), max_size=3))
def test_the_generated_classes_read_what_was_written(written: list[Span]) -> None:
    """Every field, for any span, and several one after another."""
    read = trace_pb2.ScopeSpans.FromString(otlp_wire.spans(written)).spans
    assert len(read) == len(written)
    for got, span in zip(read, written, strict=True):
        assert (got.trace_id.hex(), got.span_id.hex()) == (span.context.trace_id, span.context.span_id)
        assert (got.parent_span_id.hex(), got.trace_state) == (span.parent_id, span.context.state)
        assert (got.name, int(got.kind), got.flags) == (span.name, int(span.kind), 1)
        assert (got.start_time_unix_nano, got.end_time_unix_nano) == (span.begun_ns, span.ended_ns)
        values = {each.key: value_of(each.value) for each in got.attributes}
        assert values == span.attributes
        assert {key: type(value) for key, value in values.items()} == {
            key: type(value) for key, value in span.attributes.items()
        }
        failed = span.code is not Code.OK
        assert got.status.code == (trace_pb2.Status.STATUS_CODE_ERROR if failed else 0)
        assert got.status.message == (span.code.name if failed else "")
