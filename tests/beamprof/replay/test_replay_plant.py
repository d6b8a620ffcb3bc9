"""The plant against a readable one made of the reference composer and emulator, and its laws."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from plain_composer import Step, compose
from plain_moves import finish, issue
from plain_pipeline import ClockPlan, Pipeline
from plain_schedule import blocks
from replay_cases import IDLE_W, make_table, make_trace, random_trace

from beam_runtime.emulator.moment import snapshot_of
from beam_runtime.types import Correction, Knobs, RequestState, Rules, Snapshot
from beamprof.errors import ReplayError
from beamprof.replay.plant import play
from beamprof.replay.policies.base import Policy, Wake


class Fixed(Policy):
    """Knobs that never change."""

    def __init__(self, knobs, rules):
        super().__init__("fixed")
        self.knobs, self.rules = knobs, rules

    def start(self, view):
        return self.knobs


@dataclass
class Slow:
    first_ms: dict
    finish_ms: dict
    gaps: list
    active_j: float
    busy_ms: float
    steps: int
    preempted: int


def slow_plant(trace, knobs, rules, site):
    """The same engine in plain Python: snapshots, the reference composer, dictionaries."""
    limits = site.limits
    pipeline = Pipeline(
        site.cost, limits, Correction(), ClockPlan(knobs.clock_mhz, knobs.clock_mhz, -math.inf)
    )
    state = Snapshot(0.0, limits, knobs, free_blocks=site.kv_blocks)
    outputs = trace.output_tokens.tolist()
    coming = [
        RequestState(str(i), int(p), float(a) * 1e3, site.slo)
        for i, (a, p) in enumerate(zip(trace.arrival_s, trace.input_tokens, strict=True))
    ]
    out = Slow({}, {}, [], 0.0, 0.0, 0, 0)
    now_ms = 0.0
    while True:
        while state.in_flight and state.in_flight[0].finish_ms <= now_ms:
            returned = set(state.in_flight[0].request_ids)
            for r in (*state.running, *state.waiting):
                if r.request_id in returned and r.generated_tokens:
                    out.gaps.append(now_ms - r.last_token_ms)
                elif r.request_id in returned:
                    out.first_ms[int(r.request_id)] = now_ms
            state = finish(state, now_ms)
            everyone = (*state.running, *state.waiting)
            done = [r for r in everyone if r.generated_tokens >= outputs[int(r.request_id)]]
            for r in done:
                out.finish_ms[int(r.request_id)] = now_ms
            freed = sum(
                blocks(r.computed_tokens, r, limits.block_size) for r in done if r in state.running
            )
            state = replace(
                state,
                running=tuple(r for r in state.running if r not in done),
                waiting=tuple(r for r in state.waiting if r not in done),
                free_blocks=state.free_blocks + freed,
            )
        while coming and coming[0].arrival_ms <= now_ms:
            state = replace(state, waiting=(*state.waiting, coming.pop(0)))

        def back_ms(shape, at_ms, free_ms=state.stage_free_ms):
            return pipeline.travel(shape, at_ms, free_ms)[-1].end_ms

        move = compose(state, knobs, now_ms, back_ms, rules)
        if isinstance(move, Step):
            route = (
                pipeline.travel(move.shape, now_ms, state.stage_free_ms)
                if move.shape.tokens
                else ()
            )
            state = issue(state, move, route)
            out.steps += bool(route)
            out.preempted += len(move.preempted)
            out.active_j += sum(one.energy_j for one in route)
            out.busy_ms += sum(one.busy_ms for one in route)
            continue
        ends = [move.until_ms]
        ends += [state.in_flight[0].finish_ms] if state.in_flight else []
        ends += [coming[0].arrival_ms] if coming else []
        if min(ends) == math.inf:
            return out
        now_ms = max(now_ms, min(ends))


@pytest.mark.parametrize(
    ("knobs", "rules"),
    [
        (Knobs(1400, 256), Rules.vanilla()),
        (Knobs(1000, 128, 2), Rules.vanilla()),
        (Knobs(1000, 256, 1, 150.0), Rules()),
        (Knobs(800, 128, 3, 60.0), Rules()),
        (Knobs(1200, 512, 4, 100.0), Rules(ride_along=False)),
    ],
)
@pytest.mark.parametrize("memory", ["roomy", "tight"])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_the_reference_engine_played_to_the_end(site, tight, knobs, rules, memory, seed):
    where = site if memory == "roomy" else tight
    trace = random_trace(seed)
    fast = play(trace, Fixed(knobs, rules), where)
    slow = slow_plant(trace, knobs, rules, where)
    order = range(trace.requests)
    assert fast.first_token_ms.tolist() == pytest.approx([slow.first_ms[i] for i in order])
    assert fast.finish_ms.tolist() == pytest.approx([slow.finish_ms[i] for i in order])
    assert sorted(fast.tokens["gap_ms"]) == pytest.approx(sorted(slow.gaps))
    assert fast.active_energy_j == pytest.approx(slow.active_j)
    assert fast.busy_ms == pytest.approx(slow.busy_ms)
    assert (len(fast.steps), fast.preemptions) == (slow.steps, slow.preempted)
    if memory == "tight" and seed == 1:
        assert fast.preemptions > 0  # or this test would not see them


@pytest.mark.parametrize("memory", ["roomy", "tight"])
def test_every_token_is_served_once_and_energy_adds_up(site, tight, memory):
    where = site if memory == "roomy" else tight
    trace = random_trace(7, requests=120, rate=8.0)
    played = play(trace, Fixed(Knobs(1000, 256, 1, 150.0), Rules()), where)
    steps = played.steps
    assert np.isfinite(played.finish_ms).all()
    assert len(played.tokens) == int((trace.output_tokens - 1).sum())
    per_request = np.bincount(played.tokens["request"], minlength=trace.requests)
    assert per_request.tolist() == (trace.output_tokens - 1).tolist()
    gaps = np.bincount(played.tokens["request"], played.tokens["gap_ms"], trace.requests)
    assert gaps == pytest.approx(played.finish_ms - played.first_token_ms)
    if memory == "roomy":  # nothing is computed twice
        assert steps["prefill_tokens"].sum() == trace.input_tokens.sum()
        assert steps["decode_requests"].sum() == len(played.tokens)
    assert played.active_energy_j == pytest.approx(steps["energy_j"].sum())
    # Idling counts until the stated duration, whenever the last token came.
    for duration_s in (trace.duration_s, 300.0):
        longer = play(
            replace(trace, duration_s=duration_s),
            Fixed(Knobs(1000, 256, 1, 150.0), Rules()),
            where,
        )
        assert longer.active_energy_j == played.active_energy_j
    assert longer.end_ms == 300e3
    assert longer.idle_energy_j == pytest.approx(IDLE_W * (4 * 300 - played.busy_ms / 1e3))
    assert 0.0 < played.idle_energy_j < IDLE_W * 4 * trace.duration_s


def test_an_idle_hour_is_all_idle_power(site):
    played = play(make_trace([(0, 8, 1)], 3600), Fixed(Knobs(1400, 256), Rules.vanilla()), site)
    assert played.energy_j == pytest.approx(4 * IDLE_W * 3600, rel=1e-3)
    assert played.idle_energy_j < 4 * IDLE_W * 3600
    assert len(played.steps) == 1


def test_noise_belongs_to_the_seed_and_is_right_on_average(site):
    trace = random_trace(3)
    policy = Fixed(Knobs(1000, 256, 1, 150.0), Rules())

    def played(noise, seed):
        return play(trace, policy, replace(site, noise=noise, seed=seed))

    once, again, other, quiet = played(0.1, 5), played(0.1, 5), played(0.1, 6), played(0.0, 5)
    assert once.energy_j == again.energy_j
    assert (once.first_token_ms == again.first_token_ms).all()
    assert once.energy_j != other.energy_j
    assert np.mean([played(0.1, seed).active_energy_j for seed in range(20)]) == pytest.approx(
        quiet.active_energy_j, rel=0.02
    )


def test_queues_longer_than_the_first_room_and_records_longer_than_one_block(site):
    burst = make_trace([(0.001 * i, 200, 60) for i in range(700)], 60)
    policy = Fixed(Knobs(1400, 64), Rules.vanilla())
    played = play(burst, policy, site)
    assert (np.diff(played.first_token_ms) >= 0).all()  # first come, first served
    assert len(played.tokens) == 700 * 59 > loop_tokens()
    assert played.steps["waiting_requests"].max() > 256


def loop_tokens():
    from beamprof.replay import plant

    return plant._TOKENS


class OneChange(Policy):
    """Asks for another clock at the first arrival."""

    wakes = Wake.ARRIVAL
    rules = Rules.vanilla()

    def start(self, view):
        return Knobs(1400, 256)

    def decide(self, view):
        return Knobs(600, 256)


def test_a_clock_takes_effect_after_its_delay(site, cost):
    where = replace(site, limits=replace(site.limits, clock_delay_ms=30.0))
    played = play(make_trace([(0.1, 512, 1)], 1), OneChange("change"), where)
    at = [cost.clocks_mhz.tolist().index(c) for c in (1400, 600)]
    first, second = played.steps
    assert first["clock"] == 1400  # where it began
    assert played.clock_changes == 1
    fast_ms, slow_ms = (pass_of_256(cost)[i] for i in at)

    def busy_ms(issued_ms: float) -> float:
        """Of a step's four passes; what is done by 130 ms is done at the clock before."""
        at_ms, all_ms = issued_ms, 0.0
        for _ in range(4):
            early = min(1.0, max(0.0, (130.0 - at_ms) / fast_ms))
            one_ms = early * fast_ms + (1.0 - early) * slow_ms
            at_ms += one_ms + where.limits.host_gap_ms + where.limits.transfer_ms
            all_ms += one_ms
        return all_ms

    assert first["busy_ms"] == pytest.approx(busy_ms(first["issued_ms"]))
    # The second follows it into the first stage before 130 ms, and is there when that is over.
    assert fast_ms + 3 * slow_ms < second["busy_ms"] < 4 * slow_ms


def pass_of_256(cost):
    from beam_runtime.types import StepShape

    return cost.latency_ms(StepShape(256))


class Curious(Policy):
    """Keeps every snapshot it is shown."""

    wakes = Wake.ARRIVAL | Wake.FIRST_TOKEN | Wake.COMPLETION | Wake.STEP
    rules = Rules()

    def start(self, view):
        self.seen = []
        return Knobs(1000, 256, 1, 150.0)

    def decide(self, view):
        self.seen.append(snapshot_of(view.moment(self.correction)))
        return view.knobs


class Refreshed(Curious):
    """Asks to be asked again."""

    wakes = Wake.ARRIVAL
    refresh_ms = 500.0


def test_a_policy_is_asked_anew_so_long_after_it_was_asked_last(site):
    policy = Refreshed("refreshed")
    played = play(make_trace([(1.0, 300, 40), (1.2, 300, 40)], 60), policy, site)
    asked_ms = [one.now_ms for one in policy.seen]
    assert asked_ms[:3] == [1000.0, 1200.0, 1700.0]
    assert np.diff(asked_ms[1:]) == pytest.approx(500.0)
    # And not while nobody is there.
    assert played.finish_ms.max() - 500.0 < asked_ms[-1] < played.finish_ms.max() + 500.0


def test_what_a_policy_sees_does_not_depend_on_what_is_to_come(site):
    rows = [(0.0, 300, 30), (0.2, 100, 5), (3.0, 400, 8)]
    longer = [(0.0, 300, 90), (0.2, 100, 50), (3.0, 40, 3)]
    first, second = Curious("a"), Curious("b")
    play(make_trace(rows, 10), first, site)
    play(make_trace(longer, 10), second, site)
    common = 0
    for one, other in zip(first.seen, second.seen, strict=False):
        if one != other:
            break
        common += 1
    # Equal until the fifth token of the second request is its last in one of the traces.
    assert first.seen[common].now_ms >= 200.0
    assert common > 5


def test_a_request_that_can_never_be_served_is_named(site):
    trace = make_trace([(0, 100, 10), (1, 2000, 10)], 5)
    with pytest.raises(ReplayError, match="1 of 2 requests are longer") as caught:
        play(trace, Fixed(Knobs(1400, 256), Rules.vanilla()), replace(site, kv_blocks=100))
    assert "request 1: 2000 input" in caught.value.cause
    assert "--over-limit" in caught.value.hint


def test_a_table_without_idle_power_is_refused(site):
    from beam_runtime.table.step_cost import StepCost

    cost = StepCost.from_table(make_table(idle=False))
    with pytest.raises(ReplayError, match="waiting GPU"):
        replace(site, cost=cost, believed=cost)
