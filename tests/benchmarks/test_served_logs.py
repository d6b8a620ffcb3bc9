"""A log that the replay itself made is found again, and real ones are near.

The real ones lie outside the repository; where they are absent their test skips.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import served_logs
from served_logs import TARGETS, Constants, Server, errors, judge

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "served-rtxpro6000"
DENSE, MOE = REAL / "Llama-3.1-8B", REAL / "Qwen3-30B-A3B-Instruct-2507"
needs_data = pytest.mark.skipif(not DENSE.is_dir(), reason=f"no {REAL}")


def test_errors_are_of_the_means() -> None:
    rows = np.array([[110.0, 9.0, 100.0, 10.0], [330.0, 9.0, 300.0, 10.0]])
    found = errors(rows)
    assert found.ttft == pytest.approx(0.1)
    assert found.tpot == pytest.approx(-0.1)
    assert (found.requests, found.observed_ttft_ms) == (2, 200.0)


@needs_data
def test_a_gap_makes_every_token_later() -> None:
    server = Server(DENSE)
    alone, slower = (server.replayed(Constants(gap)) for gap in (0.0, 2.0))
    assert (slower[:, 2:] == alone[:, 2:]).all(), "what was observed stays"
    assert (slower[:, 1] > alone[:, 1]).all()
    assert slower[:, 0].mean() > alone[:, 0].mean()


@needs_data
def test_constants_that_made_a_log_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(DENSE)
    made = server.replayed(Constants(3.0))
    real = server.replayed

    def as_if_observed(c: Constants) -> np.ndarray:
        return np.column_stack([real(c)[:, :2], made[:, :2]])

    monkeypatch.setattr(server, "replayed", as_if_observed)
    assert served_logs.fit(server).gap_ms == pytest.approx(3.0, abs=0.2)


@needs_data
def test_the_dense_log_is_met_where_nothing_was_fitted() -> None:
    """In its second half; operators alone hold no gap between steps, and are early by that."""
    judged = judge(DENSE)
    assert abs(judged.second.ttft) <= TARGETS["dense"]["ttft"]
    assert abs(judged.second.tpot) <= TARGETS["dense"]["tpot"]
    assert -0.05 < judged.operators.ttft < 0.0
    assert -0.03 < judged.operators.tpot < 0.0


@needs_data
def test_engines_that_share_experts_are_so_many_servers() -> None:
    server = Server(MOE)
    assert (server.engines, server.kind) == (2, "moe")
    counts = [trace.requests for trace in server.traces]
    log = (MOE / "vllm_requests.jsonl").read_text().splitlines()
    assert sum(counts) == len([json.loads(line) for line in log])
    assert abs(counts[0] - counts[1]) <= 1
