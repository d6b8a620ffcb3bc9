"""The emulator says what the plain reference says, on any state, knobs and table."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_emulator import forecast

from beam_runtime.emulator.forecast import Outcome, forecast_one
from beam_runtime.emulator.moment import Moment
from beam_runtime.emulator.setup import lasting_setting, make_setup, make_tables
from beam_runtime.emulator.state import empty_state
from beam_runtime.emulator.steady import PACE_SHARES
from beam_runtime.search.searcher import Searcher
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    SIZES,
    Correction,
    EngineLimits,
    Forecast,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepInFlight,
)

CLOCKS_MHZ = (510, 900, 1200, 1410)
LOOKAHEAD_MS = 250.0


def up_to(most: float, least: float = 0.0) -> st.SearchStrategy[float]:
    return st.floats(least, most, allow_nan=False, allow_infinity=False)


BY_SIZE = st.lists(up_to(2.0, 0.5), max_size=SIZES).map(tuple)


@st.composite
def costs(draw: st.DrawFn) -> StepCost:
    """Any table: stairs of any height, attention of any weight, faster at higher clocks."""
    edges = [*sorted(draw(st.sets(st.integers(2, 500), min_size=1, max_size=6))), 600]
    base = np.cumsum([draw(up_to(20.0, 0.5)) for _ in range(len(edges) + 1)])
    slow = np.sort([draw(up_to(3.0, 1.0)) for _ in CLOCKS_MHZ])[::-1]
    watts = np.array([draw(up_to(0.9, 0.1)) for _ in CLOCKS_MHZ])
    latency = slow[:, None] * base[None, :]
    attention = np.array([[draw(up_to(1.0)) for _ in range(6)] for _ in CLOCKS_MHZ])
    attention *= np.array([1e-5, 1e-3, 1e-4, 2e-2, 0.2, 0.2])
    return StepCost(
        clocks_mhz=np.array(CLOCKS_MHZ),
        edges_tokens=np.array([1.0, *edges]),
        linear_latency_ms=latency,
        linear_energy_j=latency * watts[:, None],
        attention_latency_ms=attention,
        attention_energy_j=attention * watts[:, None],
        idle_power_w=np.array([draw(up_to(300.0, 50.0)) for _ in CLOCKS_MHZ]),
        fit=cast(Any, None),
    )


@st.composite
def slos(draw: st.DrawFn) -> Slo:
    ttft_ms = draw(st.sampled_from((300.0, 1000.0, 5000.0)))
    kind = draw(st.sampled_from(("tbt_ms", "tbt_ms", "tpot_ms", "e2e_ms")))
    if kind == "e2e_ms":
        return Slo(ttft_ms, e2e_ms=draw(st.sampled_from((2000.0, 20000.0))), answer_tokens=100)
    return Slo(ttft_ms, **{kind: draw(st.sampled_from((60.0, 200.0)))})


@st.composite
def running_requests(draw: st.DrawFn, name: str) -> RequestState:
    prompt, arrival_ms = draw(st.integers(1, 900)), draw(up_to(0.0, -4000.0))
    kind = draw(st.sampled_from(("prefill", "last chunk in flight", "ready", "in flight")))
    if kind == "prefill":
        computed, generated = draw(st.integers(0, prompt - 1)), 0
        computed = computed or min(1, prompt - 1)
        if computed == 0:  # a prompt of one token cannot be half done
            prompt, computed = 2, 1
    elif kind == "last chunk in flight":
        computed, generated = prompt, 0
    else:
        generated = draw(st.integers(1, 300))
        computed = prompt + generated - (kind == "ready")
    last_ms = draw(up_to(20.0, -300.0) | st.none()) if generated else None
    cached = draw(st.integers(0, computed)) if draw(st.booleans()) else 0
    first_ms = draw(up_to(-300.0, -3000.0) | st.none()) if generated else None
    return RequestState(
        name, prompt, arrival_ms, draw(slos()), computed, generated,
        cached_tokens=cached, first_token_ms=first_ms, last_token_ms=last_ms,
        unheld_tokens=draw(st.integers(0, cached)), broken=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    pp = draw(st.integers(1, 4))
    limits = EngineLimits(
        pp=pp,
        block_size=draw(st.sampled_from((1, 7, 16))),
        max_num_seqs=draw(st.integers(1, 24)),
        max_batched_tokens=draw(st.integers(8, 512)),
        max_model_len=draw(st.sampled_from((1250, 1 << 30))),
        long_prefill_token_threshold=draw(st.sampled_from((0, 0, 1, 40))),
        long_prefill_token_threshold_adaptive=draw(st.booleans()),
        max_steps_in_flight=pp + draw(st.integers(0, 1)),
        host_gap_ms=draw(up_to(6.0)),
        transfer_ms=draw(up_to(1.0)),
        clock_delay_ms=draw(up_to(60.0)),
    )
    most = min(10, limits.max_num_seqs)  # no engine runs more; costs are looked up for twice that
    running = [draw(running_requests(f"r{i}")) for i in range(draw(st.integers(0, most)))]
    waiting = [
        RequestState(
            f"w{i}",
            draw(st.integers(1, 1500)),
            draw(up_to(10.0, -3000.0)),
            draw(slos()),
            generated_tokens=draw(st.sampled_from((0, 0, 0, 5))),
            cached_tokens=draw(st.sampled_from((0, 0, 64, 5000))),
            last_token_ms=-50.0,
            unheld_tokens=draw(st.sampled_from((0, 0, 32, 5000))),
        )
        for i in range(draw(st.integers(0, 6)))
    ]
    flying = [r.request_id for r in running if r.pending_tokens == 0]
    steps = draw(st.integers(min(1, len(flying)), limits.max_steps_in_flight))
    ends_ms = sorted(draw(up_to(200.0, -20.0)) for _ in range(steps))
    in_flight = [StepInFlight(end_ms, tuple(flying[i::steps])) for i, end_ms in enumerate(ends_ms)]
    running, waiting = (
        [replace(r, steps_ahead=draw(st.integers(0, steps))) for r in requests]
        for requests in (running, waiting)
    )
    asked_mhz = draw(st.sampled_from((*CLOCKS_MHZ, 1000)))
    return Snapshot(
        now_ms=draw(st.sampled_from((0.0, 3.5))),
        limits=limits,
        knobs=Knobs(asked_mhz, draw(st.sampled_from((64, 256, 512)))),
        running=tuple(running),
        waiting=tuple(waiting),
        in_flight=tuple(in_flight),
        stage_free_ms=tuple(sorted(draw(up_to(150.0, -50.0)) for _ in range(pp))),
        free_blocks=draw(st.integers(0, 60) | st.just(1 << 30)),
        clock_since_ms=draw(up_to(0.0, -40.0)),
        previous_clock_mhz=draw(st.sampled_from((None, *CLOCKS_MHZ))),
        correction=Correction(
            draw(up_to(2.0, 0.5)),
            draw(up_to(2.0, 0.5)),
            draw(up_to(50.0)),
            draw(up_to(30.0)),
            draw(st.sampled_from((0.0, 2.5))),
            draw(BY_SIZE),
            draw(BY_SIZE),
            draw(st.sampled_from((0.01, 0.5, 10.0))),
            draw(st.sampled_from((0.0, 40.5, 3000.0))),
        ),
    )


KNOBS = st.builds(
    Knobs,
    clock_mhz=st.sampled_from(CLOCKS_MHZ),
    chunk_tokens=st.integers(16, 512),
    microbatches=st.integers(1, 4),
    pace_ms=st.sampled_from((0.0, 20.0, 66.7, 200.0)),
)
RULES = st.builds(
    Rules,
    just_in_time=st.booleans(),
    ride_along=st.booleans(),
    give_way=st.booleans(),
    late_cuts_chunk=st.booleans(),
    pace=st.booleans(),
    microbatches=st.booleans(),
    together=st.booleans(),
    min_chunk_tokens=st.sampled_from((0, 32)),
)


def assert_same(read: Forecast, compiled: Forecast) -> None:
    near = {"rel": 1e-7, "abs": 1e-6}
    assert compiled.ttft_ms == pytest.approx(read.ttft_ms, **near)
    assert compiled.worst_tbt_ms == pytest.approx(read.worst_tbt_ms, **near)
    for field in (
        "ttft_excess_ms", "tbt_excess_ms", "broken", "horizon_ms",
        "active_energy_j", "idle_energy_j", "settlement_j",
    ):  # fmt: skip
        assert getattr(compiled, field) == pytest.approx(getattr(read, field), **near), field
    assert (compiled.ttft_worst is None) == (read.ttft_worst is None)
    assert (compiled.tbt_worst is None) == (read.tbt_worst is None)


@given(snapshots(), KNOBS, RULES, costs())
@settings(max_examples=300)
def test_kernel_equals_reference(state: Snapshot, knobs: Knobs, rules: Rules, cost: StepCost):
    searcher = Searcher(cost, state.limits, rules, (128,), PACE_SHARES, LOOKAHEAD_MS, 0.0)
    read = forecast(state, knobs, cost, rules=rules, lookahead_ms=LOOKAHEAD_MS)
    assert_same(read, searcher.forecast(Moment.of(state), knobs))
    assert all(ms >= 0.0 for ms in read.ttft_ms.values())
    assert math.isfinite(read.energy_j)


def outcome(state: Snapshot, knobs: Knobs, rules: Rules, cost: StepCost) -> Outcome:
    start, correction = Moment.of(state).state, state.correction
    rows, slots = start.members.shape[1], len(start.flights)
    room = empty_state(rows, slots - 1, state.limits.pp)
    return forecast_one(
        room, start, lasting_setting(cost, knobs), state.now_ms, LOOKAHEAD_MS,
        np.array(PACE_SHARES), make_setup(state.limits, rules, correction), make_tables(cost, 600),
    )  # fmt: skip


@given(snapshots(), KNOBS, RULES, costs(), st.integers(16, 512))
@settings(max_examples=300)
def test_chunks_longer_than_any_step_play_alike(
    state: Snapshot, knobs: Knobs, rules: Rules, cost: StepCost, other: int
):
    """What a step is cut to does not depend on its budget, where passes grow with their tokens."""
    learnt = replace(state.correction, prefill_by_size=(), decode_by_size=())
    state = replace(state, correction=learnt)
    played = outcome(state, knobs, rules, cost)
    if played.most_tokens < min(knobs.chunk_tokens, other):
        longer = outcome(state, replace(knobs, chunk_tokens=other), rules, cost)
        assert longer == pytest.approx(played, nan_ok=True)
