"""A small table that every test of the controller and its commands can afford: 5 clocks."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from paper_table import paper_table

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits

# Tests check behaviour; how fast examples run depends on who else uses the machine.
settings.register_profile("beam", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beam")

# Their asserts speak, wherever they are imported from.
pytest.register_assert_rewrite("fault_bench", "guard_bench")

CLOCKS_MHZ = (510, 735, 960, 1185, 1410)
CELLS = (
    [(tokens, 0, 0, 0) for tokens in (8, 32, 64, 128, 256, 512)]
    + [(0, 0, b, b * context) for b in (1, 8, 32, 64, 128) for context in (64, 512, 2048)]
    + [(chunk, context, 0, 0) for chunk in (64, 256) for context in (512, 4096)]
)


def _latency_ms(cell: tuple[int, int, int, int], clock_mhz: float) -> float:
    """Weights to be read, then work by the token; an A100's order of magnitude."""
    c, k, b, s = cell
    work_ms = 8.0 + 0.05 * (c + b) + 1e-6 * c * k + 2e-6 * s
    return work_ms * (0.5 + 0.5 * 1410 / clock_mhz)


def _energy_j(cell: tuple[int, int, int, int], clock_mhz: float) -> float:
    power_w = 180.0 + 420.0 * (clock_mhz / 1410) ** 2.5
    return power_w * _latency_ms(cell, clock_mhz) / 1e3


@pytest.fixture
def mortal_children() -> Iterator[None]:
    """Children die of a hangup and of Ctrl-C, also where the tests run under nohup or by ``&``."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture(scope="session")
def small_table() -> PerfTable:
    """One stage of four, two GPUs each."""
    return paper_table(CELLS, CLOCKS_MHZ, _latency_ms, _energy_j)


@pytest.fixture(scope="session")
def small_cost(small_table: PerfTable) -> StepCost:
    """Its step costs."""
    return StepCost.from_table(small_table)


@pytest.fixture
def limits() -> EngineLimits:
    """The engine for it."""
    return EngineLimits(pp=4, max_num_seqs=64, max_model_len=8192, host_gap_ms=2.0)
