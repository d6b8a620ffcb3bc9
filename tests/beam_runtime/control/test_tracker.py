"""The tracker's picture is the engine's truth, and lies do not break it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.control.events import Arrival
from beam_runtime.control.tracker import LOST_DECODE_MS, LOST_WAITING_MS, Tracker
from beam_runtime.emulator.moment import snapshot_of
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.engine import FakeEngine, FakeRequest
from beam_runtime.types import EngineLimits, Knobs, RequestState, Slo, Snapshot

LIMITS = EngineLimits(pp=2, max_num_seqs=8, max_model_len=1000)


def arrival(name: str, tokens: int = 100, at_ms: float = 0.0, cached: int = 0) -> Arrival:
    return Arrival(at_ms, name, tokens, None, cached)


def tracker_with(*names: str) -> Tracker:
    tracker = Tracker(LIMITS, kv_blocks=100)
    for at, name in enumerate(names):
        tracker.arrived(arrival(name, at_ms=float(at)), Slo())
    return tracker


def view(tracker: Tracker, now_ms: float = 0.0, finishes_ms: Sequence[float] = ()) -> Snapshot:
    pp = tracker._limits.pp
    moment = tracker.moment(now_ms, Knobs(1410, 512), finishes_ms, (0.0,) * pp)
    return snapshot_of(moment)


def test_the_oldest_without_a_first_token_waits_longest_in_its_own_slo() -> None:
    tracker = Tracker(LIMITS)
    assert tracker.longest_wait_slos(100.0) == 0.0
    tracker.arrived(arrival("patient", at_ms=0.0), Slo(ttft_ms=10_000.0))
    tracker.arrived(arrival("hasty", at_ms=500.0), Slo(ttft_ms=100.0))
    assert tracker.longest_wait_slos(1000.0) == pytest.approx(5.0)
    tracker.issued([], [("hasty", 100)], 1000.0)
    assert tracker.longest_wait_slos(1000.0) == pytest.approx(5.0)
    tracker.first_token("hasty", 1000.0)
    assert tracker.longest_wait_slos(1000.0) == pytest.approx(0.1)


class Mirror:
    """Stands in for a controller: every hook goes straight into a tracker, and is compared."""

    def __init__(self, engine: FakeEngine, limits: EngineLimits, kv_blocks: int) -> None:
        self.engine = engine
        self.tracker = Tracker(limits, kv_blocks)
        self.compared = 0

    def arrival(self, name, tokens, *, slo, cached_tokens, at_ms):  # type: ignore[no-untyped-def]
        self.tracker.arrived(Arrival(at_ms, name, tokens, slo, cached_tokens), slo)

    def step_issued(self, decodes, chunks, *, at_ms):  # type: ignore[no-untyped-def]
        self.shape = self.tracker.issued(decodes, chunks, at_ms)

    def step_finished(self, *, at_ms):  # type: ignore[no-untyped-def]
        self.tracker.finished(at_ms)

    def first_token(self, name, *, at_ms):  # type: ignore[no-untyped-def]
        self.tracker.first_token(name, at_ms)

    def completion(self, name, *, at_ms):  # type: ignore[no-untyped-def]
        self.tracker.ended(name)

    abort = completion

    def preemption(self, name, *, at_ms):  # type: ignore[no-untyped-def]
        self.tracker.preempted(name)

    def advance(self):  # type: ignore[no-untyped-def]
        truth = self.engine.snapshot()
        seen = view(self.tracker, truth.now_ms, [step.finish_ms for step in truth.in_flight])
        assert seen.running == truth.running
        assert seen.waiting == truth.waiting
        assert [step.finish_ms for step in seen.in_flight] == [
            step.finish_ms for step in truth.in_flight
        ]
        assert [set(step.request_ids) for step in seen.in_flight] == [
            set(step.request_ids) for step in truth.in_flight
        ]
        assert seen.free_blocks == truth.free_blocks
        self.compared += 1
        return self.engine._orders


REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 400.0), st.integers(1, 600), st.integers(1, 6), st.integers(0, 200)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25)
@given(REQUESTS, st.sampled_from([60, 100, 10_000]))
def test_it_sees_what_the_engine_does(
    small_cost: StepCost, requests: list[tuple[float, int, int, int]], kv_blocks: int
) -> None:
    limits = EngineLimits(pp=4, max_num_seqs=6, max_model_len=700)
    engine = FakeEngine(
        small_cost,
        limits,
        [
            FakeRequest(f"r{n}", at, p, o, cached_tokens=c)
            for n, (at, p, o, c) in enumerate(requests)
        ],
        kv_blocks=kv_blocks,
    )
    mirror = Mirror(engine, limits, kv_blocks)
    engine.run(mirror)  # type: ignore[arg-type]
    assert mirror.compared > 0
    assert mirror.tracker.odd_events == 0
    assert mirror.tracker.idle


def test_a_first_token_counts_once_whatever_is_told_first() -> None:
    for step_first in (True, False):
        tracker = tracker_with("a")
        tracker.issued([], [("a", 100)], 1.0)
        if step_first:
            tracker.finished(50.0)
        assert tracker.first_token("a", 50.0) == (50.0, Slo())
        if not step_first:
            tracker.finished(50.0)
        (request,) = view(tracker).running
        assert (request.generated_tokens, request.pending_tokens) == (1, 1)


def test_unknown_requests_are_odd_and_harmless() -> None:
    tracker = tracker_with("a")
    tracker.ended("nobody")
    tracker.preempted("nobody")
    tracker.finished(1.0)
    assert tracker.first_token("nobody", 1.0) is None
    shape = tracker.issued(["nobody"], [("no one", 5)], 1.0)
    tracker.arrived(arrival("a", tokens=7), Slo())
    assert shape.tokens == 0
    assert tracker.odd_events == 7
    (request,) = view(tracker).waiting
    assert request.prompt_tokens == 100, "the first word counts"


def test_a_lost_completion_is_noticed_while_others_go_on() -> None:
    tracker = tracker_with("gone", "alive")
    tracker.issued([], [("gone", 100), ("alive", 100)], 0.0)
    tracker.finished(10.0)
    now_ms = 10.0
    while now_ms < LOST_DECODE_MS:
        tracker.issued(["alive"], [], now_ms)
        now_ms += 100.0
        tracker.finished(now_ms)
    assert tracker.forget_lost(now_ms) == ()
    assert tracker.forget_lost(now_ms + 50.0) == ("gone",)
    assert tracker.load == (1, 100 + (round(now_ms) - 10) // 100)


def test_a_stalled_engine_loses_nobody() -> None:
    tracker = tracker_with("a")
    tracker.issued([], [("a", 100)], 0.0)
    tracker.finished(10.0)
    assert tracker.forget_lost(1e9) == ()


def test_a_waiting_request_that_was_overtaken_long_ago_is_gone() -> None:
    tracker = tracker_with("gone", "served", "behind")
    tracker.issued([], [("served", 100)], 10.0)
    assert tracker.forget_lost(10.0 + LOST_WAITING_MS) == ()
    assert tracker.forget_lost(11.0 + LOST_WAITING_MS) == ("gone",)
    assert [r.request_id for r in view(tracker).waiting] == ["behind"]


def test_a_request_over_the_models_length_has_ended() -> None:
    tracker = tracker_with("a")
    tracker.adopt(_snapshot(running=[RequestState("a", 999, 0.0, generated_tokens=2)]))
    assert tracker.forget_lost(0.0) == ("a",)


def test_the_engines_word_replaces_the_picture_but_not_the_promises() -> None:
    tracker = tracker_with()
    strict = Slo(300.0, 50.0)
    for name in ("kept", "unheard"):
        tracker.arrived(arrival(name, at_ms=5.0), strict)
    theirs = [
        RequestState("kept", 100, 77.0, computed_tokens=100, generated_tokens=3),
        RequestState("missed", 200, 88.0, Slo(9.0, 9.0), computed_tokens=50),
    ]
    assert tracker.adopt(replace(_snapshot(theirs), free_blocks=40)) == 1
    seen = view(tracker)
    kept, missed = seen.running
    assert (kept.arrival_ms, kept.slo, kept.generated_tokens) == (5.0, strict, 3)
    assert (missed.arrival_ms, missed.slo) == (88.0, Slo(9.0, 9.0))
    assert seen.waiting == ()
    assert seen.free_blocks == 40


@pytest.mark.parametrize(("prompt_tokens", "cached"), [(0, 0), (-5, -1), (10, 10), (10, 99)])
def test_strange_arrivals_become_servable(prompt_tokens: int, cached: int) -> None:
    tracker = Tracker(LIMITS)
    tracker.arrived(Arrival(0.0, "a", prompt_tokens, None, cached), Slo())
    shape = tracker.issued([], [("a", 1)], 1.0)
    assert shape.prefill_tokens == 1
    assert shape.prefill_context_tokens >= 0


def test_a_request_named_a_thousand_times_in_a_step_gets_one_token() -> None:
    tracker = tracker_with("a", "b")
    tracker.issued([], [("a", 100), ("b", 100)], 1.0)
    tracker.finished(2.0)
    tracker.issued(["a"] * 1000 + ["b"], [], 3.0)
    assert len(view(tracker, 3.0, (9.0,)).in_flight) == 1
    tracker.finished(9.0)
    generated = {r.request_id: r.generated_tokens for r in view(tracker, 9.0).running}
    assert generated["a"] == 2


def _snapshot(running: list[RequestState]) -> Snapshot:
    return Snapshot(0.0, LIMITS, Knobs(1410, 512), running=tuple(running))


def test_the_log_says_what_was_served(
    small_cost: StepCost, limits: EngineLimits, tmp_path: Path
) -> None:
    slo = Slo(400.0, 60.0)
    requests = [FakeRequest(f"r{n}", 90.0 * n, 150 + 70 * (n % 5), 12, slo) for n in range(12)]
    engine = FakeEngine(small_cost, limits, requests)
    log = DecisionLog(tmp_path / "log.jsonl")
    with Controller(
        small_cost, limits, threads=False, now_ms=lambda: engine.now_ms, log=log
    ) as beam:
        ledger = engine.run(beam)
        beam.arrival("last", 10)  # a decision more: its record has the gaps before it
        engine.now_ms += 300.0
        beam.advance()
    records = list(read_log(log.path))
    first = {r["request_id"]: r for r in records if r["kind"] == "first_token"}
    assert {name: one["actual_ms"] for name, one in first.items()} == pytest.approx(ledger.ttft_ms)
    assert {one["slo_ms"] for one in first.values()} == {400.0}
    since = [r["since"] for r in records if r["kind"] == "decision"]
    assert sum(one["tokens"] for one in since) == len(ledger.tbt_ms)
    assert sum(one["late_tokens"] for one in since) == ledger.late_tbt
    assert max(one["worst_ms"] for one in since) == pytest.approx(max(ledger.tbt_ms), abs=1e-3)
