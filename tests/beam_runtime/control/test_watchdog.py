"""A search, or an engine's adapter, that does not come back keeps nobody's clocks."""

import threading
import time
from collections.abc import Callable

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.control.orders import Orders
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
        raise LookupError("it has none")


@pytest.mark.parametrize("who", ["search", "adapter"])
def test_what_hangs_is_stepped_around_and_taken_up_again(
    small_cost: StepCost, limits: EngineLimits, who: str
) -> None:
    actuator, one = FakeActuator(4), Hanging()
    search = one.search if who == "search" else lambda state: Decision(Knobs(960, 256), NOTHING, "")
    with Controller(
        small_cost, limits, actuator=actuator, search=search,
        engine=one if who == "adapter" else None,
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
