"""Driver calls that do not return keep nobody waiting, and a machine without threads says so."""

import threading

import pytest

from beam_runtime.clocks import calls
from beam_runtime.clocks.calls import DriverCalls, within
from beam_runtime.errors import ClockError, ClockHangsError


def test_what_returns_is_returned_and_what_raises_raises() -> None:
    assert within(20.0, lambda: 5) == 5
    with pytest.raises(KeyError):
        within(20.0, lambda: {}["x"])


def test_what_does_not_return_is_left_behind() -> None:
    over = threading.Event()
    with pytest.raises(ClockHangsError, match="does not return"):
        within(0.05, over.wait)
    over.set()


def test_without_a_thread_nothing_is_called_and_the_next_try_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    called: list[int] = []
    driver = DriverCalls()
    with monkeypatch.context() as broken:
        broken.setattr(calls.threading.Thread, "start", none_left)
        with pytest.raises(ClockError, match="cannot be called"):
            driver.run(lambda: called.append(1), 20.0)
    assert called == []
    driver.run(lambda: called.append(2), 20.0)
    assert called == [2]
    driver.close()
