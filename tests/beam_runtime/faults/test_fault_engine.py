"""Point 7: the engine itself; and a search that fails or takes too long."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_bench import Bench, content, forecast, requests, wait_for

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.control.orders import Orders
from beam_runtime.types import Decision, Knobs, Snapshot


def test_a_stall_gives_the_clocks_back(bench: Bench) -> None:
    locked: list[tuple[float, int | None]] = []

    def watch(controller: Controller, now_ms: float) -> None:
        locked.append((now_ms, bench.actuator.locked_mhz[0]))

    bench.run(requests(20), engine={"stall_ms": (800.0, 4000.0)}, meanwhile=watch)
    assert {clock for at, clock in locked if 2000.0 < at < 4000.0} == {None}
    assert bench.after.steering, "it came back with the engine"
    assert bench.after.counts.falls == 1


def test_a_preemption_storm(bench: Bench) -> None:
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
def test_knobs_beyond_the_envelope_are_refused(bench: Bench, knobs: Knobs) -> None:
    bench.run(requests(4), search=lambda state: Decision(knobs, forecast(), "greedy"))
    assert bench.after.counts.decisions == 0
    assert bench.after.counts.failed_searches >= 3
    assert bench.after.reason.startswith("the search fails: ValueError")
    assert ("set", 1410) not in bench.actuator.calls


def test_own_settings_beyond_the_envelope_are_a_programmers_error(bench: Bench) -> None:
    with pytest.raises(ValueError, match="started for"):
        Controller(bench.cost, bench.limits, own=Knobs(1410, 100_000))


class Deaf:
    """An adapter that can give no snapshot; it takes orders, or it does not."""

    def __init__(self, *, obeys: bool) -> None:
        self.obeys = obeys

    def snapshot(self) -> Snapshot:
        raise RuntimeError("busy")

    def apply(self, orders: Orders) -> None:
        if not self.obeys:
            raise RuntimeError("no")


def test_an_adapter_that_gives_no_snapshot(bench: Bench) -> None:
    bench.run(requests(), adapter=Deaf(obeys=True))
    assert bench.after.steering, "events tell enough"


def test_an_adapter_that_refuses_orders(bench: Bench) -> None:
    bench.run(requests(60), adapter=Deaf(obeys=False))
    reason = "the engine refuses orders (off until asked): RuntimeError: no"
    assert bench.after.reason == reason
    assert bench.after.counts.falls == 3


def test_an_adapter_that_refuses_now_and_then(bench: Bench) -> None:
    class Moody(Deaf):
        def apply(self, orders: Orders) -> None:
            self.obeys = not self.obeys
            super().apply(orders)

    bench.run(requests(), adapter=Moody(obeys=True))
    assert bench.after.steering
    assert bench.after.counts.falls == 0


def test_async_scheduling_has_one_step_more_in_flight(bench: Bench) -> None:
    bench.limits = replace(bench.limits, max_steps_in_flight=bench.limits.pp + 1)
    bench.run(requests())
    assert bench.after.odd_events == 0


def test_it_raises(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(state: Snapshot) -> Decision:
        raise ZeroDivisionError("a bug")

    bench.run(requests(60), search=broken)
    assert "off until asked" in bench.after.reason
    assert bench.after.counts.falls == 3
    assert bench.actuator.locked_mhz[0] is None


def test_a_decision_that_comes_too_late_is_dropped(bench: Bench) -> None:
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


class Ends:
    """An adapter that does something else than to take the engine's own settings back."""

    def __init__(self, ending: Callable[[], None]) -> None:
        self.ending = ending
        self.closing = False

    def snapshot(self) -> Snapshot:
        raise LookupError("told by events alone")

    def apply(self, orders: Orders) -> None:
        if self.closing:
            self.ending()


def _raises(error: type[BaseException]) -> Callable[[], None]:
    def ending() -> None:
        raise error("not now")

    return ending


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_adapter_that_raises_at_the_end_keeps_no_gpu_locked(
    bench: Bench, error: type[BaseException], tmp_path: Path
) -> None:
    adapter, log = Ends(_raises(error)), DecisionLog(tmp_path / "log.jsonl")
    controller = Controller(
        bench.cost, bench.limits, actuator=bench.actuator, engine=adapter, search=content,
        log=log, threads=False,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt, SystemExit, GeneratorExit), controller:
        controller.arrival("r1", 100)
        controller.advance()
        assert set(bench.locked_mhz) == {960}
        adapter.closing = True
    assert set(bench.locked_mhz) == {None}
    assert not controller.orders.steering
    assert [*read_log(log.path)][-1]["kind"] == "stop"


def test_an_adapter_that_hangs_at_the_end_keeps_no_gpu_locked(bench: Bench) -> None:
    over = threading.Event()
    adapter = Ends(lambda: over.wait() and None)
    controller = Controller(
        bench.cost, bench.limits, actuator=bench.actuator, engine=adapter, search=content,
    )  # fmt: skip
    controller.__enter__()
    controller.arrival("r1", 100)
    wait_for(lambda: set(bench.locked_mhz) == {960})
    adapter.closing = True
    closing = threading.Thread(target=controller.close, daemon=True)
    closing.start()
    wait_for(lambda: set(bench.locked_mhz) == {None})
    assert not controller.orders.steering, "whoever reads them has the engine's own"
    over.set()
    closing.join()
