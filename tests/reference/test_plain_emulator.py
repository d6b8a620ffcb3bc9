"""The readable emulator against cases that are worked out by hand."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from plain_composer import Hold
from plain_emulator import Forecast, forecast
from plain_steady import Decoding, EqualWork, steady

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepInFlight,
)

# A pass takes 10 ms + 0.1 ms per token and 2 J + 0.01 J per token at 1000 MHz; at 500 MHz twice
# the time and half the energy. A waiting stage draws 100 W.
COST = StepCost(
    clocks_mhz=np.array([500, 1000]),
    edges_tokens=np.array([0.0, 1000.0]),
    linear_latency_ms=np.array([[20.0, 220.0], [10.0, 110.0]]),
    linear_energy_j=np.array([[1.0, 6.0], [2.0, 12.0]]),
    attention_latency_ms=np.zeros((2, 6)),
    attention_energy_j=np.zeros((2, 6)),
    idle_power_w=np.array([100.0, 100.0]),
    fit=cast(Any, None),
)
FREE = EqualWork(0.0, 0.0, 0.0, 0.0, 0.0)  # nothing has a price: energy is what was played
NO_MARGIN = Correction(ttft_margin_ms=0.0, tbt_margin_ms=0.0)
NOW = Knobs(1000, 100)


def limits(pp: int = 1, **given) -> EngineLimits:
    return EngineLimits(pp=pp, max_batched_tokens=1000, clock_delay_ms=0.0, **given)


def snapshot(running=(), waiting=(), lim=None, **given) -> Snapshot:
    return Snapshot(
        0.0, lim or limits(), given.pop("knobs", NOW), tuple(running), tuple(waiting),
        correction=NO_MARGIN, **given,
    )  # fmt: skip


def prompt(name: str, tokens: int, arrival_ms: float = 0.0) -> RequestState:
    return RequestState(name, tokens, arrival_ms)


def decode(name: str, last_ms: float, tbt_ms: float = 200.0) -> RequestState:
    return RequestState(
        name, 10, -100.0, Slo(tbt_ms=tbt_ms), computed_tokens=10, generated_tokens=1,
        last_token_ms=last_ms,
    )  # fmt: skip


def ask(state: Snapshot, knobs=NOW, rules=None, lookahead_ms=0.0) -> Forecast:
    return forecast(state, knobs, COST, rules=rules, lookahead_ms=lookahead_ms, prices=FREE)


def test_one_chunk_on_one_stage():
    found = ask(snapshot(waiting=[prompt("a", 100, arrival_ms=-7.0)]))
    assert found.ttft_ms == {"a": pytest.approx(27.0)}  # 10 + 0.1 * 100, and 7 waited
    assert found.active_energy_j == pytest.approx(3.0)  # 2 + 0.01 * 100
    assert found.idle_energy_j == pytest.approx(0.0)
    assert found.horizon_ms == pytest.approx(20.0)


def test_chunks_overlap_themselves_across_stages():
    # Two chunks over four stages: 20 ms each; the second is one stage behind the first.
    found = ask(snapshot(waiting=[prompt("a", 200)], lim=limits(pp=4)))
    assert found.ttft_ms == {"a": pytest.approx(20.0 * (4 + 1))}
    assert found.active_energy_j == pytest.approx(2 * 4 * 3.0)
    # Stage s is first busy at 20 s: until then it waits, at 100 W.
    assert found.idle_energy_j == pytest.approx((0 + 20 + 40 + 60) * 0.1)


def test_the_host_gap_counts_on_every_stage_and_is_idle():
    found = ask(snapshot(waiting=[prompt("a", 100)], lim=limits(pp=2, host_gap_ms=5.0)))
    assert found.ttft_ms == {"a": pytest.approx(2 * 25.0)}
    assert found.idle_energy_j == pytest.approx((25 + 5 + 5) * 0.1)


def test_activations_take_their_time_between_stages():
    found = ask(snapshot(waiting=[prompt("a", 100)], lim=limits(pp=3, transfer_ms=2.0)))
    assert found.ttft_ms == {"a": pytest.approx(3 * 20.0 + 2 * 2.0)}


def test_a_stage_finishes_the_step_before():
    busy = snapshot(
        waiting=[prompt("a", 100)], lim=limits(pp=2), stage_free_ms=(0.0, 50.0),
    )  # fmt: skip
    assert ask(busy).ttft_ms == {"a": pytest.approx(50.0 + 20.0)}


def test_prompts_are_served_first_come_first():
    found = ask(snapshot(waiting=[prompt("a", 150), prompt("b", 50)]))
    # 100 of a; then 50 of a and all of b
    assert found.ttft_ms == {"a": pytest.approx(40.0), "b": pytest.approx(40.0)}


def test_a_clock_takes_effect_after_its_delay():
    lim = replace(limits(pp=2), clock_delay_ms=15.0)
    found = ask(snapshot(waiting=[prompt("a", 100)], lim=lim), Knobs(500, 100))
    # Stage 0 does three quarters at 1000 MHz in 15 ms, the rest at 500 in 10; stage 1 all at 500.
    assert found.ttft_ms == {"a": pytest.approx(25.0 + 40.0)}
    assert found.active_energy_j == pytest.approx(0.75 * 3.0 + 0.25 * 1.5 + 1.5)


def test_an_earlier_change_still_under_way_takes_effect_on_time():
    lim = replace(limits(pp=2), clock_delay_ms=15.0)
    state = snapshot(
        waiting=[prompt("a", 100)], lim=lim, clock_since_ms=-10.0, previous_clock_mhz=500
    )
    # Asked for at -10, so at 5: stage 0 does an eighth at 500 MHz, all else is done at 1000.
    assert ask(state).ttft_ms == {"a": pytest.approx(5.0 + 17.5 + 20.0)}


def test_a_decode_rides_and_waits_for_its_token():
    state = snapshot([decode("d", last_ms=-5.0)], [prompt("a", 99)])
    found = ask(state)
    assert found.worst_tbt_ms["d"] == pytest.approx(5.0 + 20.0)
    assert found.active_energy_j == pytest.approx(3.0)


def test_a_step_in_flight_brings_its_tokens_back():
    flying = RequestState("f", 10, -9.0, computed_tokens=10)  # its last chunk is under way
    state = snapshot([flying], in_flight=(StepInFlight(12.0, ("f", "unknown")),))
    found = ask(state, lookahead_ms=1.0)
    assert found.ttft_ms == {"f": pytest.approx(12.0 + 9.0)}


def test_decodes_come_round_every_pp_steps_while_there_is_prefill():
    lim = limits(pp=2)
    state = snapshot([decode("d", last_ms=0.0)], [prompt("a", 500)], lim)
    found = ask(state)
    # It rides in steps 1, 3 and 5, which are back at 40, 80 and 120 ms.
    assert found.worst_tbt_ms["d"] == pytest.approx(40.0)
    assert found.active_energy_j == pytest.approx(2 * (5 * 3.0 + 2.0 + 0.01 * 3))


def test_paced_decodes_arrive_when_due():
    state = snapshot([decode("a", 0.0), decode("b", -20.0)])
    found = ask(state, Knobs(1000, 100, pace_ms=500.0), lookahead_ms=600.0)
    # b's gap is the SLO, and a goes with it, 20 ms before it would be due.
    assert found.worst_tbt_ms == {"a": pytest.approx(200.0), "b": pytest.approx(200.0)}
    assert found.tbt_excess_ms == pytest.approx(0.0, abs=1e-6)
    assert found.feasible


def test_a_decode_only_phase_is_charged_by_its_cycle():
    state = snapshot([decode("a", 0.0), decode("b", 0.0)])
    found = ask(state, Knobs(1000, 100, pace_ms=500.0), lookahead_ms=400.0)
    # A pass of both, 10.2 ms and 2.02 J, every 200 ms.
    assert found.active_energy_j == pytest.approx(2 * 2.02)
    assert found.idle_energy_j == pytest.approx((400.0 - 2 * 10.2) * 0.1)


def test_unpaced_microbatches_each_pay_a_pass():
    state = snapshot([decode(f"d{i}", 0.0) for i in range(4)], lim=limits(pp=2))
    one = ask(state, Knobs(1000, 100, microbatches=1), lookahead_ms=208.0)
    two = ask(state, Knobs(1000, 100, microbatches=2), lookahead_ms=208.0)
    assert one.active_energy_j == pytest.approx(208.0 / 20.8 * 2 * 2.04)  # 4 at a time, both stages
    assert two.active_energy_j == pytest.approx(208.0 / 20.4 * 2 * 2 * 2.02)  # 2 and 2


def test_groups_go_on_together_where_the_first_can_wait_for_the_next_in_time():
    decoding = Decoding(requests=4, context_tokens=0, tbt_ms=50.0, groups=2)
    found = steady(decoding, 1, 500.0, COST, limits(pp=2), NO_MARGIN, Rules())
    slow, fast = found.active_power_w
    # At 1000 MHz 50 ms leave 29 beside a token's way, and the next group is 10 behind.
    assert fast == pytest.approx(2 * 2.04 / 0.050)
    # At 500 MHz they leave 8, and it is 20 behind: each of the two goes on alone.
    assert slow == pytest.approx(2 * 2 * 1.01 / 0.050)


def test_what_cannot_be_admitted_is_blocked_and_does_not_count():
    state = snapshot([decode("d", 0.0)], [prompt("w", 500)], free_blocks=10)
    found = ask(state, lookahead_ms=100.0)
    assert found.ttft_ms == {"w": math.inf}
    assert found.ttft_excess_ms == -math.inf


def test_a_starved_decode_shows_how_long_it_has_waited():
    full = RequestState(
        "d", 16, -100.0, computed_tokens=16, generated_tokens=1, last_token_ms=-30.0
    )
    found = ask(snapshot([full], free_blocks=0), lookahead_ms=50.0)
    assert found.worst_tbt_ms["d"] >= 30.0


def test_a_composer_that_never_moves_on_ends_a_forecast_all_the_same(monkeypatch):
    monkeypatch.setattr("plain_emulator.compose", lambda *_: Hold(0.0, "for ever"))
    found = ask(snapshot([decode("d", 0.0)], [prompt("a", 100)]))
    assert found.ttft_ms == {"a": 0.0}  # it is still waiting when the play is given up
    assert found.horizon_ms == 0.0


def test_promises_still_kept_count_and_the_worst_is_named():
    waiting = [prompt("a", 100, -990.0), prompt("b", 100, -1180.0)]
    found = ask(snapshot(waiting=waiting))
    # a's decode takes a token of the second step, and b's last one goes in a third: 10.2 ms.
    assert found.ttft_ms == {"a": pytest.approx(1010.0), "b": pytest.approx(1230.2)}
    # b's second has gone by already: it counts no more.
    assert (found.ttft_worst, found.ttft_excess_ms) == ("a", pytest.approx(10.0))
    assert found.broken == 1.0
    assert not found.feasible


def test_calibration_scales_prefill_steps_and_decode_steps_apart():
    state = snapshot([decode("d", 0.0)], [prompt("a", 100)])
    slow = replace(state, correction=replace(NO_MARGIN, prefill_scale=1.5))
    assert ask(slow, Knobs(1000, 200)).ttft_ms["a"] == pytest.approx(1.5 * 20.1)
    decodes = replace(snapshot([decode("d", 0.0)]), correction=replace(NO_MARGIN, decode_scale=2.0))
    assert ask(decodes, lookahead_ms=5.0).worst_tbt_ms["d"] == pytest.approx(2 * 10.1)


def test_vanilla_fills_its_queue_at_once():
    # Just in time, b's decode joins the third step; vLLM has put two chunks before it by then.
    lim = limits(pp=2)
    flying = (StepInFlight(30.0, ("d",)),)
    d = RequestState("d", 10, 0.0, computed_tokens=11, generated_tokens=1, last_token_ms=0.0)
    state = snapshot([d], [prompt("a", 600)], lim, in_flight=flying, stage_free_ms=(25.0, 30.0))
    patient = ask(state).worst_tbt_ms["d"]
    eager = ask(state, rules=Rules.vanilla()).worst_tbt_ms["d"]
    assert eager >= patient


@pytest.mark.parametrize("arrival_ms", [0.0, 500.0])
def test_timestamps_that_go_backwards_give_no_negative_times(arrival_ms: float):
    d = decode("d", last_ms=400.0)
    found = ask(snapshot([d], [prompt("a", 100, arrival_ms)]))
    assert found.ttft_ms["a"] >= 0.0
    assert found.worst_tbt_ms["d"] >= 0.0


def test_nothing_to_do_idles():
    found = ask(snapshot(lim=limits(pp=4)), lookahead_ms=250.0)
    assert found.energy_j == pytest.approx(4 * 100.0 * 0.25)
    assert found.feasible


class TestEqualWork:
    def test_a_token_not_made_costs_what_one_more_decode_adds(self):
        state = snapshot([decode("a", 0.0), decode("b", 0.0)])
        cost = replace(COST, idle_power_w=np.array([10.0, 10.0]))
        fast = forecast(state, Knobs(500, 100), cost, lookahead_ms=400.0)
        paced = forecast(state, Knobs(500, 100, pace_ms=500.0), cost, lookahead_ms=400.0)
        # Unpaced ten times the tokens are made, each pass for two only: not worth its fixed part.
        assert paced.energy_j < fast.energy_j
        assert paced.settlement_j > fast.settlement_j

    def test_who_is_done_sooner_is_charged_for_the_rest_of_the_window(self):
        state = snapshot(waiting=[prompt("a", 400)])
        quick = forecast(state, Knobs(1000, 400), COST, lookahead_ms=0.0)
        slow = forecast(state, Knobs(500, 400), COST, lookahead_ms=0.0)
        assert quick.horizon_ms < slow.horizon_ms
        assert quick.settlement_j > slow.settlement_j
