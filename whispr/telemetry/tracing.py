"""Traces: which span a task is in, and what is kept of the spans that are sampled.

A span's context travels as W3C Trace Context (https://www.w3.org/TR/trace-context/): `traceparent` names the trace
and the span, and says whether the trace is recorded; `tracestate` is passed on as it came. Whoever begins a trace
decides about all of it, by the ratio; everybody after goes by what they were told. Most are not recorded: for those
there are no spans, and what is said of them on the wire is the same for all of a process, so that headers stay what
peers have seen before.

    with tracing.span("publish", Kind.PRODUCER, parent=parse(event.trace)) as span:
        span.set("messaging.destination.name", subject)

Within the block, `current()` is the span's context, in this task and in those it starts. While tracing is off,
`active()` is None and a block costs nothing but asking; what a caller sent then still goes from its call into the
events it causes.

Pure: time and randomness aside, nothing here waits, reads or writes. `otlp` exports.
"""

from __future__ import annotations

import enum
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

from whispr.errors import Code, WhisprError

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
STATE_CHARS_MAX = 512
"""Of `tracestate`; a longer one is dropped (Trace Context, section 3.3.1.5)."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01

AttributeValue = str | int | float | bool


class Kind(enum.IntEnum):
    """What part a span has; the numbers are OTLP's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Context(NamedTuple):
    """What others need to know of a span."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As it goes on the wire."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse(traceparent: object, tracestate: object = "") -> Context | None:
    """Read what somebody sent; None for what is no traceparent, whose sender then has begun no trace."""
    match = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = tracestate if isinstance(tracestate, str) and len(tracestate) <= STATE_CHARS_MAX else ""
    return Context(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state)


class Span:
    """Something that takes a while, in a trace that is recorded. End it once."""

    __slots__ = (
        "_record",
        "attributes",
        "begun_ns",
        "code",
        "context",
        "ended_ns",
        "held",
        "kind",
        "name",
        "parent_id",
    )

    def __init__(
        self, name: str, kind: Kind, context: Context, parent_id: str, record: Callable[[Span], None]
    ) -> None:
        self.name = name
        self.kind = kind
        self.context = context
        self.parent_id = parent_id
        """Empty for the first of its trace."""
        self.begun_ns = time.time_ns()
        """Unix time in nanoseconds."""
        self.ended_ns = 0
        self.attributes: dict[str, AttributeValue] = {}
        """What it is about: names, ids, codes; never what people write, nor credentials."""
        self.code = Code.OK
        self.held = False
        self._record = record

    def set(self, name: str, value: AttributeValue) -> None:
        """Add an attribute."""
        self.attributes[name] = value

    def fail(self, error: BaseException) -> None:
        """Say what it ended with: a code, for the words of an error may be a person's."""
        self.code = error.code if isinstance(error, WhisprError) else Code.INTERNAL
        if not isinstance(error, WhisprError):
            self.set("error.type", type(error).__name__)

    def hold(self) -> None:
        """Outlast the block it was entered for: whoever holds it ends it, or lets it be forgotten."""
        self.held = True

    def end(self) -> None:
        """Keep it."""
        if not self.ended_ns:
            self.ended_ns = time.time_ns()
            self._record(self)


class Tracer:
    """Begins spans, and hands those that ended to `record`."""

    def __init__(
        self, ratio: float, record: Callable[[Span], None], rng: random.Random | None = None
    ) -> None:
        """`ratio`, 0 to 1, of the traces that begin here is recorded."""
        assert 0 <= ratio <= 1
        self._ratio = ratio
        self._record = record
        rng = rng or random.Random()  # noqa: S311  # ids have to be unique, not secret
        self._bits, self._chance = rng.getrandbits, rng.random

    def samples(self, parent: Context | None) -> bool:
        """Tell whether a span is recorded: of the parent's trace, or, at random, of a new one."""
        return self._chance() < self._ratio if parent is None else parent.sampled

    def begin(self, name: str, kind: Kind, parent: Context | None) -> Span | None:
        """Begin a span: of the parent's trace, or the first of a new one. None where nothing is recorded."""
        return self.recorded(name, kind, parent) if self.samples(parent) else None

    def recorded(self, name: str, kind: Kind, parent: Context | None) -> Span:
        """Begin a span that is recorded."""
        span_id = f"{self._bits(64) or 1:016x}"
        if parent is None:
            return Span(name, kind, Context(f"{self._bits(128) or 1:032x}", span_id, True), "", self._record)
        context = Context(parent.trace_id, span_id, True, parent.state)
        return Span(name, kind, context, parent.span_id, self._record)


_any = random.Random()  # noqa: S311  # ids have to be unique, not secret
UNSAMPLED = Context(f"{_any.getrandbits(128) or 1:032x}", f"{_any.getrandbits(64) or 1:016x}", False)
"""Of traces that begin here and are not recorded; the ids have to be some, and mean nothing."""

_current: ContextVar[Context | None] = ContextVar("whispr_trace", default=None)
_tracer: Tracer | None = None

enter = _current.set
"""Make a context this task's own. For tasks, and handlers' contexts, that end with the span."""
current = _current.get
"""Return the context of the span this task is in, or None."""


def active() -> Tracer | None:
    """Return the process's tracer; None while tracing is off."""
    return _tracer


@contextmanager
def tracing_with(tracer: Tracer) -> Iterator[None]:
    """Make a tracer the process's, over the block."""
    global _tracer  # a process has one, as it has one registry of metrics
    before, _tracer = _tracer, tracer
    try:
        yield
    finally:
        _tracer = before


def current_traceparent() -> str:
    """Return the current span's traceparent, or an empty string where nothing is recorded."""
    context = _current.get()
    return context.traceparent if context is not None and context.sampled else ""


@contextmanager
def entered(span: Span) -> Iterator[Span]:
    """Be in a span over the block, and end it with the block."""
    token = _current.set(span.context)
    try:
        yield span
    except BaseException as error:
        span.fail(error)
        raise
    finally:
        _current.reset(token)
        if not span.held:
            span.end()


@contextmanager
def span(
    name: str,
    kind: Kind,
    *,
    parent: Context | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span | None]:
    """Be in a new span over the block: of `parent`, else of the current one, else of a new trace.

    None where nothing is recorded, and while tracing is off.
    """
    tracer = _tracer
    if tracer is None:
        yield None
        return
    parent = parent or _current.get()
    begun = tracer.begin(name, kind, parent)
    if begun is not None:
        begun.attributes.update(attributes or {})
        with entered(begun):
            yield begun
        return
    token = _current.set(parent or UNSAMPLED)
    try:
        yield None
    finally:
        _current.reset(token)


def continued(
    name: str, kind: Kind, traceparent: str, attributes: Mapping[str, AttributeValue] | None = None
) -> AbstractContextManager[Span | None]:
    """Be in a new span of a trace that came with something, over the block; in none if nothing came with it."""
    parent = parse(traceparent) if _tracer is not None and traceparent else None
    return nullcontext() if parent is None else span(name, kind, parent=parent, attributes=attributes)


def chosen(traceparents: Iterable[str]) -> str:
    """Return the one by which something goes on that several things gave rise to: one that is recorded, if any."""
    given = [each for each in traceparents if each]
    return next(
        (each for each in given if (parent := parse(each)) and parent.sampled), given[0] if given else ""
    )


@contextmanager
def continued_together(name: str, kind: Kind, traceparents: Iterable[str]) -> Iterator[None]:
    """Have a span over the block in each of the traces that things came with, which are handled as one."""
    tracer = _tracer
    parents = [parse(each) for each in traceparents if each] if tracer is not None else []
    spans = [tracer.begin(name, kind, parent) for parent in parents if tracer and parent]
    try:
        yield
    finally:
        for each in spans:
            if each is not None:
                each.end()
