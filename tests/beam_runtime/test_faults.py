"""Whatever happens to BEAM, the engine keeps serving and no GPU stays locked.

Every test runs the same requests twice, without BEAM and with a BEAM to which something bad
happens, and asserts two things: the tokens are the same, and at the end no GPU is locked.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from beam_runtime.calibration import CalibrationRules
from beam_runtime.clocks.base import ClockReading
from beam_runtime.clocks.fake import FakeActuator
from beam_runtime.clocks.setter import ClockSetter
from beam_runtime.controller import Controller
from beam_runtime.cost import StepCost
from beam_runtime.decisions import DecisionLog, read_log
from beam_runtime.engines.fake import FakeEngine, FakeRequest, Ledger
from beam_runtime.errors import (
    ClockError,
    ClockPermissionError,
    ClockUnavailableError,
    TableError,
)
from beam_runtime.fallback import FallbackRules
from beam_runtime.steering import SteeringRules
from beam_runtime.types import Decision, EngineLimits, Forecast, Knobs, Slo, Snapshot

SLO = Slo(3000.0, 400.0)
QUICK = SteeringRules(stall_ms=500.0, fallback=FallbackRules(pause_ms=400.0))


def requests(number: int = 12, every_ms: float = 150.0, tokens: int = 20) -> list[FakeRequest]:
    random = np.random.default_rng(1)
    return [
        FakeRequest(
            f"r{n}",
            n * every_ms,
            int(random.integers(20, 600)),
            int(random.integers(2, tokens)),
            SLO,
        )
        for n in range(number)
    ]


def forecast() -> Forecast:
    """One that promises nothing in particular."""
    return Forecast(
        ttft_ms={},
        worst_tbt_ms={},
        ttft_excess_ms=-1.0,
        tbt_excess_ms=-1.0,
        ttft_worst=None,
        tbt_worst=None,
        ttft_violation=0.0,
        tbt_violation=0.0,
        horizon_ms=250.0,
        active_energy_j=1.0,
        idle_energy_j=1.0,
    )


def alternating(state: Snapshot) -> Decision:
    """A search that is always quick and never content: every decision turns every knob."""
    turn = int(state.now_ms / 100.0) % 2
    knobs = Knobs((735, 1185)[turn], (128, 512)[turn], 1 + turn, 20.0 * turn)
    return Decision(knobs, forecast(), "it is its turn", decided_ms=state.now_ms)


def content(state: Snapshot) -> Decision:
    """A search that has found what it wants."""
    return Decision(Knobs(960, 256), forecast(), "it is good", decided_ms=state.now_ms)


@dataclass
class Bench:
    """One table, one engine with and without BEAM, one GPU group to look at afterwards."""

    cost: StepCost
    limits: EngineLimits
    actuator: FakeActuator = field(default_factory=lambda: FakeActuator(gpus=8))
    controller: Controller | None = None

    def vanilla(self, served: list[FakeRequest], **engine: object) -> Ledger:
        return FakeEngine(self.cost, self.limits, served, **engine).run()  # type: ignore[arg-type]

    def run(
        self,
        served: list[FakeRequest],
        *,
        search: Callable[[Snapshot], Decision] | None = alternating,
        cost: StepCost | TableError | None = None,
        engine: dict[str, object] | None = None,
        adapter: bool = False,
        rules: SteeringRules = QUICK,
        meanwhile: Callable[[Controller, float], None] = lambda controller, now_ms: None,
        **controller: object,
    ) -> Ledger:
        """Serve under BEAM and check the two things; returns what was served."""
        fake = FakeEngine(
            self.cost,
            self.limits,
            served,
            gpu_clock_mhz=lambda: self.actuator.locked_mhz[0],
            **(engine or {}),  # type: ignore[arg-type]
        )

        visited_ms = -1.0

        def now_ms() -> float:
            nonlocal visited_ms
            new = fake.now_ms > visited_ms  # once: what is called asks for the time, too
            if self.controller is not None and self.controller.is_open and new:
                visited_ms = fake.now_ms
                meanwhile(self.controller, fake.now_ms)
            return fake.now_ms

        self.controller = Controller(
            cost or self.cost,
            self.limits,
            actuator=self.actuator,
            engine=fake if adapter else None,
            search=search,
            threads=False,
            now_ms=now_ms,
            rules=rules,
            **controller,  # type: ignore[arg-type]
        )
        with self.controller:
            ledger = fake.run(self.controller)
            self.after = self.controller.status
        plain = self.vanilla(
            served, **{k: v for k, v in (engine or {}).items() if k == "kv_blocks"}
        )
        assert ledger.outputs == plain.outputs, "the engine's tokens are unchanged"
        assert set(self.actuator.locked_mhz) == {None}, "no GPU is locked"
        assert not self.controller.orders.steering
        return ledger


@pytest.fixture
def bench(small_cost: StepCost, limits: EngineLimits) -> Bench:
    return Bench(small_cost, limits)


def test_without_faults_it_steers(bench: Bench) -> None:
    bench.run(requests())
    assert bench.after.steering
    assert bench.after.counts.decisions > 10
    assert bench.after.odd_events == bench.after.dropped_events == 0
    assert {("set", 735), ("set", 1185)} <= set(bench.actuator.calls)


class TestTables:
    """Point 4: whatever is wrong with the table, the engine keeps its own settings."""

    def test_no_table(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.run(requests(), cost=TableError("no table at x", hint="make one"), search=None)
        assert bench.after.reason.startswith("no usable table: no table at x")
        assert bench.after.counts.events > 20, "it goes on counting"
        assert bench.actuator.calls == [], "and locks nothing"
        said = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(said) == 1, "said once"
        assert bench.controller is not None
        with pytest.raises(TableError, match="no table at x"):
            bench.controller.decide(Snapshot(0.0, bench.limits, Knobs(1410, 512)))

    def test_a_load_that_the_table_does_not_cover(self, bench: Bench) -> None:
        largest = dict(bench.cost.fit.largest, decode_requests=2.0)
        narrow = replace(bench.cost, fit=replace(bench.cost.fit, largest=largest))
        crowd = [replace(r, arrival_ms=1000.0) for r in requests(8, tokens=40)]
        alone = [replace(r, request_id=f"alone{r.request_id}") for r in requests(3)]
        late = [
            replace(r, request_id=f"late{r.request_id}", arrival_ms=9000.0) for r in requests(2)
        ]
        reasons: list[str] = []

        def watch(controller: Controller, now_ms: float) -> None:
            reason = controller.status.reason
            if not reasons or reasons[-1] != reason:
                reasons.append(reason)

        bench.run([*alone, *crowd, *late], cost=narrow, meanwhile=watch)
        assert [reason[:30] for reason in reasons] == ["", "the table does not cover this ", ""]
        assert bench.after.counts.falls == 1


class TestClocks:
    """Points 1 and 2, as the controller meets them."""

    def test_a_set_that_is_accepted_and_not_applied(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(ClockSetter.__init__.__kwdefaults__, "settle_s", 0.0)
        bench.actuator = FakeActuator(stuck=ClockReading("GPU-fake-0", 1410, ("power brake",)))
        bench.run(requests())
        assert bench.after.counts.clock_failures >= 3
        assert bench.after.counts.falls >= 1

    def test_failures_enough_and_it_stays_off(self, bench: Bench) -> None:
        bench.actuator.refuse = ClockError("the driver failed")
        bench.run(requests(60))
        assert "off until asked" in bench.after.reason
        assert bench.after.counts.falls == 3, "no flapping"
        assert bench.after.counts.clock_failures == 9

    def test_asked_it_tries_again(self, bench: Bench) -> None:
        bench.actuator.refuse = ClockError("the driver failed")

        def mend(controller: Controller, now_ms: float) -> None:
            if "off until asked" in controller.status.reason:
                bench.actuator.refuse = None
                controller.resume()

        bench.run(requests(60), meanwhile=mend)
        assert bench.after.steering

    def test_one_failure_is_no_reason_to_stop(self, bench: Bench) -> None:
        def once(controller: Controller, now_ms: float) -> None:
            broken = 500.0 < now_ms < 600.0
            bench.actuator.refuse = ClockError("timeout") if broken else None

        bench.run(requests(), meanwhile=once)
        assert bench.after.counts.clock_failures > 0
        assert bench.after.steering
        assert bench.after.counts.falls == 0

    @pytest.mark.parametrize("error", [ClockPermissionError, ClockUnavailableError])
    def test_without_permission_the_other_knobs_still_turn(
        self, bench: Bench, error: type[ClockError], caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.actuator.refuse = error("you may not")
        bench.run(requests(3), search=None)
        assert bench.after.steering
        assert bench.after.counts.decisions > 3
        assert bench.after.counts.clock_failures == 1
        assert caplog.text.count("clocks stay as they are") == 1


class TestInputs:
    """Point 5: events that are late, lost, doubled, early, too many, or nonsense."""

    def test_all_cached_prompts_and_one_token_answers(self, bench: Bench) -> None:
        served = [
            FakeRequest(f"r{n}", 100.0 * n, 320, 1 + n % 2, SLO, cached_tokens=320)
            for n in range(8)
        ]
        bench.run(served)
        assert bench.after.odd_events == 0

    def test_one_stage(self, bench: Bench) -> None:
        bench.limits = replace(bench.limits, pp=1, max_steps_in_flight=1)

        def flat(state: Snapshot) -> Decision:
            return replace(
                alternating(state), knobs=replace(alternating(state).knobs, microbatches=1)
            )

        bench.run(requests(), search=flat)
        assert bench.after.steering

    def test_a_chunk_under_the_running_decodes(self, bench: Bench) -> None:
        def tiny(state: Snapshot) -> Decision:
            return Decision(Knobs(1410, 1, 4), forecast(), "tiny")

        crowd = [replace(r, arrival_ms=0.0) for r in requests(30)]
        bench.run(crowd, search=tiny)

    def test_a_prompt_over_the_models_length(self, bench: Bench) -> None:
        served = [*requests(), FakeRequest("long", 300.0, bench.limits.max_model_len, 10, SLO)]
        ledger = bench.run(served)
        assert ledger.outputs["long"] == []
        assert bench.after.odd_events == 0

    def test_no_requests_at_all(self, bench: Bench) -> None:
        bench.run([])

    def test_timestamps_that_go_backwards(self, bench: Bench) -> None:
        bench.run(
            requests(), engine={"skew_ms": lambda now_ms: now_ms - 700.0 * (int(now_ms) % 3 == 0)}
        )
        assert bench.after.counts.backward_times > 0
        assert bench.after.steering

    def test_timestamps_from_the_future(self, bench: Bench) -> None:
        seen: list[float] = []

        def note(state: Snapshot) -> Decision:
            seen.extend(state.now_ms - r.arrival_ms for r in state.waiting)
            return alternating(state)

        bench.run(requests(), search=note, engine={"skew_ms": lambda now_ms: now_ms + 1e9})
        assert min(seen) >= 0.0, "nobody arrives after now"

    @pytest.mark.parametrize("hook", ["arrival", "completion", "first_token", "step_finished"])
    def test_lost_events(self, bench: Bench, hook: str) -> None:
        lost = {f"r{n}" for n in range(0, 12, 3)} | {""}
        count = iter(range(10**6))

        def mute(name: str, request_id: str) -> bool:
            return name == hook and request_id in lost and next(count) % 2 == 0

        bench.run(requests(tokens=40), engine={"mute": mute})
        assert bench.after.counts.decisions > 10

    def test_lost_completions_are_found_with_the_engines_help(self, bench: Bench) -> None:
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

    def test_a_storm_is_taken_in_together(self, bench: Bench) -> None:
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

    def test_nonsense(self, bench: Bench) -> None:
        def nonsense(controller: Controller, now_ms: float) -> None:
            controller.arrival([], "many")  # type: ignore[arg-type]
            controller.arrival("x", None)  # type: ignore[arg-type]
            controller.arrival("y", 10, cached_tokens="all")  # type: ignore[arg-type]
            controller.step_issued(None)  # type: ignore[arg-type]
            controller.completion({})  # type: ignore[arg-type]
            controller.first_token("r0", at_ms="soon")  # type: ignore[arg-type]

        bench.run(requests(), meanwhile=nonsense)
        assert bench.after.counts.broken_events > 0
        assert bench.after.dropped_events > 0
        assert bench.after.counts.decisions > 10

    def test_events_before_and_after_its_life(self, bench: Bench) -> None:
        bench.run(requests())
        assert bench.controller is not None
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

    def test_an_unknown_class_gets_the_default(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: dict[str, Slo] = {}

        def note(state: Snapshot) -> Decision:
            seen.update({r.request_id: r.slo for r in state.waiting})
            return alternating(state)

        def visit(controller: Controller, now_ms: float) -> None:
            for name, slo in (("a", "chat"), ("b", "bulk"), ("c", None), ("d", Slo(1.0, 2.0))):
                controller.arrival(name, 10, slo=slo)

        classes = {"default": Slo(5.0, 6.0), "chat": Slo(3.0, 4.0)}
        bench.run(requests(2), search=note, meanwhile=visit, slos=classes)
        assert (seen["a"], seen["b"]) == (Slo(3.0, 4.0), Slo(5.0, 6.0))
        assert (seen["c"], seen["d"]) == (Slo(5.0, 6.0), Slo(1.0, 2.0))
        assert caplog.text.count("no SLO class 'bulk'") == 1


class TestModel:
    """Point 6: the table is not the engine."""

    def test_steps_30_percent_slower_are_learnt(self, bench: Bench) -> None:
        margins: list[float] = []

        def note(state: Snapshot) -> Decision:
            margins.append(state.correction.tbt_margin_ms)
            return content(state)

        bench.run(
            requests(120, every_ms=60.0, tokens=60),
            search=note,
            engine={"slowdown": lambda now_ms: 1.3},
        )
        assert max(margins) > 1.3 * margins[0], "margins widen at first"
        assert bench.after.correction.decode_scale == pytest.approx(1.3, rel=0.03)
        assert bench.after.steering, "and it never stopped"

    def test_the_real_search_keeps_promises_on_a_slower_engine(self, bench: Bench) -> None:
        clocks: list[int] = []

        def watch(controller: Controller, now_ms: float) -> None:
            clocks.append(controller.orders.knobs.clock_mhz)

        ledger = bench.run(
            requests(60, every_ms=200.0, tokens=80),
            search=None,
            engine={"slowdown": lambda now_ms: 1.3 if now_ms > 3000.0 else 1.0},
            meanwhile=watch,
        )
        assert bench.after.counts.falls == 0
        assert bench.after.correction.decode_scale > 1.15
        assert ledger.late_ttft == 0
        assert ledger.late_tbt / len(ledger.tbt_ms) < 0.02, "but for the moment it slowed down"
        assert min(clocks) < 1410, "and it saved energy meanwhile"

    def test_a_table_far_off_is_not_used_until_it_is_right_again(self, bench: Bench) -> None:
        reasons: list[str] = []

        def watch(controller: Controller, now_ms: float) -> None:
            reason = controller.status.reason
            if not reasons or reasons[-1] != reason:
                reasons.append(reason)

        bench.run(
            requests(150, every_ms=80.0, tokens=60),
            search=content,
            engine={"slowdown": lambda now_ms: 3.0 if now_ms < 4000.0 else 1.0},
            meanwhile=watch,
        )
        assert [reason[:31] for reason in reasons] == ["", "steps are too far from the tabl", ""]
        assert bench.after.counts.falls == 1

    def test_drift_is_said_once(
        self, bench: Bench, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        log = DecisionLog(tmp_path / "log.jsonl")
        bench.run(
            requests(120, every_ms=60.0, tokens=60),
            search=content,
            engine={"slowdown": lambda now_ms: 1.25},
            rules=replace(QUICK, calibration=CalibrationRules(drift_steps=16)),
            log=log,
        )
        kinds = [record["step"] for record in read_log(log.path) if record["kind"] == "drift"]
        assert sorted(kinds) == ["decode-only", "prefill-carrying"]
        assert caplog.text.count("drift: ") == 2


class TestEngine:
    """Point 7: the engine itself."""

    def test_a_stall_gives_the_clocks_back(self, bench: Bench) -> None:
        locked: list[tuple[float, int | None]] = []

        def watch(controller: Controller, now_ms: float) -> None:
            locked.append((now_ms, bench.actuator.locked_mhz[0]))

        bench.run(requests(20), engine={"stall_ms": (800.0, 4000.0)}, meanwhile=watch)
        assert {clock for at, clock in locked if 2000.0 < at < 4000.0} == {None}
        assert bench.after.steering, "it came back with the engine"
        assert bench.after.counts.falls == 1

    def test_a_preemption_storm(self, bench: Bench) -> None:
        ledger = bench.run(requests(16, every_ms=5.0, tokens=60), engine={"kv_blocks": 70})
        assert ledger.end_ms > 0.0
        assert bench.after.odd_events == 0

    @pytest.mark.parametrize(
        "knobs",
        [
            Knobs(1410, 4096),
            Knobs(1410, 0),
            Knobs(1410, 256, 9),
            Knobs(1410, 256, 0),
            Knobs(1410, 256, 1, -1.0),
            Knobs(1410, 256, 1, float("nan")),
        ],
    )
    def test_knobs_beyond_the_envelope_are_refused(self, bench: Bench, knobs: Knobs) -> None:
        bench.run(requests(4), search=lambda state: Decision(knobs, forecast(), "greedy"))
        assert bench.after.counts.decisions == 0
        assert bench.after.counts.failed_searches >= 3
        assert bench.after.reason.startswith("the search fails: ValueError")
        assert ("set", 1410) not in bench.actuator.calls

    def test_own_settings_beyond_the_envelope_are_a_programmers_error(self, bench: Bench) -> None:
        with pytest.raises(ValueError, match="started for"):
            Controller(bench.cost, bench.limits, own=Knobs(1410, 100_000))

    def test_an_adapter_that_fails(self, bench: Bench) -> None:
        class Deaf(FakeEngine):
            def snapshot(self) -> Snapshot:
                raise RuntimeError("busy")

            def apply(self, orders: object) -> None:
                raise RuntimeError("no")

        engine = Deaf(bench.cost, bench.limits, [])
        controller = Controller(
            bench.cost, bench.limits, engine=engine, actuator=bench.actuator,
            search=alternating, threads=False, rules=QUICK,
        )  # fmt: skip
        with controller:
            for _ in range(3):
                controller.arrival("a", 10)
                controller.advance()
        assert set(bench.actuator.locked_mhz) == {None}

    def test_async_scheduling_has_one_step_more_in_flight(self, bench: Bench) -> None:
        bench.limits = replace(bench.limits, max_steps_in_flight=bench.limits.pp + 1)
        bench.run(requests())
        assert bench.after.odd_events == 0


class TestSearch:
    """The search itself fails, or takes too long."""

    def test_it_raises(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        def broken(state: Snapshot) -> Decision:
            raise ZeroDivisionError("a bug")

        bench.run(requests(60), search=broken)
        assert "off until asked" in bench.after.reason
        assert bench.after.counts.falls == 3
        assert bench.actuator.locked_mhz[0] is None

    def test_a_decision_that_comes_too_late_is_dropped(self, bench: Bench) -> None:
        lag_ms: Iterator[float] = iter([0.0, 50.0, 0.0, 50.0] * 1000)
        knobs = [Knobs(735, 128), Knobs(960, 256)]
        made: list[tuple[Knobs, float]] = []
        behind = 0.0

        def slow(state: Snapshot) -> Decision:
            nonlocal behind
            behind = next(lag_ms)
            made.append((knobs[behind > 0.0], behind))
            return Decision(made[-1][0], forecast(), "")

        time_ms = 0.0
        controller = Controller(
            bench.cost, bench.limits, actuator=bench.actuator, search=slow, threads=False,
            now_ms=lambda: time_ms + behind,
        )  # fmt: skip
        with controller:
            for round_ in range(20):
                time_ms, behind = round_ * 100.0, 0.0
                controller.arrival(f"r{round_}", 10)
                controller.advance()
            assert {kept for kept, lag in made if lag} == {knobs[1]}
            assert controller.orders.knobs == knobs[0]
            assert controller.status.counts.late_decisions == 10
            assert controller.status.counts.decisions == 10
        assert set(bench.actuator.locked_mhz) == {None}
