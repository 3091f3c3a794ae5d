"""The dashboard and the alerts are well formed, and ask for metrics that the product has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # called once, with data
import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]  # read for what schemas then check
from prometheus_client import REGISTRY

import whispr.node  # noqa: F401  # with all that a process has, and measures

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARD = CONFIG / "grafana" / "whispr.json"
RULES = CONFIG / "prometheus" / "rules.yml"
RULES_TEST = CONFIG / "prometheus" / "rules_test.yml"

_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
_OF_PROMETHEUS = {"up"}
_RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["alert", "expr", "labels", "annotations"],
    "properties": {
        "alert": {"type": "string", "pattern": "^Whispr[A-Za-z]+$"},
        "expr": {"type": "string", "minLength": 1},
        "for": {"type": "string", "pattern": "^[0-9]+[smh]$"},
        "labels": {
            "type": "object",
            "required": ["severity"],
            "properties": {"severity": {"enum": ["info", "warning", "critical"]}},
        },
        "annotations": {
            "type": "object",
            "required": ["summary", "description"],
            "additionalProperties": {"type": "string"},
        },
    },
}
_RULES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groups"],
    "properties": {
        "groups": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "rules"],
                "properties": {"name": {"type": "string"}, "rules": {"type": "array", "items": _RULE}},
            },
        }
    },
}
_POSITION = {
    "type": "object",
    "required": ["h", "w", "x", "y"],
    "additionalProperties": {"type": "integer", "minimum": 0},
    "properties": {"w": {"maximum": 24}, "x": {"maximum": 23}},
}
_PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos"],
    "properties": {
        "id": {"type": "integer"},
        "type": {"enum": ["row", "timeseries", "stat"]},
        "title": {"type": "string", "minLength": 1},
        "gridPos": _POSITION,
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["refId", "expr", "legendFormat", "datasource"]},
        },
    },
    "if": {"properties": {"type": {"const": "row"}}},
    "else": {"required": ["targets", "datasource", "fieldConfig", "options"]},
}
_DASHBOARD = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time", "refresh"],
    "properties": {
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "items": _PANEL},
    },
}


def promised() -> set[str]:
    """The names of samples that /metrics may have."""
    return {
        family.name + suffix for family in REGISTRY.collect() for suffix in _SUFFIXES.get(family.type, ("",))
    }


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, with where it is."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", []))
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression names. Raises ValueError for what is none."""
    for variable, value in (("$__rate_interval", "1m"), ("$instance", ".*")):
        expression = expression.replace(variable, value)
    found: set[str] = set()

    def note(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            assert part.name is not None
            found.add(part.name)

    promql_parser.walk(promql_parser.parse(expression), note)
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_asked_for_is_there(where: str, expression: str) -> None:
    """Each is Prometheus' own grammar; a panel or an alert on a metric that nobody has would be silent for ever."""
    asked = metrics_of(expression)
    assert asked, where
    assert asked <= promised() | _OF_PROMETHEUS


def test_the_rules_are_rules() -> None:
    """As Prometheus reads them: groups of alerts, each once, each saying what it means and what to do."""
    rules = yaml.safe_load(RULES.read_text())
    jsonschema.validate(rules, _RULES)
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert len(names) == len(set(names))


def test_the_dashboard_is_one() -> None:
    """As Grafana reads it: panels with ids of their own that do not lie on each other, on a data source to choose."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    jsonschema.validate(dashboard, _DASHBOARD)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(panels))) - {"__rate_interval"}
    assert used <= variables | {""}


def promtool() -> str | None:
    """Prometheus' own tool: the one installed, or the one that `just test-alerts` fetches."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    fetched = cache / "whispr" / "prometheus" / "usr" / "bin" / "promtool"
    return str(fetched) if fetched.is_file() else shutil.which("promtool")


@pytest.mark.slow
@pytest.mark.skipif(promtool() is None, reason="Prometheus is not installed: `just test-alerts` fetches it")
@pytest.mark.parametrize("what", [["check", "rules", str(RULES)], ["test", "rules", str(RULES_TEST)]])
def test_prometheus_takes_the_rules(what: list[str]) -> None:
    """Prometheus' own tool checks every expression and template, and alerts fire when they should, and only then."""
    told = subprocess.run([promtool() or "", *what], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
