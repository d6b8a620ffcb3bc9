"""The arithmetic of one step at a time is StepCost's and Pipeline's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pipeline import ClockPlan, Pipeline

from beam_runtime.emulator.passes import Passes
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, StepShape

RNG = np.random.default_rng(0)
COST = StepCost(
    clocks_mhz=np.array([600, 900, 1200]),
    edges_tokens=np.array([1.0, 64.0, 65.0, 256.0, 512.0]),
    linear_latency_ms=RNG.uniform(1, 9, (3, 5)),
    linear_energy_j=RNG.uniform(1, 9, (3, 5)),
    attention_latency_ms=RNG.uniform(0, 1e-3, (3, 6)),
    attention_energy_j=RNG.uniform(0, 1e-3, (3, 6)),
    idle_power_w=np.full(3, 60.0),
    fit=None,  # type: ignore[arg-type]
)
STEPS = st.builds(
    StepShape,
    prefill_tokens=st.integers(0, 450),
    prefill_context_tokens=st.integers(0, 4000),
    decode_requests=st.integers(0, 60),
    decode_context_tokens=st.integers(0, 100_000),
)


@settings(max_examples=200)
@given(
    STEPS,
    st.sampled_from((600, 900, 1200, 1000)),
    st.lists(st.floats(0.0, 50.0), min_size=1, max_size=4),
)
def test_equal_to_pipeline(step: StepShape, clock_mhz: int, free_ms: list[float]) -> None:
    limits = EngineLimits(pp=len(free_ms), max_batched_tokens=512, host_gap_ms=0.7, transfer_ms=0.3)
    correction = Correction(1.2, 0.9, prefill_by_size=(1.1, 0.95) * 12, decode_by_size=(0.8, 1.3))
    passes = Passes(COST, limits)
    pipeline = Pipeline(COST, limits, correction, ClockPlan(clock_mhz, clock_mhz, -1e9))
    route = pipeline.travel(step, 10.0, tuple(free_ms))
    pass_ms = passes.pass_ms(step, clock_mhz, correction)
    assert pass_ms == pytest.approx(route[0].busy_ms + 0.7)
    assert passes.energy_j(step, clock_mhz) == pytest.approx(route[0].energy_j)
    assert passes.finish_ms(pass_ms, 10.0, tuple(free_ms)) == pytest.approx(route[-1].end_ms)
    if step.decode_requests and not step.prefill_tokens:
        step = replace(step, prefill_context_tokens=0)
        both = passes.decodes(
            step.decode_requests, step.decode_context_tokens, clock_mhz, correction
        )
        assert both == pytest.approx(
            (passes.pass_ms(step, clock_mhz, correction), passes.energy_j(step, clock_mhz))
        )
