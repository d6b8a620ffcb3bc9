"""`beam profile --backend vllm` on the real CPU engine: behaviour and bookkeeping, never times.

Every engine is a process of its own and takes ten seconds or more to start.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from beam_runtime.table.schema import RowKind  # noqa: E402
from beam_runtime.table.step_cost import StepCost  # noqa: E402
from beam_runtime.types import Source, StepShape  # noqa: E402
from beamprof.backends.base import Measurement  # noqa: E402
from beamprof.backends.cell import Cell  # noqa: E402
from beamprof.backends.pass_timing import TimingRules  # noqa: E402
from beamprof.backends.vllm_stage import VllmBackend  # noqa: E402
from beamprof.errors import BackendError  # noqa: E402
from beamprof.interrupt import Stop  # noqa: E402
from beamprof.models.registry import resolve_model  # noqa: E402
from beamprof.profiler.grid import at_clock  # noqa: E402
from beamprof.profiler.plan import Trial  # noqa: E402
from beamprof.profiler.profile import ProfileRequest, Unwatched, profile  # noqa: E402
from beamprof.profiler.spec import resolve_spec  # noqa: E402

CELLS = (
    StepShape(1),
    StepShape(64),
    StepShape(32, 200),
    StepShape(0, 0, 8, 8 * 300),
    StepShape(0, 0, 3, 3),
    StepShape(40, 64, 8, 8 * 100),
)
QUICK = TimingRules(
    window_s=0.05, longest_s=0.05, discard_s=0.0, warmup_s=0.0, least_passes=2
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def stage(tiny_llama: Path) -> Iterator[tuple[VllmBackend, dict[str, str]]]:
    """One of two stages, open: two engines, of two layers and of one."""
    model = resolve_model(str(tiny_llama))
    backend = VllmBackend(
        model, model.shard(1, 2), named=str(tiny_llama), steps=CELLS, place="cpu", device="cpu",
        rules=QUICK, assume_power_w=65.0,
    )  # fmt: skip
    try:
        yield backend, dict(backend.open())
    finally:
        backend.close()


def test_the_engine_is_named_and_its_host_gap_measured(
    stage: tuple[VllmBackend, dict[str, str]],
) -> None:
    import vllm

    _, metadata = stage
    assert (metadata["engine"], metadata["engine_version"]) == ("vllm", vllm.__version__)
    assert float(metadata["host_gap_ms"]) > 0.0
    assert metadata["energy_source"] == "assumed 65 W"
    assert metadata["device"] == "cpu"


@pytest.mark.parametrize("step", CELLS, ids=str)
def test_every_kind_of_cell_is_measured(
    stage: tuple[VllmBackend, dict[str, str]], step: StepShape
) -> None:
    backend, _ = stage
    row = backend.run(at_clock(step, 0))
    assert row.source is Source.MEASURED
    assert row.passes >= 2
    # The engine checks each step's tokens and contexts against the cell: see vllm_cells.fits.
    assert row.latency_ms > 0.0
    assert 0.0 < row.energy_j <= 65.0 * 100.0
    assert row.clock_reached_mhz is None, "a CPU's clock is not known"


def test_idle_is_the_stated_power(stage: tuple[VllmBackend, dict[str, str]]) -> None:
    backend, _ = stage
    idle = backend.run(Cell(RowKind.IDLE, 0))
    assert (idle.latency_ms, idle.energy_j) == (1000.0, 65.0)


def test_a_cell_that_does_not_fit_is_refused_and_the_next_is_not(
    stage: tuple[VllmBackend, dict[str, str]],
) -> None:
    backend, _ = stage
    with pytest.raises(BackendError, match="KV-cache blocks"):
        backend.run(at_clock(StepShape(0, 0, 8, 8 * 900_000), 0))
    with pytest.raises(BackendError, match="clock cannot be locked"):
        backend.run(at_clock(CELLS[0], 900))
    assert backend.run(at_clock(CELLS[0], 0)).passes >= 2


def test_an_engine_that_dies_is_told_of(stage: tuple[VllmBackend, dict[str, str]]) -> None:
    backend, _ = stage  # the last to use it
    child = backend._engines[1]._process
    assert child is not None
    os.killpg(child.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match="process has ended"):
        backend.run(at_clock(CELLS[0], 0))
    left = [engine._process for engine in backend._engines]
    backend.close()
    backend.close()
    for process in left:
        assert process is not None
        assert process.poll() is not None, "closed, and still there"


def test_a_context_called_cached_schedules_what_a_prefilled_one_does(tiny_llama: Path) -> None:
    options = {
        "model": str(tiny_llama), "layers": 2, "tp": 1, "dtype": "float32", "max_model_len": 512,
        "max_positions": 1024, "max_batched_tokens": 256, "max_seqs": 8, "clock": "wall",
        "more": {"enforce_eager": True, "block_size": 32},
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "live/profile_steps.py"), json.dumps(options)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True, text=True, timeout=400, check=True,
    )  # fmt: skip
    report = json.loads(ran.stdout.splitlines()[-1].removeprefix("REPORT "))
    chunk = [48, 96]  # tokens, context
    cached, prefilled = (
        [batch for batch in report[kind] if chunk in [one[:2] for one in batch]]
        for kind in ("cached", "prefilled")
    )
    assert len(cached) >= len(prefilled) >= 15
    # Decodes grow by one token from step to step of a cell, and by two from chunk to chunk of the
    # prompts that are prefilled: every second step has an equal, in tokens, contexts and KV blocks.
    equals = [batch for batch in cached if batch in prefilled]
    assert len(equals) >= len(cached) // 2
    for batch in cached:
        decodes = [one for one in batch if one[0] == 1]
        assert len(batch) == 1 + len(decodes) == 4
    print(f"cached {report['cached_ms']:.2f} ms, prefilled {report['prefilled_ms']:.2f} ms")


class StopsAfter(Unwatched):
    """Asks for a stop once so many trials are done."""

    def __init__(self, stop: Stop, trials: int) -> None:
        self._stop, self._left = stop, trials

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        self._left -= 1
        if self._left == 0:
            self._stop.signal_name = "SIGINT"


def test_an_interrupted_sweep_goes_on_and_its_table_serves(
    tiny_llama: Path, tmp_path: Path
) -> None:
    spec: dict[str, Any] = {
        "model": str(tiny_llama), "backend": "vllm", "device": "cpu", "clocks": "current",
        "max_tokens": 64, "max_decodes": 8, "max_context": 256, "cells_per_clock": 12,
        "trials": 1, "window": "50ms", "assume_power": "65W",
    }  # fmt: skip
    request = ProfileRequest(resolve_spec(spec), output=tmp_path / "table.parquet")
    stop = Stop()
    first = profile(request, watcher=StopsAfter(stop, 3), stop=stop)
    assert (first.measured, first.table) == (3, None)
    second = profile(request)
    assert second.resumed == 3
    assert second.refused == ()
    table = second.table
    assert table is not None
    assert table.metadata["engine"] == "vllm"
    assert float(table.metadata["host_gap_ms"]) > 0.0
    assert table.sources == (Source.MEASURED,)
    assert table.stage_layers == 4
    cost = StepCost.from_table(table)
    assert float(cost.latency_ms(StepShape(32, 0, 4, 400))[0]) > 0.0
