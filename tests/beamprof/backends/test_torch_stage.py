"""The torch backend where it can really run: on this CPU, and on a GPU where there is one."""

import dataclasses
from pathlib import Path

import pytest
from tiny_stage import QUICK, TINY, chunk, cpu_backend

from beam_runtime.table.schema import METADATA_KEYS, RowKind
from beam_runtime.types import Source
from beamprof.backends import measuring
from beamprof.backends.cell import Cell
from beamprof.backends.pass_timing import PassTimes
from beamprof.backends.sensors import cpu_sensors
from beamprof.backends.torch_stage import TorchBackend
from beamprof.errors import BackendError
from beamprof.models.registry import registry

IDLE = Cell(RowKind.IDLE, 0)


def test_a_cpu_measures_chunks_decodes_and_both(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    try:
        metadata = backend.open()
        assert set(metadata) <= set(METADATA_KEYS)
        assert metadata["energy_source"] == "assumed 65 W"
        assert metadata["allreduce"] == "none (tp 1)"
        assert metadata["engine"] == "torch"
        for cell in (
            chunk(),
            Cell(RowKind.FORWARD, 0, 8, 24),
            Cell(RowKind.FORWARD, 0, 0, 0, 5, 123),
            Cell(RowKind.FORWARD, 0, 8, 24, 5, 123),
        ):
            row = backend.run(cell)
            assert row.source is Source.MEASURED
            assert row.latency_ms > 0
            assert row.latency_ci_ms is not None
            assert row.passes >= 3
            assert row.energy_j > 0
            assert row.clock_reached_mhz is None
        idle = backend.run(IDLE)
        assert (idle.latency_ms, idle.energy_j) == (1000.0, 65.0)
    finally:
        backend.close()
        backend.close()


def test_assumed_energy_is_power_times_the_mean_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = cpu_backend(tmp_path, tp=2)
    metadata = backend.open()
    assert metadata["allreduce"] == "left out: no device file"
    told = PassTimes(median_ms=10.0, median_ci_ms=0.1, mean_ms=12.5, passes=4)
    monkeypatch.setattr(measuring, "time_passes", lambda *_, **__: told)
    row = backend.run(chunk())
    backend.close()
    assert row.latency_ms == 10.0
    assert row.energy_j == pytest.approx(65.0 * 0.0125 * 2)  # both devices of the stage


def test_rapl_is_read_where_it_can_be(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text("1000000000")
    (zone / "energy_uj").write_text("1")
    sensors = cpu_sensors(65.0, tmp_path)
    assert sensors.metadata["energy_source"] == "rapl"
    assert sensors.assumed_power_w is None
    assert sensors.counter is not None


def test_without_a_counter_the_power_must_be_stated(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path, assume_power_w=None)
    with pytest.raises(BackendError) as caught:
        backend.open()
    assert "--assume-power 65W" in str(caught.value.hint)


def test_a_cpu_has_no_clock_to_lock(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    backend.open()
    with pytest.raises(BackendError, match="cannot be locked"):
        backend.run(chunk(clock_mhz=1005))
    backend.close()


def test_a_pass_without_tokens_is_refused(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    backend.open()
    with pytest.raises(BackendError, match="one new token"):
        backend.run(Cell(RowKind.FORWARD, 0))
    backend.close()
    with pytest.raises(BackendError, match="not open"):
        backend.run(chunk())


def test_a_model_that_does_not_fit_says_what_it_needs(tmp_path: Path) -> None:
    giant = dataclasses.replace(registry()["llama3-70b"], name="giant", layers=8000)
    backend = cpu_backend(tmp_path, model=giant)
    with pytest.raises(BackendError, match=r"8000 layers of giant need \d+\.\d GB") as caught:
        backend.open()
    assert "--tp" in str(caught.value.hint)


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    backend = TorchBackend(TINY, TINY.shard(1, 1), place="cuda")
    with pytest.raises(BackendError, match="no GPU that PyTorch can use"):
        backend.open()


def test_estimates_follow_what_was_measured(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    assert backend.estimate_s(chunk()) == pytest.approx(QUICK.planned_s, abs=0.1)
    small, large = backend.estimate_s(chunk(64)), backend.estimate_s(chunk(65536))
    assert large > small
    backend._estimate.learn(chunk(64).shape, 10.0)
    assert backend.estimate_s(chunk(64)) == pytest.approx(60.0)
    assert backend.estimate_s(IDLE) == pytest.approx(QUICK.window_s)


def test_a_real_gpu_measures_at_its_current_clock() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    model = registry()["llama3-8b"]
    backend = TorchBackend(model, model.shard(1, 8), place="cuda")
    try:
        metadata = backend.open()
        assert metadata["energy_source"] == "nvml counter"
        short, long = backend.run(chunk(256)), backend.run(chunk(1024))
        decode = backend.run(Cell(RowKind.FORWARD, 0, 0, 0, 32, 32 * 1024))
        idle = backend.run(IDLE)
    finally:
        backend.close()
    for row in (short, long, decode):
        assert row.clock_reached_mhz is not None
        assert row.energy_j / row.latency_ms > idle.energy_j / idle.latency_ms
    assert long.energy_j > short.energy_j
