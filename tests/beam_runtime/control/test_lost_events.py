"""One bad event is one bad event: BEAM gets over it, and counts it."""

import math
import uuid
from pathlib import Path
from typing import Any

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing import FakeActuator, FakeClock
from beam_runtime.types import Decision, EngineLimits, Forecast, Knobs, Snapshot, StepShape

NOTHING = Forecast({}, {}, -1.0, -1.0, None, None, 0.0, 0.0, 250.0, 1.0, 1.0)


class Served:
    """A controller on a clock that stands still, and an engine that is told of by hand."""

    def __init__(self, cost: StepCost, *, pp: int = 1, search: Any = None, **more: Any) -> None:
        self.cost, self.clock, self.states = cost, FakeClock(), []
        self.limits = EngineLimits(pp=pp, max_num_seqs=64, max_model_len=8192, host_gap_ms=2.0)
        self.beam = Controller(
            cost, self.limits, actuator=FakeActuator(2 * pp), threads=False, now_ms=self.clock,
            search=search or self.decide, **more,
        )  # fmt: skip

    def decide(self, state: Snapshot) -> Decision:
        self.states.append(state)
        return Decision(Knobs(1410, 512), NOTHING, "")

    def step(self, shape: StepShape, told: bool = True) -> None:
        """The step that was issued takes as long as the table says."""
        self.clock.advance(float(self.cost.predict(shape).latency_ms[-1]) + 2.0)
        if told:
            self.beam.step_finished()
        self.beam.advance()

    def prefill(self, name: Any, tokens: int = 100) -> None:
        self.beam.arrival(name, tokens)
        self.beam.advance()
        self.beam.step_issued([], [(name, tokens)])
        self.beam.advance()
        self.step(StepShape(tokens))
        self.beam.first_token(name)


@pytest.mark.parametrize("at_ms", [1e15, math.inf, -math.inf, math.nan, -1e15])
@pytest.mark.parametrize("hook", ["arrival", "step_finished", "first_token", "completion"])
def test_a_time_from_another_world(small_cost: StepCost, hook: str, at_ms: float) -> None:
    one = Served(small_cost)
    with one.beam as beam:
        for number in range(30):
            one.prefill(f"r{number}")
            if number == 10:
                before = len(one.states)
                words = {"arrival": ["odd", 10], "step_finished": []}.get(hook, ["r10"])
                getattr(beam, hook)(*words, at_ms=at_ms)
            beam.completion(f"r{number}")
            beam.advance()
            one.clock.advance(100.0)
        assert len(one.states) - before >= 15
        assert beam.status.counts.wrong_times == 1
        assert beam.status.steering
        assert all(math.isfinite(r.arrival_ms) for r in one.states[-1].waiting)


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("lost", [None, 40, 400])
def test_a_step_whose_return_is_lost(small_cost: StepCost, pp: int, lost: int | None) -> None:
    one = Served(small_cost, pp=pp)
    names = [f"r{number}" for number in range(8)]
    off = 0
    with one.beam as beam:
        for name in names:
            one.prefill(name)
        for number in range(800):
            beam.step_issued(names)
            beam.advance()
            shape = StepShape(0, 0, 8, 8 * (101 + number % 300))
            for _ in range(pp):  # the whole pipeline's time
                one.clock.advance(float(small_cost.predict(shape).latency_ms[-1]) + 2.0)
            if number != lost:
                beam.step_finished()
            beam.advance()
            off += not beam.orders.steering
            if number % 300 == 299:
                for name in names:
                    beam.completion(name)
                names = [f"s{number}-{k}" for k in range(8)]
                for name in names:
                    one.prefill(name)
        assert off == 0
        assert beam.status.counts.lost_steps == (lost is not None)
        correction = beam.status.correction
        assert 0.9 < correction.decode_scale < 1.1


def test_who_decodes_after_a_lost_chunk_gets_tokens_and_is_forgotten_when_it_vanishes(
    small_cost: StepCost,
) -> None:
    one = Served(small_cost)
    with one.beam as beam:
        beam.arrival("half told", 400)
        beam.advance()
        one.clock.advance(30.0)  # its chunk is issued and back: nobody says so
        for _ in range(3):
            beam.step_issued(["half told"])
            one.step(StepShape(0, 0, 1, 401))
        one.clock.advance(300.0)
        beam.arrival("next", 10)
        beam.advance()
        (seen,) = one.states[-1].running
        assert (seen.generated_tokens, seen.computed_tokens) == (3, 402)
        for number in range(200):  # its completion is lost, too; others are served
            one.prefill(f"r{number}")
            beam.completion(f"r{number}")
            one.clock.advance(100.0)
        beam.advance()
        assert "half told" not in {r.request_id for r in one.states[-1].running}


@pytest.mark.parametrize("scheduled", [True, False])
def test_requests_that_vanish_in_their_prefill_are_forgotten(
    small_cost: StepCost, scheduled: bool
) -> None:
    one = Served(small_cost)
    with one.beam as beam:
        for number in range(40):
            beam.arrival(f"lost{number}", 400)
            if scheduled:
                beam.step_issued([], [(f"lost{number}", 100)])
                one.clock.advance(10.0)
                beam.step_finished()
            beam.advance()
        for number in range(300):
            one.prefill(f"r{number}")
            beam.completion(f"r{number}")
            beam.advance()
            one.clock.advance(590.0)
        last = one.states[-1]
        assert len(last.waiting) + len(last.running) <= 2
        assert beam.status.counts.lost_requests == 40


class Name:
    def __str__(self) -> str:
        return "a name"


@pytest.mark.parametrize("name", [uuid.UUID(int=7), 5, ("a", 1), b"raw", Name()])
def test_request_ids_of_any_kind_are_written_as_text(
    small_cost: StepCost, tmp_path: Path, name: object
) -> None:
    def search(state: Snapshot) -> Decision:
        who = state.waiting[0].request_id if state.waiting else None
        found = Forecast({}, {}, -1.0, -1.0, who, None, 0.0, 0.0, 250.0, 1.0, 1.0)
        return Decision(Knobs(735, 256), found, "")

    log = DecisionLog(tmp_path / "log.jsonl")
    one = Served(small_cost, search=search, log=log)
    with one.beam as beam:
        for _ in range(4):
            one.clock.advance(300.0)
            beam.arrival(name, 10)  # type: ignore[arg-type]
            beam.advance()
        assert beam.status.counts.failed_searches == 0
    decisions = [record for record in read_log(log.path) if record["kind"] == "decision"]
    assert decisions


def test_a_search_comes_back_whatever_the_state(small_cost: StepCost) -> None:
    from beam_runtime.search import Search
    from beam_runtime.types import RequestState

    limits = EngineLimits(pp=4, host_gap_ms=2.0)
    search = Search(small_cost, limits)
    endless = RequestState("r", 10**12, 0.0)
    late = search(Snapshot(0.0, limits, Knobs(510, 64), running=(endless,)))
    assert late.knobs == Knobs(1410, search.chunks[-1])
    assert not late.forecast.feasible
    assert late.why.endswith("as fast as it goes")
    backlog = tuple(RequestState(f"w{at}", 8000, 0.0) for at in range(300))
    many = search(Snapshot(0.0, limits, Knobs(510, 64), waiting=backlog))
    assert many.knobs.clock_mhz == 1410
    blocked = search(Snapshot(0.0, limits, Knobs(1410, 512), waiting=(endless,)))
    assert blocked.forecast.ttft_ms == {"r": math.inf}
