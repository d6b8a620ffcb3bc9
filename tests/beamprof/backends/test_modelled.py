"""The modelled backend behind the protocol, and its error against the published tables."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from beam_runtime.clocks.base import POWER_CAP
from beam_runtime.errors import ClockUnavailableError
from beam_runtime.table.schema import METADATA_KEYS, RowKind
from beam_runtime.types import Source
from beamprof.backends.base import MeasureBackend
from beamprof.backends.cell import Cell
from beamprof.backends.modelled import ModelledBackend
from beamprof.devices.device import resolve_device
from beamprof.errors import BackendError
from beamprof.models.registry import registry

ROOT = Path(__file__).parents[3]
MEASURED = ROOT.parent / "shared" / "data" / "measured-a100"


def backend(model: str = "llama3-70b", tp: int = 2, pp: int = 4) -> ModelledBackend:
    shape = registry()[model]
    return ModelledBackend(shape, shape.shard(tp, pp), resolve_device("a100-sxm4-80gb"))


def test_is_a_measuring_backend_with_known_metadata() -> None:
    measuring: MeasureBackend = backend()
    metadata = measuring.open()
    assert metadata.keys() <= METADATA_KEYS.keys()
    assert (metadata["device"], metadata["energy_source"]) == ("a100-sxm4-80gb", "modelled")
    assert metadata["allreduce"] == "device file a100-sxm4-80gb"
    assert json.loads(metadata["device_clocks_mhz"])[-1] == 1410
    assert backend("llama3-8b", 1, 1).open()["allreduce"] == "none (tp 1)"
    measuring.close()
    measuring.close()


def test_a_row_is_modelled_reproducible_and_without_noise() -> None:
    cell = Cell(RowKind.FORWARD, 1005, 68, 0, 60, 40000)
    first, second = backend().run(cell), backend().run(cell)
    assert first == second
    assert (first.source, first.passes) == (Source.MODELLED, 1)
    assert first.latency_ci_ms is first.energy_ci_j is first.temperature_c is None
    assert float(f"{first.latency_ms:.7g}") == first.latency_ms
    assert float(f"{first.energy_j:.7g}") == first.energy_j


def test_the_power_cap_shows_as_a_lower_clock_and_a_reason() -> None:
    shape = registry()["qwen2.5-14b"]
    pcie = ModelledBackend(shape, shape.shard(1, 2), resolve_device("a100-pcie-80gb"))  # 300 W
    hot = pcie.run(Cell(RowKind.FORWARD, 1410, 2048))
    cool = pcie.run(Cell(RowKind.FORWARD, 810, 2048))
    assert hot.clock_reached_mhz is not None
    assert hot.clock_reached_mhz < 1410
    assert hot.energy_j / hot.latency_ms * 1e3 == pytest.approx(300, rel=0.01)
    assert hot.throttle == POWER_CAP
    assert (cool.clock_reached_mhz, cool.throttle) == (810, "")


def test_idle_is_one_second_of_all_gpus_with_the_clock_locked() -> None:
    # a100-dvfs-spec: 81 W at 510 MHz, 86 at 960, 109 at 1410, one waiting GPU.
    for clock_mhz, watts in ((510, 81), (960, 86), (1410, 109)):
        idle = backend().run(Cell(RowKind.IDLE, clock_mhz))
        assert idle.latency_ms == 1000
        assert idle.energy_j == pytest.approx(2 * watts, rel=0.06)


def test_clock_zero_means_the_highest() -> None:
    left_alone = backend().run(Cell(RowKind.FORWARD, 0, 1))
    assert left_alone == backend().run(Cell(RowKind.FORWARD, 1410, 1))


def test_refuses_what_it_cannot_run() -> None:
    with pytest.raises(ClockUnavailableError, match="1000"):
        backend().run(Cell(RowKind.FORWARD, 1000, 1))
    with pytest.raises(BackendError, match="at least one new token"):
        backend().run(Cell(RowKind.FORWARD, 1005))


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = ROOT / "benchmarks" / "modelled.py"
    spec = importlib.util.spec_from_file_location("benchmark_modelled", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not MEASURED.is_dir(), reason="the published A100 tables are not at hand")
@pytest.mark.parametrize(
    ("label", "latency", "energy"),
    [("Llama-3.3-70B", 0.05, 0.06), ("Qwen2.5-32B", 0.06, 0.07), ("Qwen2.5-14B", 0.06, 0.07)],
)
def test_error_against_the_published_tables(
    benchmark: ModuleType, label: str, latency: float, energy: float
) -> None:
    (file,) = MEASURED.glob(f"dvfs_profile_*{label}*.csv")
    compared = benchmark.compare(file)
    assert compared.error.latency_mape <= latency
    assert compared.error.energy_mape <= energy


@pytest.mark.skipif(not MEASURED.is_dir(), reason="the published A100 tables are not at hand")
def test_the_cheapest_clock_is_near_the_measured_one(benchmark: ModuleType) -> None:
    """In nine of ten cells of all tables; they scatter by the energy's noise, 14B's the most."""
    near = [benchmark.compare(file).near_smoothed for file in MEASURED.glob("dvfs_profile_*.csv")]
    assert len(near) == 3
    assert sum(near) / len(near) >= 0.9
