"""Points 1 and 2: NVML fails, and clocks do not do what they are told."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fault_bench import QUICK, Bench, alternating, content, forecast, requests, wait_for

from beam_runtime.clocks.base import ClockReading
from beam_runtime.clocks.setter import ClockSetter
from beam_runtime.control.controller import Controller
from beam_runtime.control.resources import open_clocks
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beam_runtime.types import Decision, EngineLimits, Knobs, Snapshot
from beamprof.tables.table_file import write_table

SET, RESET = "nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"
# nvmlReturn_t in nvml.h.
UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, GPU_IS_LOST, UNKNOWN = 1, 3, 4, 10, 15, 999


def test_a_set_that_is_accepted_and_not_applied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ClockSetter.__init__.__kwdefaults__, "settle_s", 0.0)
    bench.actuator = FakeActuator(stuck=ClockReading("GPU-fake-0", 1410, ("power brake",)))
    bench.run(requests())
    assert bench.after.counts.clock_failures >= 3
    assert bench.after.counts.falls >= 1


def test_failures_enough_and_it_stays_off(bench: Bench) -> None:
    bench.actuator.refuse = ClockError("the driver failed")
    bench.run(requests(60))
    assert "off until asked" in bench.after.reason
    assert bench.after.counts.falls == 3, "no flapping"
    assert bench.after.counts.clock_failures == 9


def test_asked_it_tries_again(bench: Bench) -> None:
    bench.actuator.refuse = ClockError("the driver failed")

    def mend(controller: Controller, now_ms: float) -> None:
        if "off until asked" in controller.status.reason:
            bench.actuator.refuse = None
            controller.resume()

    bench.run(requests(60), meanwhile=mend)
    assert bench.after.steering


def test_one_failure_is_no_reason_to_stop(bench: Bench) -> None:
    def once(controller: Controller, now_ms: float) -> None:
        broken = now_ms > 500.0 and controller.status.counts.clock_failures == 0
        bench.actuator.refuse = ClockError("timeout") if broken else None

    bench.run(requests(), meanwhile=once)
    assert bench.after.counts.clock_failures > 0
    assert bench.after.steering
    assert bench.after.counts.falls == 0


@pytest.mark.parametrize("error", [ClockPermissionError, ClockUnavailableError])
def test_without_permission_the_other_knobs_still_turn(
    bench: Bench, error: type[ClockError], caplog: pytest.LogCaptureFixture
) -> None:
    bench.actuator.refuse = error("you may not")
    bench.run(requests(3), search=None)
    assert bench.after.steering
    assert bench.after.counts.decisions > 3
    assert bench.after.counts.clock_failures == 1
    assert caplog.text.count("clocks stay as they are") == 1


def without_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlInit", 9)  # DRIVER_NOT_LOADED
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


@pytest.mark.parametrize("missing", [without_pynvml, without_driver])
def test_no_nvml(
    bench: Bench, missing: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_runtime.clocks.choose.may_lock_clocks", lambda *_: True)
    missing(monkeypatch)
    bench.actuator, why = open_clocks(range(8))
    assert bench.actuator is None
    assert why.startswith("clocks stay as they are: ")
    bench.run(requests(), search=None)
    assert bench.after.steering, "the other knobs still turn"


@pytest.mark.parametrize("code", [NO_PERMISSION, NOT_SUPPORTED])
def test_nvml_will_not_lock(bench: Bench, code: int) -> None:
    """No rights; or MIG, or a vGPU."""
    nvml = bench.on_nvml()
    nvml.fail(SET, code)
    bench.run(requests(3), search=None)
    assert bench.after.steering, "the other knobs still turn"
    assert bench.after.counts.clock_failures == 1


@pytest.mark.parametrize("code", [TIMEOUT, UNKNOWN, UNINITIALIZED])
@pytest.mark.parametrize("function", [SET, RESET, "nvmlDeviceGetClockInfo"])
def test_nvml_fails_once(bench: Bench, function: str, code: int) -> None:
    """UNINITIALIZED is a driver that was reloaded under us."""
    nvml = bench.on_nvml()
    nvml.fail(function, code, times=1)
    bench.run(requests())
    assert bench.after.steering
    assert bench.after.counts.clock_failures == 0


def test_one_gpu_of_eight_fails(bench: Bench) -> None:
    nvml = bench.on_nvml()
    nvml.fail(SET, UNKNOWN, gpu=5)
    bench.run(requests(60))
    assert "off until asked" in bench.after.reason


def test_a_gpu_falls_off_the_bus(bench: Bench) -> None:
    nvml = bench.on_nvml()

    def lose(controller: Controller, now_ms: float) -> None:
        if now_ms > 500.0:
            for function in (SET, RESET, "nvmlDeviceGetClockInfo"):
                nvml.fail(function, GPU_IS_LOST, gpu=5)

    bench.run(requests(), meanwhile=lose, lost_gpus=[5])
    assert bench.after.counts.clock_failures >= 1


def test_another_tool_holds_one_gpus_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ClockSetter.__init__.__kwdefaults__, "settle_s", 0.0)
    bench.on_nvml().gpus[3].obeys = False
    bench.run(requests(60))
    assert bench.after.reason.startswith("clocks do not follow")


def test_a_clock_that_the_gpus_do_not_offer(bench: Bench) -> None:
    bench.on_nvml()
    bench.run(
        requests(), search=lambda state: Decision(Knobs(736, 256), forecast(), "never heard of it")
    )
    assert bench.after.counts.clock_failures == 1
    assert bench.after.counts.decisions > 10


def test_a_repeated_clock_is_set_once(bench: Bench) -> None:
    bench.run(requests(), search=content)
    assert bench.actuator.calls.count(("set", 960)) == 1


class Slow(FakeActuator):
    """A driver whose first call does not return before ``done``."""

    def __init__(self, done: Callable[[], bool]) -> None:
        super().__init__(gpus=8)
        self.done = done

    def set(self, clock_mhz: int) -> None:
        if not self.calls:
            wait_for(self.done)
        super().set(clock_mhz)


def test_a_slow_set_that_is_overtaken(bench: Bench) -> None:
    """Three decisions in the time of one set: neither the engine nor the search waits."""
    wishes: list[int] = []
    bench.actuator = Slow(lambda: len(wishes) > 3)

    def restless(state: Snapshot) -> Decision:
        decision = alternating(state)
        if wishes[-1:] != [decision.knobs.clock_mhz]:
            wishes.append(decision.knobs.clock_mhz)
        return decision

    bench.run(requests(24), search=restless, threads=True)
    assert bench.after.counts.clock_failures == 0
    assert sum(call == "set" for call, _ in bench.actuator.calls) < len(wishes)


def test_settings_that_change_back_and_forth_leave_nothing_behind(bench: Bench) -> None:
    bench.on_nvml()
    bench.run(requests(24), threads=True, rules=QUICK)
    assert bench.after.counts.falls == 0


@pytest.mark.parametrize("gpus", [[0], range(7), range(9), [0, 0, 1, 2, 3, 4, 5, 6]])
def test_gpus_that_are_not_the_replica_s(
    small_table: PerfTable, gpus: Sequence[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeNvml(fake_gpus(9))
    monkeypatch.setattr("beam_runtime.clocks.nvml._import_pynvml", lambda: fake)
    monkeypatch.setattr("beam_runtime.clocks.choose.may_lock_clocks", lambda *_, **__: True)
    path = tmp_path / "table.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    with Controller.from_table(path, EngineLimits(pp=4), gpus=gpus) as beam:
        assert beam.clocks.startswith("clocks stay as they are: ")
        assert "for a replica of 8" in beam.clocks or "twice" in beam.clocks
    assert all(gpu.lock_mhz is None for gpu in fake.gpus)
