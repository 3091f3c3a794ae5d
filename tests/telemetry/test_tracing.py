"""W3C Trace Context, and what is kept of spans."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whispr.errors import Code, denied
from whispr.telemetry import tracing
from whispr.telemetry.tracing import Context, Kind, Span, Tracer, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_example_of_the_specification() -> None:
    """Trace Context, section 3.2.4: read as it is meant, and written as it was read."""
    context = parse(f"00-{TRACE}-{SPAN}-01", "rojo=1")
    assert context == Context(TRACE, SPAN, True, "rojo=1")
    assert context.traceparent == f"00-{TRACE}-{SPAN}-01"
    later = parse(f"cc-{TRACE}-{SPAN}-00-what-the-future-will-be-like")
    assert later == Context(TRACE, SPAN, False)


@pytest.mark.parametrize(
    "given",
    [
        None, 7, "", "00", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n", f" 00-{TRACE}-{SPAN}-01",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_begins_no_trace(given: object) -> None:
    """Anything else is as if nothing had come: section 4.2 has a new trace begun."""
    assert parse(given) is None


@given(st.text(), st.text())
def test_nothing_that_comes_breaks_the_reading(traceparent: str, tracestate: str) -> None:
    """Headers are anybody's to write."""
    context = parse(traceparent, tracestate)
    assert context is None or parse(context.traceparent, context.state) is not None


def test_a_long_tracestate_is_dropped() -> None:
    """What others keep in it has its limit, and the trace goes on without."""
    context = parse(f"00-{TRACE}-{SPAN}-01", "a=" + "b" * 511)
    assert context is not None
    assert context.state == ""


@given(st.floats(0, 1), st.integers())
@settings(max_examples=20)
def test_the_ratio_decides_where_traces_begin(ratio: float, seed: int) -> None:
    """About that share of new traces is recorded; of a trace that came from elsewhere, what was decided there."""
    kept: list[Span] = []
    tracer = Tracer(ratio, kept.append, random.Random(seed))
    begun = [tracer.begin("a", Kind.SERVER, None) for _ in range(400)]
    assert abs(len([span for span in begun if span]) - 400 * ratio) <= 130
    span = tracer.begin("b", Kind.SERVER, Context(TRACE, SPAN, True))
    assert span is not None
    assert (span.context.trace_id, span.parent_id) == (TRACE, SPAN)
    span.end()
    span.end()
    assert kept == [span], "once"
    assert tracer.begin("c", Kind.SERVER, Context(TRACE, SPAN, False)) is None


def test_a_block_is_in_its_span() -> None:
    """Within, the context is the span's; an error leaves its code, not its words."""
    kept: list[Span] = []
    with tracing.tracing_with(Tracer(1, kept.append)):
        with tracing.span("outer", Kind.SERVER) as outer:
            assert outer is not None
            assert tracing.current() == outer.context
            with pytest.raises(Exception, match="secret"), tracing.span("inner", Kind.CLIENT):
                raise denied("a secret")
        assert tracing.current() is None
    inner, last = kept
    assert (inner.name, inner.parent_id, inner.code) == (
        "inner",
        last.context.span_id,
        Code.PERMISSION_DENIED,
    )
    assert (last.name, last.parent_id, last.code) == ("outer", "", Code.OK)
    assert "secret" not in str([span.attributes for span in kept])


def test_what_is_not_recorded_says_so() -> None:
    """A trace that begins and is not recorded has no span, and whoever is told of it records none either."""
    with tracing.tracing_with(Tracer(0, lambda span: pytest.fail(span.name))):
        with tracing.span("outer", Kind.SERVER) as outer, tracing.span("inner", Kind.CLIENT) as inner:
            assert (outer, inner) == (None, None)
            told = tracing.current()
            assert told is not None
            assert not told.sampled
            assert parse(told.traceparent) == told
            assert tracing.current_traceparent() == ""
        with tracing.continued("later", Kind.CONSUMER, f"00-{TRACE}-{SPAN}-00") as later:
            assert later is None
        assert tracing.current() is None


def test_while_tracing_is_off_there_is_no_span() -> None:
    """Blocks run as they are, and nothing is current."""
    with tracing.span("a", Kind.SERVER) as span, tracing.continued("b", Kind.CLIENT, f"00-{TRACE}-{SPAN}-01"):
        assert span is None
        assert tracing.current_traceparent() == ""
