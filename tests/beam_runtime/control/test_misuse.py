"""What an engine's author gets wrong is said where it is written, and costs no request."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.control.resources import named_gpus
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.clock import FakeClock
from beam_runtime.types import EngineLimits, Slo


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def beam(small_cost: StepCost, limits: EngineLimits, clock: FakeClock) -> Controller:
    return Controller(small_cost, limits, threads=False, now_ms=clock)


@pytest.mark.parametrize("odd", [None, {"ttft_ms": 500}, "batch", 500])
def test_a_promise_that_is_none_is_refused_and_changes_nothing(
    beam: Controller, clock: FakeClock, odd: Any
) -> None:
    """It was taken, and every request after it that named no SLO was lost to BEAM."""
    with beam:
        with pytest.raises(TypeError, match="Slo"):
            beam.promise(odd)
        beam.arrival("r1", 300)
        clock.advance(10.0)
        assert beam.advance().steering
        assert beam.status.counts.broken_events == 0


@pytest.mark.parametrize(
    "odd", [[Slo()], Slo(), {"default": None}, {"a": {"ttft_ms": 5}}, {5: Slo()}]
)
def test_classes_are_slos_by_name(small_cost: StepCost, limits: EngineLimits, odd: Any) -> None:
    with pytest.raises(TypeError, match="slos"):
        Controller(small_cost, limits, slos=odd, threads=False)


@pytest.mark.parametrize("odd", [{"ttft_ms": 5}, [], (1, 2), 5, object()])
def test_a_request_whose_slo_is_none_gets_the_default(
    beam: Controller, clock: FakeClock, odd: Any
) -> None:
    with beam:
        beam.arrival("r1", 300, slo=odd)
        clock.advance(10.0)
        orders = beam.advance()
    assert orders.expected is not None
    assert list(orders.expected.ttft_ms) == ["r1"]
    assert beam.status.counts.unknown_classes == 1


def test_a_controller_is_entered_once(
    small_cost: StepCost, limits: EngineLimits, clock: FakeClock
) -> None:
    """An engine that restarts makes another; this one has given its clocks back for good."""
    gpus = FakeActuator(gpus=8)
    beam = Controller(small_cost, limits, actuator=gpus, threads=False, now_ms=clock)
    with beam:
        with pytest.raises(RuntimeError, match="make another"):
            beam.__enter__()
        beam.arrival("r1", 300)
        clock.advance(10.0)
        assert beam.advance().steering, "the one that is open goes on"
    with pytest.raises(RuntimeError, match="make another"):
        beam.__enter__()
    assert not beam.is_open
    assert gpus.locked_mhz == [None] * 8


def test_gpus_may_come_from_numpy() -> None:
    named = named_gpus(np.arange(3))  # type: ignore[arg-type]
    assert named == (0, 1, 2)
    assert {type(gpu) for gpu in named} == {int}
    assert named_gpus(["GPU-1", 7, "node2:4938/3"]) == ("GPU-1", 7, "node2:4938/3")


@pytest.mark.parametrize("odd", ["GPU-123", "0,1", 0, None, [1.5], [None], [b"GPU-1"]])
def test_gpus_are_a_list_of_names(tmp_path: Path, odd: Any) -> None:
    """One GPU's name was taken letter by letter: 7 GPUs are named for a replica of 1."""
    with pytest.raises(TypeError, match="NVML ind"):
        Controller.from_table(tmp_path / "nix.parquet", EngineLimits(pp=1), gpus=odd)
