"""What every test of a fault starts from."""

import pytest
from fault_bench import Bench

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits


@pytest.fixture
def bench(small_cost: StepCost, limits: EngineLimits) -> Bench:
    return Bench(small_cost, limits)
