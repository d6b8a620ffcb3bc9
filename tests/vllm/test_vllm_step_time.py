"""When a step begins, as the controller is told: host time between two steps belongs to it."""

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from beam_runtime.control.orders import Orders  # noqa: E402
from beam_runtime.engines.vllm import scheduler as adapter  # noqa: E402
from beam_runtime.types import Knobs, Rules  # noqa: E402

HOST_MS, PASS_MS = 3.0, 10.0


class Times:
    """Stands in for the controller: steers with ``knobs``, keeps when steps began and came back."""

    def __init__(self, knobs: Knobs) -> None:
        self.orders = Orders(knobs, Rules(), steering=True, why="a test's")
        self.issued_ms: list[float] = []
        self.finished_ms: list[float] = []

    def step_issued(self, *_: Any, at_ms: float) -> None:
        self.issued_ms.append(at_ms)

    def step_finished(self, *, at_ms: float) -> None:
        self.finished_ms.append(at_ms)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


@pytest.fixture
def engine(
    rig: Any, tiny_table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[float]]:
    """A steered scheduler without a model, and its clock."""
    tiny_table(tmp_path / "table.parquet", pp=1)
    (tmp_path / "beam.toml").write_text('table = "table.parquet"\npolicy = "steer"\n')
    monkeypatch.setenv("BEAM_CONFIG", str(tmp_path / "beam.toml"))
    now_ms = [1000.0]
    monkeypatch.setattr(adapter, "_monotonic_ms", lambda: now_ms[0])
    made = rig(make=adapter.make_scheduler)
    deadline_s = time.monotonic() + 180.0  # where the composer is compiled first
    while made.scheduler.beam._planner._compiled is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert made.scheduler.beam._planner._compiled is not None
    return made, now_ms


def steps(engine: Any, now_ms: list[float], count: int) -> None:
    """Host time, pass, host time, pass ..."""
    for _ in range(count):
        now_ms[0] += HOST_MS
        output, sampled = engine.schedule()
        now_ms[0] += PASS_MS
        engine.update(output, sampled)


def test_a_step_begins_when_the_one_before_is_back(engine: tuple[Any, list[float]]) -> None:
    rig, now_ms = engine
    times = Times(Knobs(1200, 512))
    rig.scheduler.beam.connect(times)
    rig.add("r0", [1] * 20, 6)
    steps(rig, now_ms, 6)
    # The first has waited for nothing: it begins with vLLM's schedule().
    assert times.issued_ms[0] == 1000.0 + HOST_MS
    assert times.issued_ms[1:] == times.finished_ms[:-1]


def test_an_idle_engine_s_wait_belongs_to_no_step(engine: tuple[Any, list[float]]) -> None:
    rig, now_ms = engine
    times = Times(Knobs(1200, 512))
    rig.scheduler.beam.connect(times)
    rig.add("r0", [1] * 20, 2)
    steps(rig, now_ms, 2)
    now_ms[0] += 500.0
    rig.add("r1", [1] * 20, 2)
    steps(rig, now_ms, 2)
    assert times.issued_ms[2] == times.finished_ms[1] + 500.0 + HOST_MS


def test_a_hold_belongs_to_no_step(engine: tuple[Any, list[float]]) -> None:
    rig, now_ms = engine
    times = Times(Knobs(1200, 512, 1, pace_ms=100.0))
    beam = rig.scheduler.beam
    beam.connect(times)
    rig.add("r0", [1] * 20, 6)
    steps(rig, now_ms, 1)
    held_ms = 0.0
    while beam.gate(False).value != "go":
        now_ms[0] += 1.0
        held_ms += 1.0
    assert held_ms > 10.0, "a paced decode must be held for this test to say anything"
    steps(rig, now_ms, 1)
    assert times.issued_ms[1] == times.finished_ms[0] + held_ms + HOST_MS
