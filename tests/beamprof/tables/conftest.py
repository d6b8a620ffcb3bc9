"""Tables with known physics, made of StepCost's own form, so that a planted fault stands alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from beam_runtime.table.perf_table import PerfTable
from beamprof.models.registry import registry
from beamprof.tables.grid import CellGrid
from beamprof.tables.table_file import seal_table

CLOCKS_MHZ = (510, 630, 735, 840, 930, 1005, 1110, 1260, 1410)
TOKENS = (1, 8, 16, 32, 64, 128, 256)
Columns = dict[str, NDArray[Any]]
Rows = list[dict[str, Any]]


def forward_row(
    clock_mhz: int, chunk: int, context: int, decodes: int, decode_context: int
) -> dict[str, Any]:
    """Milliseconds and joules of two GPUs: linear in tokens, affine in attention's features."""
    pairs = chunk * (context + (chunk + 1) / 2)
    period = 1000 / clock_mhz
    work = 4 + 0.05 * (chunk + decodes) + 5e-5 * decode_context + 1e-6 * pairs + 2e-4 * context
    latency_ms = work * (0.3 + 0.7 * period)
    power_w = 200 + 250 * (clock_mhz / 1410) ** 3
    return {
        "kind": "forward",
        "clock_mhz": clock_mhz,
        "prefill_tokens": chunk,
        "prefill_context_tokens": context,
        "decode_requests": decodes,
        "decode_context_tokens": decode_context,
        "latency_ms": latency_ms,
        "energy_j": power_w * latency_ms / 1e3 * 2,
        "clock_reached_mhz": float(clock_mhz),
        "passes": 50,
        "source": "measured",
    }


def sound_rows(clocks_mhz: tuple[int, ...] = CLOCKS_MHZ) -> Rows:
    """Decode and prefill cells with contexts, two mixed cells, idle power."""
    cells = [(0, 0, n, n * k) for n in TOKENS for k in (512, 2048)]
    cells += [(n, k, 0, 0) for n in TOKENS[3:] for k in (0, 1024, 4096)]
    cells += [(100, 0, 32, 32_768), (200, 2048, 40, 20_480)]
    rows = [forward_row(clock, *cell) for clock in clocks_mhz for cell in cells]
    return rows + [
        {
            **forward_row(clock, 0, 0, 0, 0),
            "kind": "idle",
            "latency_ms": 1000.0,
            "energy_j": 160.0 + clock / 100,
        }
        for clock in clocks_mhz
    ]


def sealed(rows: Rows, **metadata: str) -> PerfTable:
    """Rows as a checked table of llama3-70b, tp 2, pp 4."""
    columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}
    shape = registry()["llama3-70b"]
    stated = {
        "model": "llama3-70b",
        "model_shape": shape.to_json(),
        "tp": "2",
        "pp": "4",
        "stage_layers": "20",
        "dtype": "bfloat16",
        "device": "a100-sxm4-80gb",
        "engine": "torch",
        "energy_source": "nvml counter",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return seal_table(columns, stated | metadata)


@pytest.fixture
def rows() -> Rows:
    return sound_rows()


@pytest.fixture
def seal() -> Callable[..., PerfTable]:
    return sealed


@pytest.fixture
def row_of() -> Callable[..., dict[str, Any]]:
    return forward_row


@pytest.fixture
def sound() -> PerfTable:
    return sealed(sound_rows())


@pytest.fixture(scope="session")
def sound_table() -> Callable[[], PerfTable]:
    """The same, as a function: hypothesis prints fixtures whole."""
    table = sealed(sound_rows())
    return lambda: table


@pytest.fixture(scope="session")
def sound_grid() -> Callable[[], CellGrid]:
    """Its cells by clocks, likewise."""
    grid = CellGrid.of(sealed(sound_rows()))
    return lambda: grid


@pytest.fixture(scope="session")
def measured_csvs() -> list[Path]:
    """The published A100 measurements, where the data folder stands beside the repository."""
    folder = Path(__file__).parents[4] / "shared" / "data" / "measured-a100"
    found = sorted(folder.glob("dvfs_profile_*_one.csv"))
    if not found:
        pytest.skip("needs ../shared/data/measured-a100 beside the repository")
    return found
