"""Logs are one JSON object a line, carry the fields given, and never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from whispr.telemetry.logging import SECRET_FIELDS, configure_logging


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    before, level, configuration = list(root.handlers), root.level, structlog.get_config()
    configure_logging("info", "auto", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.configure(**configuration)


def test_an_event_is_one_json_line_with_its_fields(lines: io.StringIO) -> None:
    """Away from a terminal each event is one JSON object with level, time and the fields given."""
    structlog.get_logger("whispr").info("call ended", code="OK", duration_ms=1.5)
    event = json.loads(lines.getvalue())
    assert event["event"] == "call ended"
    assert event["level"] == "info"
    assert event["code"] == "OK"
    assert event["timestamp"].endswith("Z")


@pytest.mark.parametrize("field", sorted(SECRET_FIELDS))
def test_no_secret_reaches_a_log(lines: io.StringIO, field: str) -> None:
    """A field that holds a credential or what somebody wrote is blanked whoever passes it."""
    structlog.get_logger("whispr").warning("refused", **{field: "hunter2"})
    assert "hunter2" not in lines.getvalue()
    assert json.loads(lines.getvalue())[field] == "[redacted]"


def test_the_level_holds_for_ours_and_for_libraries(lines: io.StringIO) -> None:
    """Below the level nothing is written, by us or by a library; at it both are, in one form."""
    structlog.get_logger("whispr").debug("detail")
    logging.getLogger("nats").debug("detail")
    assert lines.getvalue() == ""
    logging.getLogger("nats").warning("server %s went away", "n1")
    event = json.loads(lines.getvalue())
    assert event["event"] == "server n1 went away"
    assert event["level"] == "warning"


def test_a_traceback_is_part_of_the_event(lines: io.StringIO) -> None:
    """An exception is logged inside its event, not spilled over further lines."""
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger("whispr").exception("handler crashed")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variables(lines: io.StringIO, form: str) -> None:
    """What people wrote is in the variables of the code that handles it, and stays out of the log."""
    configure_logging("info", form, lines)
    try:
        payload = {"text": "between you and " + "me"}
        raise ValueError(len(payload))
    except ValueError:
        structlog.get_logger("whispr").exception("handler crashed")
    assert "ValueError" in lines.getvalue()
    assert "between you and me" not in lines.getvalue()
