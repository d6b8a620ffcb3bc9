"""A promise that changes while BEAM steers: margins, candidates and rest clock follow it."""

import logging
import os
from functools import partial
from pathlib import Path

import pytest
from fault_bench import wait_for
from fault_opening import open_fake

pytest.importorskip("numba", reason="without numba there is nothing to compile")

from beam_runtime.control import opening as opening_module
from beam_runtime.control.controller import Controller
from beam_runtime.control.events import Arrival
from beam_runtime.control.opening import Opening
from beam_runtime.emulator.moment import snapshot_of
from beam_runtime.search.stance import stance_for
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Follows, Knobs, Slo

LAX, STRICT = Slo(1000.0, 200.0), Slo(300.0, 60.0)


def test_margins_and_candidates_follow_and_requests_keep_what_they_were_promised(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    now_ms = [0.0]
    with Controller(
        small_cost, limits, slos={"default": LAX}, threads=False, now_ms=lambda: now_ms[0]
    ) as beam:

        def margin_ms(name: str) -> float:
            now_ms[0] += 50.0
            beam.arrival(name, 100)
            return beam.advance().correction.ttft_margin_ms

        lax, strict = (stance_for(small_cost, limits, slo) for slo in (LAX, STRICT))
        assert lax.policy.chunk_tokens != strict.policy.chunk_tokens
        assert margin_ms("a") == lax.floor.ttft_margin_ms
        beam.promise(STRICT)
        beam.advance()
        assert margin_ms("b") == strict.floor.ttft_margin_ms
        state = snapshot_of(beam._steering._seen.moment(now_ms[0], beam.orders.knobs))
        assert {r.request_id: r.slo for r in state.waiting} == {"a": LAX, "b": STRICT}
        assert beam.orders.knobs.chunk_tokens in strict.policy.chunk_tokens
        assert beam.decide(state).knobs.chunk_tokens in strict.policy.chunk_tokens


@pytest.fixture
def beam(
    small_cost: StepCost, limits: EngineLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Controller:
    monkeypatch.setattr(opening_module, "open_searches", partial(open_fake, tmp_path, os.getpid()))
    (tmp_path / "compiled").touch()
    return Controller(small_cost, limits, slos={"default": LAX})


def lax_opening(cost: StepCost, limits: EngineLimits, *, composer: bool) -> Opening:
    return Opening(
        cost, limits, {"default": LAX}, Knobs(1000, 512), None, follows=Follows.STEPS,
        clocks=True, composer=composer, threads=False,
    )  # fmt: skip


def floor_ms(beam: Controller) -> float:
    return beam.status.correction.ttft_margin_ms


def test_the_old_stance_serves_until_the_new_one_s_search_is_open(
    beam: Controller, small_cost: StepCost, limits: EngineLimits, tmp_path: Path
) -> None:
    with beam:
        wait_for(lambda: beam.orders.steering)
        before_ms = floor_ms(beam)
        (tmp_path / "compiled").unlink()
        beam.promise(STRICT)
        wait_for(lambda: beam.warming_up)
        number = beam.orders.number
        beam.arrival("a", 100)
        wait_for(lambda: beam.orders.number > number)
        assert beam.orders.steering
        assert beam.status.reason == ""
        assert floor_ms(beam) == before_ms
        (tmp_path / "go").touch()
        wait_for(lambda: not beam.warming_up)
        wait_for(
            lambda: floor_ms(beam) == stance_for(small_cost, limits, STRICT).floor.ttft_margin_ms
        )
        assert beam.orders.steering
        assert beam.status.counts.falls == 0


def test_a_search_that_does_not_open_leaves_the_old_one(
    beam: Controller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with beam:
        wait_for(lambda: beam.orders.steering)
        (tmp_path / "broken").touch()
        beam.promise(STRICT)
        wait_for(lambda: "steers as it did before" in caplog.text)
        assert not beam.warming_up
        assert beam.orders.steering
        assert beam.status.counts.falls == 0


def test_the_composer_is_handed_over_once_and_not_lost_to_an_early_promise(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    opening = lax_opening(small_cost, limits, composer=True)
    opening.promise(STRICT)
    first = opening.look()
    assert first is not None
    assert first.next_step is not None
    opening.promise(LAX)
    second = opening.look()
    assert second is not None
    assert second.next_step is None


def test_a_promise_that_changes_no_stance_opens_nothing(beam: Controller, tmp_path: Path) -> None:
    with beam:
        wait_for(lambda: beam.orders.steering)
        (tmp_path / "broken").touch()
        beam.promise(LAX)
        beam.arrival("a", 100)
        wait_for(lambda: beam.status.counts.events == 2)
        assert not beam.warming_up
        assert beam.orders.steering


def test_margins_are_for_what_single_requests_are_promised_too(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    """Each promise that is clearly tighter than all before, and can be kept."""
    opening = lax_opening(small_cost, limits, composer=False)
    alone = opening.stance
    for gap_ms in (1.0, LAX.token_ms, 0.9 * LAX.token_ms):
        opening.hear(Arrival(0.0, "a", 10, LAX.revised(tbt_ms=gap_ms), 0))
        assert opening.stance == alone
    tight = LAX.revised(tbt_ms=0.5 * LAX.token_ms)
    opening.hear(Arrival(0.0, "b", 10, tight, 0))
    assert opening.stance == stance_for(small_cost, limits, LAX, [tight])
    assert opening.stance.floor.tbt_margin_ms < alone.floor.tbt_margin_ms
