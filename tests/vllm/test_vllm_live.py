"""BEAM in a real vLLM engine on this CPU: behaviour is asserted, times are not.

Engines run in processes of their own, one at a time, each bounded and killed with its children.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(sys.platform != "linux", reason="vLLM's CPU engine runs on Linux"),
]

LIVE = Path(__file__).parent / "live"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}


def run_script(name: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """The REPORT of a script; its whole process group is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, str(LIVE / name), *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=550)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    reports = [line for line in output.splitlines() if line.startswith("REPORT ")]
    assert reports, output[-4000:]
    report: dict[str, Any] = json.loads(reports[-1].removeprefix("REPORT "))
    return report


@pytest.fixture(scope="module")
def steering(tmp_path_factory: pytest.TempPathFactory, tiny_table: Any) -> Any:
    """A configuration that steers with a table for ``pp``; slow: its passes, times 2 ms."""

    def configure(pp: int, slow: float = 1.0) -> Path:
        folder = tmp_path_factory.mktemp("steering")
        tiny_table(folder / "table.parquet", pp=pp, slow=slow)
        (folder / "beam.toml").write_text(
            'table = "table.parquet"\npolicy = "steer"\nlog = "decisions.jsonl"\n'
        )
        return folder

    return configure


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> dict[str, Any]:
    """The engine without BEAM."""
    report = run_script("engine.py", tiny_llama, 1, "plain")
    first: dict[str, Any] = report["runs"][0]
    return first


def records(folder: Path) -> list[dict[str, Any]]:
    from beam_runtime.control.decision_log import read_log

    return list(read_log(folder / "decisions.jsonl"))


@pytest.fixture(scope="module", params=[1, 2], ids=["pp1", "pp2"])
def steered(request: Any, tiny_llama: Path, steering: Any) -> tuple[int, dict[str, Any], Path]:
    # At pp 1 with a table for a machine twenty times as fast: BEAM must notice.
    folder = steering(request.param, slow=0.05 if request.param == 1 else 1.0)
    report = run_script(
        "engine.py", tiny_llama, request.param, "beam", BEAM_CONFIG=str(folder / "beam.toml")
    )
    return request.param, report, folder


def test_tokens_are_the_same_with_and_without_beam(
    plain: dict[str, Any], steered: tuple[int, dict[str, Any], Path]
) -> None:
    _, report, _ = steered
    assert report["failure"] == ""
    for run in report["runs"]:
        assert run["tokens"] == plain["tokens"], run["name"]


def test_knobs_take_effect(steered: tuple[int, dict[str, Any], Path]) -> None:
    pp, report, _ = steered
    runs = {run["name"]: run for run in report["runs"]}
    assert max(sum(batch) for batch in runs["chunk 64"]["batches"]) <= 64
    assert max(sum(batch) for batch in runs["microbatches"]["batches"]) > 64
    assert all(run["deepest"] <= pp for run in report["runs"])
    if pp == 2:
        decode_only = [b for b in runs["microbatches"]["batches"] if max(b) == 1]
        assert max(map(len, decode_only)) <= 8  # 16 seats at most, split in two


def test_every_event_is_told(steered: tuple[int, dict[str, Any], Path]) -> None:
    _, report, _ = steered
    for run in report["runs"][1:]:
        told = run["told"]
        assert told["arrival"] == 14 + 3
        assert told["completion"] == 14 + 2
        assert told["abort"] == 1
        assert told["step_issued"] == told["step_finished"] > len(run["batches"])
        assert told["preemption"] > 0, "30 KV blocks are too few for this load"
        assert run["aborted"] == {"abort-0": 20, "abort-2": 20}


def test_the_controller_decides_and_keeps_a_log(steered: tuple[int, dict[str, Any], Path]) -> None:
    _, report, folder = steered
    assert report["status"]["decisions"] > 0
    kinds = [record["kind"] for record in records(folder)]
    assert kinds[0] == "start"
    assert kinds[-1] == "stop"
    assert "decision" in kinds


def test_a_table_for_a_much_faster_machine_ends_in_vllm_s_own_way(
    steered: tuple[int, dict[str, Any], Path],
) -> None:
    pp, _, folder = steered
    if pp > 1:
        pytest.skip("its table is not that wrong")
    fallen = [r for r in records(folder) if r["kind"] == "steering" and not r["steering"]]
    assert fallen
    assert "too far from the table" in fallen[0]["reason"]


def test_observe_mode_runs_the_very_same_steps(
    plain: dict[str, Any], tiny_llama: Path, steering: Any
) -> None:
    folder = steering(1)
    report = run_script(
        "engine.py", tiny_llama, 1, "beam",
        BEAM_CONFIG=str(folder / "beam.toml"), BEAM_POLICY="observe",
    )  # fmt: skip
    (run,) = report["runs"]
    assert run["batches"] == plain["batches"]
    assert run["tokens"] == plain["tokens"]
    assert "decision" in [record["kind"] for record in records(folder)]


def test_async_engine_in_its_own_process(tiny_llama: Path, steering: Any) -> None:
    folder = steering(1)
    report = run_script("async_engine.py", tiny_llama, BEAM_CONFIG=str(folder / "beam.toml"))
    assert report["got"][:6] == [12] * 6
    assert report["status"]["requests"] == 0
    tally = report["status"]["tally"]
    counted = tally["classes"]["default"]
    assert (counted["completions"], tally["aborts"]) == (6, 1)
    assert counted["late_first_tokens"] == 0, "5 s were promised, by extra_args"
    assert report["status"]["reason"] == "" or "table" in report["status"]["reason"]
    assert report["changed"]["policy"] == "observe"
    assert report["changed"]["slo"] == {"ttft_ms": 1000.0, "tbt_ms": 150.0}
    assert report["again"] == 5
    kinds = [record["kind"] for record in records(folder)]
    # Written when SIGTERM came; what was on its way then may follow, and a second one after it
    # unless vLLM kills a teardown that takes it more than five seconds.
    assert "stop" in kinds
    assert "decision" in kinds
