"""What every test of a fault starts from."""

import pytest

pytest.register_assert_rewrite("fault_bench")

from fault_bench import Bench  # noqa: E402

from beam_runtime.cost import StepCost  # noqa: E402
from beam_runtime.types import EngineLimits  # noqa: E402


@pytest.fixture
def bench(small_cost: StepCost, limits: EngineLimits) -> Bench:
    return Bench(small_cost, limits)
