"""The setter's thread: the last wish wins, every outcome is told, nothing stays locked."""

import queue
import threading

import pytest

from beam_runtime.clocks.base import ClockReading
from beam_runtime.clocks.setter import ClockSetter, SetOutcome
from beam_runtime.errors import ClockError
from beam_runtime.testing.actuator import FakeActuator

PATIENCE_S = 20.0


class Gate(FakeActuator):
    """Blocks every set until it is let through, like a slow driver."""

    def __init__(self) -> None:
        super().__init__(gpus=2)
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def set(self, clock_mhz: int) -> None:
        self.entered.release()
        assert self.go.acquire(timeout=PATIENCE_S)
        super().set(clock_mhz)


def test_the_last_wish_wins() -> None:
    actuator, outcomes = Gate(), queue.SimpleQueue[SetOutcome]()
    setter = ClockSetter(actuator, outcomes.put)
    setter.open()
    setter.want(1005)
    assert actuator.entered.acquire(timeout=PATIENCE_S)
    for clock_mhz in (1020, 1035, 1200):  # overtaken while the first set is under way
        setter.want(clock_mhz)
    actuator.go.release(2)
    assert [outcomes.get(timeout=PATIENCE_S) for _ in range(2)] == [
        SetOutcome(1005),
        SetOutcome(1200),
    ]
    setter.close()
    assert actuator.calls == [("set", 1005), ("set", 1200), ("release", 0)]
    assert actuator.locked_mhz == [None, None]


@pytest.mark.parametrize("threaded", [True, False])
def test_a_wish_for_release_releases(threaded: bool) -> None:
    actuator, outcomes = FakeActuator(), queue.SimpleQueue[SetOutcome]()
    setter = ClockSetter(actuator, outcomes.put, threaded=threaded)
    setter.open()
    setter.want(1005)
    assert outcomes.get(timeout=PATIENCE_S) == SetOutcome(1005)
    assert actuator.locked_mhz == [1005]
    setter.want(None)
    assert outcomes.get(timeout=PATIENCE_S) == SetOutcome(None)
    assert actuator.locked_mhz == [None]
    setter.close()


class Buggy(FakeActuator):
    def set(self, clock_mhz: int) -> None:
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("actuator", "words"),
    [
        (FakeActuator(stuck=ClockReading("GPU-fake-0", 1410, ("power brake",))), "not applied"),
        (Buggy(), "ZeroDivisionError"),
    ],
)
def test_a_failure_is_told_and_the_thread_goes_on(actuator: FakeActuator, words: str) -> None:
    outcomes = queue.SimpleQueue[SetOutcome]()
    setter = ClockSetter(actuator, outcomes.put, settle_s=0.0)
    setter.open()
    for _ in range(2):
        setter.want(1005)
        outcome = outcomes.get(timeout=PATIENCE_S)
        assert isinstance(outcome.error, ClockError)
        assert words in str(outcome.error)
        assert actuator.locked_mhz == [None]
    setter.close()


def test_closing_forgets_what_was_still_wished_for_and_releases() -> None:
    actuator, outcomes = Gate(), queue.SimpleQueue[SetOutcome]()
    setter = ClockSetter(actuator, outcomes.put)
    setter.open()
    setter.want(1005)
    assert actuator.entered.acquire(timeout=PATIENCE_S)
    setter.want(1200)
    closer = threading.Thread(target=setter.close)
    closer.start()
    actuator.go.release()
    closer.join()
    assert actuator.calls == [("set", 1005), ("release", 0)]
    assert actuator.locked_mhz == [None, None]


def test_a_driver_that_hangs_does_not_hang_the_engines_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    actuator = Gate()
    setter = ClockSetter(actuator, lambda outcome: None)
    setter.open()
    setter.want(1005)
    assert actuator.entered.acquire(timeout=PATIENCE_S)
    setter.close(timeout_s=0.01)
    assert "does not return" in caplog.text
    actuator.go.release()
    setter.close()
    assert actuator.locked_mhz == [None, None]
