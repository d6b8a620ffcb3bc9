"""How predicted_actual judges: its arithmetic, on requests made by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import predicted_actual as benchmark
import pytest

TRACE = benchmark.TRACE


def request(
    ttft_ms: float, first_ms: float, gaps: list[float], told: list[float]
) -> dict[str, Any]:
    return {
        "ttft_ms": ttft_ms, "gaps_ms": gaps,
        "first": {"off": first_ms, "on": ttft_ms},
        "forecast_ms": {"off": told, "on": gaps},
    }  # fmt: skip


def test_errors_are_relative_and_what_was_not_told_is_counted() -> None:
    found = benchmark.errors([(110.0, 100.0), (80.0, 100.0), (math.inf, 50.0), (math.nan, 50.0)])
    assert found["mape"] == pytest.approx(0.15)
    assert found["bias"] == pytest.approx(-0.05)
    assert found["untold"] == 2


def test_a_load_is_judged_by_request_after_its_first_fifth() -> None:
    unjudged = request(1.0, 1000.0, [1.0], [1000.0])
    judged = request(100.0, 120.0, [10.0, 30.0], [30.0, 30.0])
    load = {
        "requests": [unjudged, *[judged] * 4], "busy": 0.5, "seconds": 9.0, "correction": {},
    }  # fmt: skip
    found = benchmark.judged(load)
    assert found["requests"] == 4
    assert found["off"]["ttft"]["mape"] == pytest.approx(0.2)
    assert found["off"]["tbt"]["mape"] == pytest.approx(0.5)  # 30 against a mean of 20
    assert found["on"]["ttft"]["mape"] == found["on"]["tbt"]["mape"] == 0.0
    assert found["tbt_ms"] == {"p50": 20.0, "p99": 20.0}


def test_a_gap_without_a_forecast_is_left_out_of_both_means() -> None:
    one = request(100.0, 100.0, [10.0, 90.0], [10.0, math.nan])
    found = benchmark.judged(
        {"requests": [one] * 5, "busy": 0.5, "seconds": 9.0, "correction": {}}
    )  # fmt: skip
    assert found["off"]["tbt"]["mape"] == 0.0


def test_poisson_arrivals_have_their_rate_and_lengths_fit_the_model() -> None:
    requests = benchmark.poisson(20.0, 200.0)
    assert len(requests) == pytest.approx(4000, rel=0.1)
    assert all(4 <= r.prompt_tokens <= benchmark.MOST_PROMPT for r in requests)
    assert all(2 <= r.output_tokens <= benchmark.MOST_OUTPUT for r in requests)
    arrivals = np.array([r.arrival_s for r in requests])
    assert np.diff(arrivals).std() == pytest.approx(1 / 20.0, rel=0.1)


@pytest.mark.skipif(not TRACE.exists(), reason="needs ../shared/data/traces")
def test_an_excerpt_keeps_its_trace_s_burstiness(tmp_path: Path) -> None:
    from beamprof.traces.importing import open_trace

    requests = benchmark.excerpt(TRACE, rate_rps=4.0, seconds=50.0)
    assert len(requests) == 200
    assert (requests[0].arrival_s, requests[-1].arrival_s) == (0.0, pytest.approx(50.0))
    ours = np.diff([r.arrival_s for r in requests])
    theirs = np.diff(open_trace(TRACE).arrival_s[:200])
    assert ours.std() / ours.mean() == pytest.approx(theirs.std() / theirs.mean())
    assert max(r.prompt_tokens + r.output_tokens for r in requests) <= 1024


def test_without_any_forecast_it_says_so_and_ends() -> None:
    with pytest.raises(SystemExit, match="no request had a forecast"):
        benchmark.errors([(math.nan, 1.0), (math.nan, 2.0)])
