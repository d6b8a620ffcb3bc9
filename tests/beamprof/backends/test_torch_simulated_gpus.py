"""The torch backend on GPUs that exist in simulated time: its clocks, its energy, bad windows."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tiny_stage import TINY, chunk

from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import BeamError, ClockPermissionError
from beam_runtime.table.schema import RowKind
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus
from beamprof.backends.allreduce import ModelledAllReduce
from beamprof.backends.cell import Cell
from beamprof.backends.sensors import gpu_sensors
from beamprof.backends.torch_stage import TorchBackend
from beamprof.devices.device import resolve_device
from beamprof.errors import BackendError


class Simulated:
    """A runner and a wall clock whose fake GPUs draw 300 W; sets no record for realism."""

    runs_ahead = True

    def __init__(self, nvml: FakeNvml) -> None:
        self.now = 0.0
        self.queue = 0
        self.nvml = nvml
        self.prepared: list[object] = []
        self.slept_s: list[float] = []
        nvml.on_energy = self.tick

    def tick(self, gpu: FakeGpu) -> None:
        gpu.energy_mj = int(self.now / 0.1) * 30_000

    def now_s(self) -> float:
        return self.now

    def sleep_s(self, seconds: float) -> None:
        self.now += seconds
        self.slept_s.append(seconds)

    def prepare(self, step: object) -> None:
        self.prepared.append(step)

    def enqueue(self, passes: int) -> None:
        self.queue = passes

    def collect(self) -> list[float]:
        self.now += 0.01 * self.queue
        return [10.0] * self.queue

    def close(self) -> None:
        self.queue = 0


def gpu_backend(
    nvml: FakeNvml, tp: int = 1, allreduce: ModelledAllReduce | None = None
) -> tuple[TorchBackend, Simulated, list[str]]:
    """An open backend, as ``open`` would leave it on a machine with GPUs."""
    world, said = Simulated(nvml), []
    backend = TorchBackend(
        TINY,
        TINY.shard(tp, 1),
        place="cuda",
        say=said.append,
        allreduce=allreduce,
        now_s=world.now_s,
        sleep_s=world.sleep_s,
    )
    backend._runner = world
    backend._sensors = gpu_sensors(["GPU-0"], None, nvml)
    assert backend._sensors.actuator is not None
    backend._lock = ClockLock(backend._sensors.actuator)
    return backend, world, said


def test_a_cell_is_measured_at_its_clock_and_the_clock_given_back() -> None:
    nvml = FakeNvml()
    backend, world, said = gpu_backend(nvml)
    row = backend.run(chunk(clock_mhz=1005))
    assert nvml.locked == [1005]
    assert row.clock_reached_mhz == 1005
    assert row.temperature_c == 45
    assert row.throttle == ""
    assert row.latency_ms == 10.0
    assert row.energy_j == pytest.approx(3.0, rel=0.03)
    assert row.energy_ci_j is not None
    assert said == []
    idle = backend.run(Cell(RowKind.IDLE, 510))
    assert nvml.locked == [510]
    assert idle.energy_j == pytest.approx(300.0, rel=0.03)
    assert len(world.prepared) == 1
    backend.close()
    assert nvml.locked == [None]


def test_current_clocks_need_no_permission_and_touch_nothing() -> None:
    nvml = FakeNvml()
    nvml.gpus[0].lock_mhz = 1200  # an administrator's
    nvml.fail("nvmlDeviceSetGpuLockedClocks", 4)
    nvml.fail("nvmlDeviceResetGpuLockedClocks", 4)
    backend, _, _ = gpu_backend(nvml)
    assert backend.run(chunk()).clock_reached_mhz == 1410
    backend.close()
    assert nvml.locked == [1200]


def test_a_missing_permission_reaches_the_caller() -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlDeviceSetGpuLockedClocks", 4)
    backend, _, _ = gpu_backend(nvml)
    with pytest.raises(ClockPermissionError):
        backend.run(chunk(clock_mhz=1005))
    backend.close()
    assert nvml.locked == [None]


def slow_down(nvml: FakeNvml, world: Simulated, until_s: float, reasons: int) -> None:
    """After one second the GPU runs at 900 MHz, until a given time."""
    true_tick = world.tick

    def tick(gpu: FakeGpu) -> None:
        true_tick(gpu)
        slow = 0.5 < world.now < until_s
        gpu.sm_clock_mhz = 900 if slow else 1005
        gpu.reasons = reasons if slow else 0

    nvml.on_energy = tick


def test_a_clock_that_falls_is_rejected_said_and_measured_again() -> None:
    nvml = FakeNvml()
    backend, world, said = gpu_backend(nvml)
    slow_down(nvml, world, until_s=8.0, reasons=0x40)
    row = backend.run(chunk(clock_mhz=1005))
    assert row.clock_reached_mhz == 1005
    assert len(said) == 1
    assert "thermal, hardware" in said[0]
    assert world.slept_s == [10.0]
    backend.close()


def test_a_clock_that_stays_low_is_an_error() -> None:
    nvml = FakeNvml()
    backend, world, said = gpu_backend(nvml)
    # Low whenever work runs, right again when the lock is read back.
    nvml.on_energy = lambda gpu: (world.tick(gpu), setattr(gpu, "sm_clock_mhz", 900))[0]
    true_sleep = world.sleep_s

    def cool_down(seconds: float) -> None:
        true_sleep(seconds)
        nvml.gpus[0].sm_clock_mhz = 1005

    backend._sleep_s = cool_down
    with pytest.raises(BackendError, match="1005 MHz is not held") as caught:
        backend.run(chunk(clock_mhz=1005))
    assert len(said) == 3
    assert "900 MHz" in str(caught.value.cause)
    backend.close()
    assert nvml.locked == [None]


def test_below_the_lock_at_the_power_cap_is_a_good_row() -> None:
    nvml = FakeNvml()
    backend, world, said = gpu_backend(nvml)
    slow_down(nvml, world, until_s=1e9, reasons=0x4)
    row = backend.run(chunk(clock_mhz=1005))
    assert said == []
    assert row.throttle == "power cap"
    assert row.clock_reached_mhz == pytest.approx(900, abs=10)
    backend.close()


def test_one_gpu_stands_for_all_of_a_stage_and_the_exchange_is_added() -> None:
    device = resolve_device("a100-sxm4-80gb")
    exchange = ModelledAllReduce(device, TINY.shard(2, 1))
    alone, _, _ = gpu_backend(FakeNvml(), tp=2)
    added, _, _ = gpu_backend(FakeNvml(), tp=2, allreduce=exchange)
    without, row = alone.run(chunk(64, 1005)), added.run(chunk(64, 1005))
    assert alone._allreduce_source() == "left out: no device file"
    assert added._allreduce_source() == "device file a100-sxm4-80gb"
    assert without.energy_j == pytest.approx(6.0, rel=0.03)
    assert row.latency_ms - without.latency_ms == pytest.approx(exchange.latency_ms(64))
    extra_j = exchange.latency_ms(64) / 1e3 * exchange.power_w(1005) * 2
    assert row.energy_j - without.energy_j == pytest.approx(extra_j)
    assert 0 < exchange.latency_ms(64) < exchange.latency_ms(4096)
    assert 50 < exchange.power_w(1005) < 200


def test_a_gpu_without_a_counter_needs_a_stated_power() -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", 3)
    with pytest.raises(BackendError) as caught:
        gpu_sensors(["GPU-0"], None, nvml)
    assert "--assume-power" in str(caught.value.hint)
    sensors = gpu_sensors(["GPU-0"], 250.0, nvml)
    assert sensors.metadata["energy_source"] == "assumed 250 W"
    assert sensors.counter is None


def absent(nvml: FakeNvml, world: Simulated) -> None:
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", 3)


def goes_back(nvml: FakeNvml, world: Simulated) -> None:
    """Wraps or is reset, again and again."""
    nvml.on_energy = lambda gpu: setattr(gpu, "energy_mj", int(world.now / 0.1) % 7 * 30_000)


def stands_still(nvml: FakeNvml, world: Simulated) -> None:
    nvml.on_energy = None


@pytest.mark.parametrize("break_it", [absent, goes_back, stands_still])
def test_a_counter_that_fails_leaves_no_gpu_locked(
    break_it: Callable[[FakeNvml, Simulated], None],
) -> None:
    nvml = FakeNvml()
    backend, world, _ = gpu_backend(nvml)
    backend.run(chunk(clock_mhz=1005))
    break_it(nvml, world)
    with pytest.raises(BeamError) as caught:
        backend.run(chunk(clock_mhz=1200))
    assert "--assume-power" in str(caught.value.hint) or "counter" in str(caught.value)
    backend.close()
    assert nvml.locked == [None]


def test_what_gpus_say_of_themselves() -> None:
    nvml = FakeNvml(fake_gpus(2))
    nvml.gpus[0].sm_clock_mhz, nvml.gpus[1].sm_clock_mhz = 1000, 1100
    nvml.gpus[1].temperature_c, nvml.gpus[1].reasons = 71, 0x4 | 0x1
    sensors = gpu_sensors(["GPU-0", "GPU-1"], None, nvml)
    reading = sensors.gauge()
    assert reading.clock_mhz == 1050
    assert reading.temperature_c == 71
    assert reading.throttle == ("power cap",)
    assert json.loads(sensors.metadata["device_clocks_mhz"])[0] == 210
    assert sensors.metadata["gpu_name"] == "NVIDIA A100-SXM4-80GB"
    assert isinstance(sensors.actuator, NvmlGpus)


def test_the_gpu_that_torch_uses_is_found_by_its_uuid() -> None:
    """CUDA_VISIBLE_DEVICES renumbers GPUs for torch and not for NVML."""
    nvml = FakeNvml(fake_gpus(4))
    backend = TorchBackend(TINY, TINY.shard(1, 1), place="cuda", nvml=nvml)
    properties = SimpleNamespace(uuid="3")
    torch = SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda where: properties))
    sensors = backend._find_sensors(torch, "cuda:0")
    assert sensors.actuator is not None
    assert sensors.actuator.gpus == ("GPU-3",)
