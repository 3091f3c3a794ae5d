"""The console's arithmetic, by Node: rates and quantiles out of counts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import whispr

FIGURES = Path(whispr.__file__).parent / "gateway" / "assets" / "console" / "figures.js"


def evaluated(*expressions: str) -> list[Any]:
    """What expressions on the module's functions are."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's modules cannot be run")
    source = FIGURES.read_text() + f"\nconsole.log(JSON.stringify([{','.join(expressions)}]));"
    done = subprocess.run(
        [node, "--input-type=module"], input=source, capture_output=True, text=True, timeout=50, check=True
    )
    return list(json.loads(done.stdout))


def answer(at: float, *counts: int, failed: int = 0, pushes: int = 0) -> str:
    """One answer of the endpoint, of one method whose buckets end at 10 and 100 ms."""
    series = [{"labels": {"service": "S", "method": "M"}, "counts": counts, "failed": failed}]
    some = {"bounds": [0.01, 0.1], "series": series}
    none: dict[str, Any] = {"bounds": [], "series": []}
    histograms = {
        "grpc_request_duration_seconds": some,
        "http_request_duration_seconds": none,
        "whispr_message_write_seconds": none,
        "whispr_loop_lag_seconds": none,
    }
    numbers = {"whispr_ws_pushes_total": pushes}
    return json.dumps({"at": at, "workers": {}, "numbers": numbers, "histograms": histograms})


def test_rates_and_quantiles_are_of_what_came_between() -> None:
    """As Prometheus' histogram_quantile has them; a worker that began anew counts from nothing."""
    quantiles = [
        f"quantile({q}, [0.01, 0.1], {counts})"
        for q, counts in ((0.5, [10, 10, 10]), (0.75, [2, 4, 4]), (0.99, [0, 0, 3]), (0.5, [0, 0, 0]))
    ]
    assert evaluated(*quantiles) == pytest.approx([0.005, 0.055, 0.1, None], nan_ok=True)
    [since, anew] = evaluated(
        f"between({answer(100, 5, 5, 5, pushes=7)}, {answer(102, 5, 9, 9, failed=2, pushes=11)})",
        f"between({answer(100, 5, 5, 5)}, {answer(102, 1, 1, 2)})",
    )
    [row] = since["calls"]["rows"]
    assert (row["rate"], row["failed"], row["p50"]) == (2, 1, pytest.approx(0.055))
    assert since["calls"]["total"]["rate"] == 2
    assert since["perSecond"]["whispr_ws_pushes_total"] == 2
    assert (since["routes"]["total"]["rate"], since["routes"]["total"]["p99"]) == (0, None)
    assert anew["calls"]["total"]["rate"] == 1
