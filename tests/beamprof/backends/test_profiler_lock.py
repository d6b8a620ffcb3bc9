"""The profiler takes the same lock, record and guard as everybody, in real processes."""

import subprocess

import pytest
from lock_bench import LockBench, bench, wait_for

from beam_runtime.clocks.state_file import StateFile
from beam_runtime.testing.nvml import FakeGpu, FakeNvml
from beamprof.backends.sensors import gpu_sensors

__all__ = ["bench"]  # a fixture

PROFILER = """
    import sys
    from beamprof.backends.measuring import MeasuringBackend
    from beamprof.backends.sensors import gpu_sensors
    from beamprof.models.registry import resolve_model
    backend = MeasuringBackend(resolve_model("llama3-8b").shard(1, 1), place="cuda")
    backend._take_lock(gpu_sensors(["GPU-0"], None))
    try:
        backend._set_clock(735)
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), "; "), flush=True)
        sys.exit(1)
    print("set 735", flush=True)
    sys.stdin.readline()
    backend._lock.close()
"""


def profiler(bench: LockBench) -> "subprocess.Popen[str]":
    return bench.start(PROFILER)


def test_a_profiler_that_is_killed_leaves_nothing_locked(bench: LockBench) -> None:
    process = profiler(bench)
    assert bench.heard(process) == "set 735"
    assert bench.board.locked() == {"GPU-0": 735}
    (held,) = StateFile(bench.state.folder).read()
    assert (held.owner.pid, held.clock_mhz) == (process.pid, 735)
    process.kill()
    bench.free()
    wait_for(lambda: not StateFile(bench.state.folder).read())


def test_a_profiler_beside_a_controller_is_refused(bench: LockBench) -> None:
    controller = bench.holder(960)
    process = profiler(bench)
    assert f"GPU-0 is held by process {controller.pid}" in bench.heard(process)
    assert process.wait(20) == 1
    assert bench.board.locked() == {"GPU-0": 960}
    assert {entry["pid"] for entry in bench.board.history()} == {controller.pid}


def test_a_profiler_that_ends_gives_back(bench: LockBench) -> None:
    process = profiler(bench)
    assert bench.heard(process) == "set 735"
    process.communicate("\n")
    assert bench.board.locked() == {}
    assert StateFile(bench.state.folder).read() == ()


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetClockInfo", "clock_mhz"),
        ("nvmlDeviceGetCurrentClocksEventReasons", None),
    ],
)
def test_a_sensor_that_a_board_does_not_have_is_none(function: str, missing: str | None) -> None:
    nvml = FakeNvml(gpus=[FakeGpu("MIG-0")])
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", 3)
    nvml.fail(function, 3)
    sensors = gpu_sensors(["MIG-0"], 300.0, nvml)
    assert sensors.counter is None and sensors.assumed_power_w == 300.0
    reading = sensors.gauge()
    for name in ("temperature_c", "clock_mhz"):
        assert (getattr(reading, name) is None) == (name == missing)
    assert reading.throttle == ()
