"""Point 5: events that are late, lost, doubled, early, too many, or nonsense."""

import logging
from dataclasses import replace

import pytest
from fault_bench import QUICK, SLO, Bench, alternating, forecast, requests

from beam_runtime.control.controller import Controller
from beam_runtime.testing.engine import FakeRequest
from beam_runtime.types import Decision, Knobs, Slo, Snapshot


def test_without_faults_it_steers(bench: Bench) -> None:
    bench.run(requests())
    assert bench.after.steering
    assert bench.after.counts.decisions > 10
    assert bench.after.odd_events == bench.after.dropped_events == 0
    assert {("set", 735), ("set", 1185)} <= set(bench.actuator.calls)


def test_all_cached_prompts_and_one_token_answers(bench: Bench) -> None:
    served = [
        FakeRequest(f"r{n}", 100.0 * n, 320, 1 + n % 2, SLO, cached_tokens=320) for n in range(8)
    ]
    bench.run(served)
    assert bench.after.odd_events == 0


def test_one_stage(bench: Bench) -> None:
    bench.limits = replace(bench.limits, pp=1, max_steps_in_flight=1)

    def flat(state: Snapshot) -> Decision:
        return replace(alternating(state), knobs=replace(alternating(state).knobs, microbatches=1))

    bench.run(requests(), search=flat)
    assert bench.after.steering


def test_a_chunk_under_the_running_decodes(bench: Bench) -> None:
    def tiny(state: Snapshot) -> Decision:
        return Decision(Knobs(1410, 1, 4), forecast(), "tiny")

    crowd = [replace(r, arrival_ms=0.0) for r in requests(30)]
    bench.run(crowd, search=tiny)


def test_a_prompt_over_the_models_length(bench: Bench) -> None:
    served = [*requests(), FakeRequest("long", 300.0, bench.limits.max_model_len, 10, SLO)]
    ledger = bench.run(served)
    assert ledger.outputs["long"] == []
    assert bench.after.odd_events == 0


def test_no_requests_at_all(bench: Bench) -> None:
    bench.run([])


def test_timestamps_that_go_backwards(bench: Bench) -> None:
    bench.run(
        requests(), engine={"skew_ms": lambda now_ms: now_ms - 700.0 * (int(now_ms) % 3 == 0)}
    )
    assert bench.after.counts.backward_times > 0
    assert bench.after.steering


def test_timestamps_from_the_future(bench: Bench) -> None:
    seen: list[float] = []

    def note(state: Snapshot) -> Decision:
        seen.extend(state.now_ms - r.arrival_ms for r in state.waiting)
        return alternating(state)

    bench.run(requests(), search=note, engine={"skew_ms": lambda now_ms: now_ms + 1e9})
    assert min(seen) >= 0.0, "nobody arrives after now"


@pytest.mark.parametrize("hook", ["arrival", "completion", "first_token", "step_finished"])
def test_lost_events(bench: Bench, hook: str) -> None:
    lost = {f"r{n}" for n in range(0, 12, 3)} | {""}
    count = iter(range(10**6))

    def mute(name: str, request_id: str) -> bool:
        return name == hook and request_id in lost and next(count) % 2 == 0

    bench.run(requests(tokens=40), engine={"mute": mute})
    assert bench.after.counts.decisions > 10


def test_lost_completions_are_found_with_the_engines_help(bench: Bench) -> None:
    running: list[int] = []

    def note(state: Snapshot) -> Decision:
        running.append(len(state.running) + len(state.waiting))
        return alternating(state)

    served = [*requests(8), FakeRequest("last", 9000.0, 100, 60, SLO)]
    bench.run(
        served,
        search=note,
        adapter=True,
        engine={"mute": lambda hook, request_id: hook == "completion"},
    )
    assert bench.after.counts.lost_requests >= 8
    assert running[-1] == 1


def test_a_storm_is_taken_in_together(bench: Bench) -> None:
    """1,000 arrivals and aborts a second beside the serving."""
    made = iter(range(10**6))

    def storm(controller: Controller, now_ms: float) -> None:
        while (number := next(made)) < now_ms:
            controller.arrival(f"storm{number}", 100, at_ms=now_ms)
            controller.abort(f"storm{number}", at_ms=now_ms)

    ledger = bench.run(requests(), meanwhile=storm)
    assert bench.after.counts.events > 2000
    assert bench.after.counts.decisions <= ledger.end_ms / QUICK.least_gap_ms + 1
    assert bench.after.dropped_events == bench.after.odd_events == 0


def test_nonsense(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out; the first is told aloud, the rest to who debugs."""
    caplog.set_level(logging.DEBUG, "beam_runtime")

    def nonsense(controller: Controller, now_ms: float) -> None:
        controller.arrival([], "many")  # type: ignore[arg-type]
        controller.arrival("x", None)  # type: ignore[arg-type]
        controller.arrival("y", 10, cached_tokens="all")  # type: ignore[arg-type]
        controller.step_issued(None)  # type: ignore[arg-type]
        controller.completion({})  # type: ignore[arg-type]
        controller.first_token("r0", at_ms="soon")  # type: ignore[arg-type]

    bench.run(requests(), meanwhile=nonsense)
    assert bench.after.counts.broken_events > 1
    told = [r.levelname for r in caplog.records if "event is broken" in r.message]
    assert told[0] == "WARNING"
    assert set(told[1:]) == {"DEBUG"}
    assert bench.after.dropped_events > 0
    assert bench.after.counts.decisions > 10


def test_events_before_and_after_its_life(bench: Bench) -> None:
    bench.run(requests())
    assert bench.controller is not None
    bench.controller.advance()  # what it was told in its life
    before = bench.controller.status
    bench.controller.arrival("late", 100)
    bench.controller.step_issued(["late"])
    bench.controller.step_finished()
    bench.controller.advance()
    after = bench.controller.status
    assert after.counts == before.counts
    assert after.dropped_events == before.dropped_events + 3
    bench.controller.close()
    assert set(bench.actuator.locked_mhz) == {None}


def test_an_unknown_class_gets_the_default(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    seen: dict[str, Slo] = {}

    def note(state: Snapshot) -> Decision:
        seen.update({r.request_id: r.slo for r in state.waiting})
        return alternating(state)

    def visit(controller: Controller, now_ms: float) -> None:
        for name, slo in (("a", "chat"), ("b", "bulk"), ("c", None), ("d", Slo(1000.0, 200.0))):
            controller.arrival(name, 10, slo=slo)

    classes = {"default": Slo(5000.0, 600.0), "chat": Slo(3000.0, 400.0)}
    bench.run(requests(2), search=note, meanwhile=visit, slos=classes)
    assert (seen["a"], seen["b"]) == (Slo(3000.0, 400.0), Slo(5000.0, 600.0))
    assert (seen["c"], seen["d"]) == (Slo(5000.0, 600.0), Slo(1000.0, 200.0))
    assert caplog.text.count("no SLO class 'bulk'") == 1
