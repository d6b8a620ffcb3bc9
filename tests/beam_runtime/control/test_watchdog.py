"""A search, or an engine's adapter, that does not come back keeps nobody's clocks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.control.orders import Orders
from beam_runtime.control.watchdog import Watchdog
from beam_runtime.errors import (
    ClockError,
    ClockHangsError,
    ClockLostError,
    ClockNotAppliedError,
    ClockPermissionError,
    ClockUnavailableError,
)
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing import FakeActuator
from beam_runtime.types import Decision, EngineLimits, Forecast, Knobs, Snapshot

NOTHING = Forecast({}, {}, -1.0, -1.0, None, None, 0.0, 0.0, 250.0, 1.0, 1.0)


def wait_for(what: Callable[[], bool], seconds: float = 15.0) -> None:
    end_s = time.monotonic() + seconds
    while not what() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert what()


class Hanging:
    """A search, and an adapter, that hang once when they are told to."""

    snapshots = False

    def __init__(self) -> None:
        self.hang, self.go = threading.Event(), threading.Event()

    def block(self) -> None:
        if self.hang.is_set() and not self.go.is_set():
            self.go.wait(60.0)

    def search(self, state: Snapshot) -> Decision:
        self.block()
        return Decision(Knobs(960, 256), NOTHING, "")

    def apply(self, orders: Orders) -> None:
        if orders.steering:
            self.block()

    def snapshot(self) -> Snapshot:
        if self.snapshots:
            self.block()
        raise LookupError("it has none")


@pytest.mark.parametrize("who", ["search", "adapter", "snapshot"])
def test_what_hangs_is_stepped_around_and_taken_up_again(
    small_cost: StepCost, limits: EngineLimits, who: str
) -> None:
    actuator, one = FakeActuator(4), Hanging()
    search = one.search if who == "search" else lambda state: Decision(Knobs(960, 256), NOTHING, "")
    one.snapshots = who == "snapshot"
    if one.snapshots:
        one.apply = lambda orders: None  # type: ignore[method-assign]
    with Controller(
        small_cost, limits, actuator=actuator, search=search,
        engine=None if who == "search" else one,
    ) as beam:  # fmt: skip
        beam.arrival("a", 100)
        wait_for(lambda: set(actuator.locked_mhz) == {960})
        one.hang.set()
        beam.arrival("b", 100)
        wait_for(lambda: set(actuator.locked_mhz) == {None})
        wait_for(lambda: not beam.orders.steering)
        assert "has not come back" in beam.status.reason
        assert beam.orders.knobs == Knobs(1410, 512)
        one.go.set()
        wait_for(lambda: not beam.status.reason)
        beam.arrival("c", 100)
        wait_for(lambda: beam.orders.steering and set(actuator.locked_mhz) == {960})
    assert set(actuator.locked_mhz) == {None}


class Exits(FakeActuator):
    """A user's actuator whose author took it for a program of its own."""

    def __init__(self, gpus: int) -> None:
        super().__init__(gpus)
        self.exits = False

    def set(self, clock_mhz: int) -> None:
        if self.exits:
            raise SystemExit(3)
        super().set(clock_mhz)


def test_an_actuator_that_exits_ends_no_thread(small_cost: StepCost, limits: EngineLimits) -> None:
    actuator, clocks = Exits(8), iter([735, 960, 735, 960, 735, 960])

    def search(state: Snapshot) -> Decision:
        return Decision(Knobs(next(clocks, 735), 256), NOTHING, "")

    with Controller(small_cost, limits, actuator=actuator, search=search) as beam:
        beam.arrival("a", 100)
        wait_for(lambda: set(actuator.locked_mhz) != {None})
        actuator.exits = True
        for number in range(5):
            failures = beam.status.counts.clock_failures
            beam.arrival(f"r{number}", 100)
            wait_for(
                lambda failures=failures: (  # type: ignore[misc]
                    not beam.orders.steering or beam.status.counts.clock_failures > failures
                )
            )
        wait_for(lambda: not beam.orders.steering)
        assert beam.status.reason == "clocks do not follow: SystemExit: 3"
        wait_for(lambda: set(actuator.locked_mhz) == {None})
    assert set(actuator.locked_mhz) == {None}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), ValueError()])
def test_a_search_that_raises_anything_ends_no_thread(
    small_cost: StepCost, limits: EngineLimits, error: BaseException
) -> None:
    actuator, raises = FakeActuator(8), threading.Event()

    def search(state: Snapshot) -> Decision:
        if raises.is_set():
            raise error
        return Decision(Knobs(960, 256), NOTHING, "")

    with Controller(small_cost, limits, actuator=actuator, search=search) as beam:
        beam.arrival("a", 100)
        wait_for(lambda: set(actuator.locked_mhz) == {960})
        raises.set()
        wait_for(lambda: not beam.orders.steering)
        wait_for(lambda: set(actuator.locked_mhz) == {None})
        assert beam.status.reason.startswith("the search fails")
        events = beam.status.counts.events
        beam.arrival("b", 100)
        wait_for(lambda: beam.status.counts.events > events)


def test_the_watch_goes_on_whatever_an_adapter_does() -> None:
    told: list[float] = []

    def hung(lasted_s: float) -> None:
        told.append(lasted_s)
        raise SystemExit(3)

    watchdog = Watchdog(hung)
    watchdog.start()
    for turn in (1, 2):
        with watchdog:
            wait_for(lambda turn=turn: len(told) == turn)  # type: ignore[misc]
    watchdog.close()


@contextmanager
def refused(cost: StepCost, limits: EngineLimits, error: ClockError) -> Iterator[Controller]:
    """A controller after ten arrivals, or as many as it bore clocks that are refused so."""
    actuator, now = FakeActuator(8), [0.0]
    actuator.refuse = error
    with Controller(
        cost, limits, actuator=actuator, threads=False, now_ms=lambda: now[0],
        search=lambda state: Decision(Knobs(960, 256), NOTHING, ""),
    ) as beam:  # fmt: skip
        for number in range(10):
            if beam.status.reason:
                break
            now[0] += 10.0
            beam.arrival(f"r{number}", 100)
            beam.advance()
        yield beam


@pytest.mark.parametrize(
    ("error", "failures", "reason"),
    [
        (ClockHangsError("it does not return"), 1, "clocks do not follow: it does not return"),
        (ClockLostError("they are another's"), 1, "clocks do not follow: they are another's"),
        (ClockNotAppliedError("not applied"), 3, "clocks do not follow: not applied"),
        (ClockError("the driver failed"), 3, "clocks do not follow: the driver failed"),
    ],
)
def test_what_is_borne_goes_by_the_kind_of_error(
    small_cost: StepCost, limits: EngineLimits, error: ClockError, failures: int, reason: str
) -> None:
    with refused(small_cost, limits, error) as beam:
        assert beam.status.reason == reason
        assert beam.status.counts.clock_failures == failures
        assert not beam.orders.steering


@pytest.mark.parametrize("error", [ClockPermissionError("no"), ClockUnavailableError("no")])
def test_where_clocks_cannot_be_set_the_other_knobs_turn(
    small_cost: StepCost, limits: EngineLimits, error: ClockError
) -> None:
    with refused(small_cost, limits, error) as beam:
        assert beam.orders.steering
        assert beam.status.counts.clock_failures == 1


def test_a_backlog_while_a_search_hangs_is_bounded_and_counted(
    small_cost: StepCost, limits: EngineLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_runtime.control.controller.MAX_BACKLOG", 100)
    one = Hanging()
    with Controller(small_cost, limits, search=one.search) as beam:
        beam.arrival("a", 100)
        wait_for(lambda: beam.orders.steering)
        one.hang.set()
        wait_for(lambda: not beam.orders.steering)
        before = beam.status.counts.events
        for number in range(1000):
            beam.arrival(f"r{number}", 100)
        wait_for(lambda: beam.status.dropped_events == 900)
        one.go.set()
        wait_for(lambda: beam.status.counts.events == before + 100)
