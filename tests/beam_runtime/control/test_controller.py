"""The controller with its threads, in real time."""

import os
import threading
from pathlib import Path

import pytest
from fault_bench import PATIENCE_S, wait_for
from plain_emulator import forecast

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.control.orders import Orders
from beam_runtime.control.steering_rules import SteeringRules
from beam_runtime.errors import ClockError
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.types import (
    Decision,
    EngineLimits,
    Follows,
    Forecast,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
)


def by_load(state: Snapshot) -> Decision:
    """One clock per number of waiting requests, so that a test can see what was known."""
    nothing = Forecast(
        ttft_ms={r.request_id: 900.0 for r in state.waiting},
        worst_tbt_ms={},
        ttft_excess_ms=-100.0,
        tbt_excess_ms=-float("inf"),
        ttft_worst=None,
        tbt_worst=None,
        broken=0.0,
        horizon_ms=250.0,
        active_energy_j=5.0,
        idle_energy_j=1.0,
    )
    clock_mhz = (510, 735, 960, 1185)[min(3, len(state.waiting))]
    return Decision(Knobs(clock_mhz, 256), nothing, "by load", decided_ms=state.now_ms)


@pytest.fixture
def actuator() -> FakeActuator:
    return FakeActuator(gpus=8)


@pytest.fixture
def controller(small_cost: StepCost, limits: EngineLimits, actuator: FakeActuator) -> Controller:
    return Controller(small_cost, limits, actuator=actuator, search=by_load, follows=Follows.STEPS)


def test_events_become_orders_and_clocks(controller: Controller, actuator: FakeActuator) -> None:
    assert controller.orders.knobs == Knobs(1410, 512), "usable before anything has happened"
    assert controller.orders.rules == Rules.vanilla()
    with controller as beam:
        wait_for(lambda: beam.orders.knobs.clock_mhz == 510)
        beam.arrival("a", 100)
        wait_for(lambda: beam.orders.knobs.clock_mhz == 735)
        assert beam.orders.rules == Rules()
        beam.arrival("b", 100)
        wait_for(lambda: beam.orders.knobs.clock_mhz == 960)
        beam.step_issued([], [("a", 100), ("b", 100)])
        beam.step_finished()
        beam.first_token("a")
        beam.first_token("b")
        wait_for(lambda: actuator.locked_mhz == [510] * 8)
        beam.completion("a")
        beam.abort("b")
        wait_for(lambda: beam.status.counts.events >= 8)
        assert beam.status.steering
    assert actuator.locked_mhz == [None] * 8
    assert controller.orders.knobs == Knobs(1410, 512)
    assert controller.orders.why == "BEAM has been stopped"


def test_it_leaves_no_thread_behind(controller: Controller, actuator: FakeActuator) -> None:
    def ours() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread not in before}

    before = threading.enumerate()
    with controller:
        wait_for(lambda: actuator.locked_mhz == [510] * 8)  # the driver is called on its own
        # One hears of signals, where no test before this one left a handler behind.
        assert ours() - {"beam-signals"} == {
            "beam-clocks", "beam-driver", "beam-search", "beam-watchdog",
        }  # fmt: skip
    wait_for(lambda: not ours())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_way_out_of_the_block_gives_everything_back(
    controller: Controller, actuator: FakeActuator, error: type[BaseException]
) -> None:
    with pytest.raises(error), controller as beam:
        beam.arrival("a", 100)
        wait_for(lambda: actuator.locked_mhz == [735] * 8)
        raise error
    assert actuator.locked_mhz == [None] * 8


def test_a_storm_from_many_threads_is_taken_in_whole(controller: Controller) -> None:
    def storm(thread: int) -> None:
        for number in range(500):
            controller.arrival(f"{thread}/{number}", 100)
            controller.completion(f"{thread}/{number}")

    with controller:
        threads = [threading.Thread(target=storm, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: controller.status.counts.events >= 4000)
        status = controller.status
        assert status.dropped_events == status.odd_events == 0
        assert status.counts.decisions < 4000 / 4, "events are taken in together"


def test_deciding_is_a_pure_function(controller: Controller, limits: EngineLimits) -> None:
    state = Snapshot(0.0, limits, Knobs(1410, 512), stage_free_ms=(0.0,) * 4)
    before = controller.status
    assert controller.decide(state) == controller.decide(state)
    assert controller.status == before
    assert not controller.orders.steering


def test_an_adapter_gets_its_orders(small_cost: StepCost, limits: EngineLimits) -> None:
    got: list[Orders] = []

    class Engine:
        def snapshot(self) -> Snapshot:
            return Snapshot(0.0, limits, Knobs(1410, 512))

        def apply(self, orders: Orders) -> None:
            got.append(orders)

    with Controller(small_cost, limits, engine=Engine(), search=by_load):
        wait_for(lambda: bool(got))
    assert [orders.steering for orders in got][-2:] == [True, False]
    assert [orders.number for orders in got] == sorted({orders.number for orders in got})


def test_a_bug_in_the_loop_is_survived(
    controller: Controller, actuator: FakeActuator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with controller as beam:
        wait_for(lambda: beam.orders.steering)

        def bug(now_ms: float) -> None:
            raise AttributeError("typo")

        monkeypatch.setattr(beam._steering, "_look_after", bug)
        for number in range(5):
            seen = beam.status.counts.events
            beam.arrival(f"r{number}", 100)
            wait_for(lambda seen=seen: beam.status.counts.events > seen)  # type: ignore[misc]
        wait_for(lambda: not beam.orders.steering)
        assert "a bug in BEAM" in beam.status.reason
        wait_for(lambda: actuator.locked_mhz == [None] * 8)
    assert actuator.locked_mhz == [None] * 8


def test_decisions_are_logged_and_read_again(
    small_cost: StepCost, limits: EngineLimits, tmp_path: Path
) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    with Controller(small_cost, limits, log=log, search=by_load) as beam:
        beam.arrival("a", 100)
        wait_for(lambda: beam.orders.decision is not None and beam.status.counts.events == 1)
        wait_for(lambda: "a" in beam.orders.decision.forecast.ttft_ms)  # type: ignore[union-attr]
        beam.step_issued([], [("a", 100)])
        beam.step_finished()
        beam.first_token("a")
        wait_for(lambda: beam.status.counts.events == 4)
    records = list(read_log(log.path))
    assert [record["kind"] for record in records][:1] == ["start"]
    assert [record["kind"] for record in records][-1:] == ["stop"]
    assert {"decision", "first_token"} <= {record["kind"] for record in records}
    assert log.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_no_controller(controller: Controller, actuator: FakeActuator) -> None:
    with controller as beam:
        beam.arrival("a", 100)
        wait_for(lambda: actuator.locked_mhz == [735] * 8)
        child = os.fork()
        if child == 0:
            beam.arrival("b", 100)
            beam.close()
            left_alone = actuator.locked_mhz == [735] * 8 and beam._dropped == 1
            os._exit(0 if left_alone else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert actuator.locked_mhz == [735] * 8
        beam.arrival("b", 100)
        wait_for(lambda: actuator.locked_mhz == [960] * 8)
    assert actuator.locked_mhz == [None] * 8


def test_the_error_of_a_refused_clock_reaches_the_status(
    controller: Controller, actuator: FakeActuator
) -> None:
    actuator.refuse = ClockError("the driver failed")
    with controller as beam:
        for number in range(4):
            failures = beam.status.counts.clock_failures
            beam.arrival(f"r{number}", 100)
            wait_for(
                lambda failures=failures: (  # type: ignore[misc]
                    beam.status.counts.clock_failures > failures or not beam.orders.steering
                )
            )
        wait_for(lambda: beam.status.reason == "clocks do not follow: the driver failed")
    assert actuator.locked_mhz == [None] * 8


def test_asked_to_observe_it_gives_everything_back_and_goes_on_deciding(
    controller: Controller, actuator: FakeActuator
) -> None:
    with controller as beam:
        beam.arrival("a", 100)
        wait_for(lambda: actuator.locked_mhz == [735] * 8)
        beam.observe()
        wait_for(lambda: actuator.locked_mhz == [None] * 8)
        decisions, calls = beam.status.counts.decisions, len(actuator.calls)
        beam.arrival("b", 100)
        wait_for(lambda: beam.status.counts.decisions > decisions + 1)
        orders = beam.orders
        assert (orders.knobs, orders.rules, orders.steering) == (
            Knobs(1410, 512),
            Rules.vanilla(),
            False,
        )
        assert orders.decision is not None
        assert orders.decision.knobs.clock_mhz == 960, "it says what it would have done"
        assert "set" not in dict(actuator.calls[calls:])
        assert beam.status.reason == ""
        beam.steer()
        wait_for(lambda: actuator.locked_mhz == [960] * 8)
        assert beam.orders.steering
    assert actuator.locked_mhz == [None] * 8


@pytest.mark.usefixtures("compiled")
def test_an_observer_looks_less_often(
    small_cost: StepCost, limits: EngineLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses_s.append(timeout)
            return super().wait(0.001)

    beam = Controller(small_cost, limits, search=by_load)
    monkeypatch.setattr(beam, "_closing", Closing())
    rules = SteeringRules()
    with beam:
        wait_for(lambda: pauses_s[-1:] == [rules.least_gap_ms / 1e3])
        beam.observe()
        wait_for(lambda: pauses_s[-1:] == [rules.observing_gap_ms / 1e3])
        beam.steer()
        wait_for(lambda: pauses_s[-1:] == [rules.least_gap_ms / 1e3])


def test_an_observer_predicts_the_engine_s_own_settings(
    small_cost: StepCost, limits: EngineLimits, actuator: FakeActuator, tmp_path: Path
) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    with Controller(small_cost, limits, actuator=actuator, log=log, observing=True) as beam:
        wait_for(lambda: not beam.warming_up)  # else it may have waited past its SLO by then
        beam.arrival("a", 3000)
        wait_for(lambda: beam.orders.expected is not None and "a" in beam.orders.expected.ttft_ms)
        expected, decision = beam.orders.expected, beam.orders.decision
        assert expected is not None
        assert decision is not None
        own = forecast(
            Snapshot(0.0, limits, Knobs(1410, 512), waiting=(RequestState("a", 3000, 0.0),)),
            Knobs(1410, 512), small_cost, rules=Rules.vanilla(),
        )  # fmt: skip
        # It had waited a few milliseconds by then, and no other knob or rule was at work.
        assert 0.0 <= expected.ttft_ms["a"] - own.ttft_ms["a"] < PATIENCE_S * 1e3
        assert decision.forecast.ttft_ms["a"] > expected.ttft_ms["a"], (
            "it would save, and take longer"
        )
    assert "set" not in dict(actuator.calls)
    decided = [record for record in read_log(log.path) if record["kind"] == "decision"]
    assert all("own" in record for record in decided)


def test_an_observer_decides_less_often_than_it_predicts(
    small_cost: StepCost, limits: EngineLimits, tmp_path: Path
) -> None:
    now_ms = [0.0]
    log = DecisionLog(tmp_path / "decisions.jsonl")
    with Controller(
        small_cost, limits, log=log, observing=True, threads=False, now_ms=lambda: now_ms[0]
    ) as beam:

        def foretold(name: str, at_ms: float) -> tuple[set[str], set[str], int]:
            now_ms[0] = at_ms
            beam.arrival(name, 300)
            orders = beam.advance()
            assert orders.expected is not None
            assert orders.decision is not None
            decided = set(orders.decision.forecast.ttft_ms)
            return set(orders.expected.ttft_ms), decided, beam.status.counts.decisions

        assert foretold("a", 0.0) == ({"a"}, {"a"}, 1)
        assert foretold("b", 100.0) == ({"a", "b"}, {"a"}, 1)
        assert foretold("c", 499.0) == ({"a", "b", "c"}, {"a"}, 1)
        assert foretold("d", 500.0 + 5.0) == ({"a", "b", "c", "d"}, {"a", "b", "c", "d"}, 2)
        # Forecasts follow what happens to others, too.
        now_ms[0] = 550.0
        beam.completion("a")
        assert "a" not in beam.advance().expected.ttft_ms  # type: ignore[union-attr]
        beam.steer()
        assert foretold("e", 600.0)[2] == 3
        assert beam.orders.steering
    assert len([r for r in read_log(log.path) if r["kind"] == "decision"]) == 3


def test_last_words_are_written_at_once_and_only_repeated_where_more_has_happened(
    small_cost: StepCost, limits: EngineLimits, tmp_path: Path
) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")

    def stops() -> list[str]:
        return [r["why"] for r in read_log(log.path) if r["kind"] == "stop"]

    with Controller(small_cost, limits, log=log, search=by_load, threads=False) as beam:
        beam.arrival("a", 100)
        beam.advance()
        beam.last_words("SIGTERM")
        assert stops() == ["SIGTERM"]
    assert stops() == ["SIGTERM"]

    with Controller(small_cost, limits, log=DecisionLog(log.path), search=by_load) as beam:
        beam.last_words("SIGTERM")
        beam.arrival("a", 100)
        wait_for(lambda: beam.status.counts.events > 0)
    assert stops() == ["SIGTERM", "SIGTERM", "closed"]


def test_a_promise_that_no_setting_keeps_leaves_the_engine_its_own_settings(
    small_cost: StepCost, limits: EngineLimits, actuator: FakeActuator, compiled: None
) -> None:
    slos = {"default": Slo(1000.0, 5.0)}
    with Controller(small_cost, limits, actuator=actuator, slos=slos) as beam:
        wait_for(lambda: "no setting keeps the promise" in beam.status.reason)
        assert "promised are 5 ms" in beam.status.reason
        beam.arrival("a", 100)
        wait_for(lambda: beam.status.counts.events >= 1)
        assert beam.orders.rules == Rules.vanilla()
        assert beam.orders.knobs == Knobs(1410, 512)
        assert actuator.locked_mhz == [None] * 8
        beam.promise(Slo(1000.0, 200.0))
        beam.resume()
        wait_for(lambda: beam.status.steering)
