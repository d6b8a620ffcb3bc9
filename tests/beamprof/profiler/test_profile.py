"""`profile()`: what a sweep's table holds, what it does without, and what is refused before it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeBackend, offer, request

from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import BeamError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.testing.nvml import FakeGpu, FakeNvml
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.errors import BackendError, ModelShapeError, OutputError, SweepError
from beamprof.profiler import prepare as prepare_module
from beamprof.profiler.journal import journal_path
from beamprof.profiler.profile import ProfileRequest, profile
from beamprof.profiler.spec import resolve_spec


def test_every_cell_becomes_one_row_with_both_trials_behind_it(output: Path) -> None:
    backend = FakeBackend()
    result = profile(request(output), choice=offer(backend))
    plan = result.prepared.plan
    assert result.table is not None
    assert (result.measured, result.resumed, result.remaining) == (plan.trial_count, 0, 0)
    table = PerfTable.load(output, model="llama3-8b", tp=1, pp=1, device="fake")
    rows = table.rows(RowKind.FORWARD)
    assert table.clocks_mhz == (510, 1410)
    assert len(rows["latency_ms"]) == 2 * len(plan.steps)
    tokens = rows["prefill_tokens"] + rows["decode_requests"]
    # The trials are 1 % to both sides, so their median is the formula itself.
    np.testing.assert_allclose(rows["latency_ms"], (1 + tokens / 50) * 1410 / rows["clock_mhz"])
    np.testing.assert_array_equal(rows["passes"], 20)
    scatter = 1.96 * 0.01 * np.sqrt(2) / np.sqrt(2)
    np.testing.assert_allclose(rows["latency_ci_ms"] / rows["latency_ms"], scatter, rtol=0.2)
    assert sorted(set(table.rows(RowKind.IDLE)["clock_mhz"])) == [510, 1410]
    assert (table.metadata["driver"], table.stage_layers) == ("1.0", 32)
    assert backend.closed == 1


def test_an_existing_output_is_refused_before_anything_is_measured(output: Path) -> None:
    output.write_text("precious")
    backend = FakeBackend()
    with pytest.raises(OutputError, match="exists") as caught:
        profile(request(output), choice=offer(backend))
    assert "--force" in str(caught.value.hint)
    assert (output.read_text(), backend.ran, journal_path(output).exists()) == (
        "precious", [], False
    )  # fmt: skip
    assert profile(request(output, force=True), choice=offer(backend)).table is not None


def test_an_output_in_no_directory_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    backend = FakeBackend()
    with pytest.raises(OutputError, match="no directory"):
        profile(request(tmp_path / "none" / "table.parquet"), choice=offer(backend))
    assert backend.ran == []


def test_one_cell_that_cannot_run_does_not_cost_the_others(output: Path) -> None:
    backend = FakeBackend()
    backend.refuses = lambda cell: cell.decode_requests == 64 and cell.clock_mhz == 510
    result = profile(request(output), choice=offer(backend))
    assert result.table is not None
    assert result.remaining == len(result.refused) > 0
    assert "do not fit into memory" in result.refused[0]
    rows = result.table.rows(RowKind.FORWARD)
    assert not ((rows["decode_requests"] == 64) & (rows["clock_mhz"] == 510)).any()


def test_a_backend_that_refuses_everything_is_an_error(output: Path) -> None:
    backend = FakeBackend()
    backend.refuses = lambda cell: True
    with pytest.raises(BackendError, match="do not fit"):
        profile(request(output), choice=offer(backend))
    assert backend.closed == 1


def test_a_bug_in_the_backend_still_closes_it(output: Path) -> None:
    backend = FakeBackend()

    def broken(cell: Cell) -> bool:
        raise ZeroDivisionError(f"{cell}")

    backend.refuses = broken
    with pytest.raises(ZeroDivisionError):
        profile(request(output), choice=offer(backend))
    assert backend.closed == 1


def test_current_clocks_carry_the_clock_that_was_reached(output: Path) -> None:
    result = profile(request(output, clocks="current"), choice=offer(FakeBackend()))
    assert result.table is not None
    assert result.table.clocks_mhz == (1410,)
    assert set(result.table.rows(RowKind.FORWARD)["clock_reached_mhz"]) == {1395.0}


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"model": None}, SweepError, "no model was named"),
        ({"model": "llama9"}, ModelShapeError, "unknown model"),
        ({"tp": 3}, ModelShapeError, "--tp 3 does not divide"),
        ({"pp": 500}, ModelShapeError, "--pp 500 is over"),
        ({"clocks": "511"}, SweepError, "no clock of 511 MHz"),
        ({"max_context": 100_000}, SweepError, "over the 8192 tokens"),
        ({"budget": "1s"}, SweepError, "fits into 1 s"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    output: Path, flags: dict[str, object], error: type[BeamError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        profile(request(output, **flags), choice=offer(FakeBackend()))
    assert caught.value.hint
    assert list(output.parent.iterdir()) == []


def test_modelling_keeps_every_cell_while_a_real_device_keeps_its_budget(tmp_path: Path) -> None:
    flags = {"model": "qwen3-32b", "tp": 2, "pp": 2, "backend": "modelled", "device": "h200-sxm"}
    prepared = prepare_module.prepare(ProfileRequest(resolve_spec(flags), tmp_path / "t.parquet"))
    assert prepared.measured_plan.duration_s <= 15 * 60
    assert len(prepared.plan.steps) >= len(prepared.measured_plan.steps)
    assert (prepared.plan.share, prepared.plan.rounds) == (1.0, 1)
    everything = prepare_module.prepare(
        ProfileRequest(resolve_spec({**flags, "clocks": "all"}), tmp_path / "t.parquet")
    )
    assert len(everything.plan.clocks_mhz) > 100


def test_a_following_rank_keeps_no_journal_and_writes_no_table(output: Path) -> None:
    class Rank(FakeBackend):
        follows = True
        followed = False

        def follow(self) -> None:
            self.followed = True

    rank = Rank()
    result = profile(request(output), choice=offer(rank))
    assert (rank.followed, rank.ran, rank.closed) == (True, [], 1)
    assert (result.follower, list(output.parent.iterdir())) == (True, [])


def test_the_default_name_tells_model_layout_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = resolve_spec({"model": "llama3-70b", "tp": 2, "pp": 4, "backend": "modelled"})
    result = profile(ProfileRequest(spec))
    assert result.prepared.output == Path("llama3-70b-tp2-pp4-a100-sxm4-80gb.parquet")
    assert result.prepared.output.exists()


def test_a_model_too_large_for_a_gpu_is_modelled_with_a_note(output: Path) -> None:
    flags = {"model": "llama3-70b", "backend": "modelled"}
    prepared = prepare_module.prepare(ProfileRequest(resolve_spec(flags), output))
    assert any("137 GB of weights" in note for note in prepared.notes)


class Locking(FakeBackend):
    """A fake backend that locks a GPU for each cell, as the real ones do."""

    def __init__(self, nvml: FakeNvml) -> None:
        super().__init__()
        self.nvml = nvml

    def open(self) -> Mapping[str, str]:
        self.lock = ClockLock(NvmlGpus([0], nvml=self.nvml), settle_s=0.02)
        return super().open()

    def run(self, cell: Cell) -> Measurement:
        self.lock.set(cell.clock_mhz or 510)
        return super().run(cell)

    def close(self) -> None:
        self.lock.close()
        super().close()


def held_below(most_mhz: int) -> FakeNvml:
    """A GPU whose clock stays below what it is locked at, and that gives no reason."""

    class Low(FakeNvml):
        __slots__ = ()

        def nvmlDeviceSetGpuLockedClocks(  # noqa: N802
            self, handle: FakeGpu, minGpuClockMHz: int, maxGpuClockMHz: int
        ) -> None:
            super().nvmlDeviceSetGpuLockedClocks(handle, minGpuClockMHz, maxGpuClockMHz)
            handle.sm_clock_mhz = min(maxGpuClockMHz, most_mhz)

    return Low(gpus=[FakeGpu("GPU-0")])


@pytest.mark.parametrize(("most_mhz", "clocks"), [(1396, {510, 1410}), (1395, {510})])
def test_a_clock_that_is_not_reached_costs_its_cells_and_not_the_sweep(
    output: Path, most_mhz: int, clocks: set[int]
) -> None:
    """A window's mean may be 1 % off; 1395 for 1410, one step, is a little more."""
    backend = Locking(held_below(most_mhz))
    result = profile(request(output), choice=offer(backend))
    assert result.table is not None
    assert set(result.table.columns["clock_mhz"].tolist()) == clocks
    assert bool(result.refused) == (clocks == {510})
    assert all("1410 MHz" in words for words in result.refused)
    assert backend.nvml.locked == [None]
