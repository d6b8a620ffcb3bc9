"""The search, compiled once for all who wait for it."""

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits


@pytest.fixture
def compiled(small_cost: StepCost, limits: EngineLimits) -> None:
    """Fills numba's cache: where it is empty, compiling would use up a test's patience."""
    Controller(small_cost, limits, threads=False)
