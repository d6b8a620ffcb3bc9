import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import BeamError, ClockPermissionError
from beam_runtime.table.schema import METADATA_KEYS, RowKind
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus
from beam_runtime.types import Source
from beamprof.backends import measuring
from beamprof.backends.allreduce import ModelledAllReduce
from beamprof.backends.cell import Cell
from beamprof.backends.pass_timing import PassTimes, TimingRules
from beamprof.backends.sensors import cpu_sensors, gpu_sensors
from beamprof.backends.torch_stage import TorchBackend
from beamprof.devices.device import resolve_device
from beamprof.errors import BackendError
from beamprof.models.registry import registry
from beamprof.models.shape import ModelShape

TINY = ModelShape(
    name="tiny",
    architecture="llama",
    hidden_size=256,
    intermediate_size=512,
    layers=4,
    heads=8,
    kv_heads=4,
    head_dim=32,
    vocab_size=100,
    max_model_len=4096,
    dtype="float32",
)
QUICK = TimingRules(
    window_s=0.02, longest_s=0.02, discard_s=0.0, warmup_s=0.0, latency_target=1, energy_target=1
)


def chunk(tokens: int = 8, clock_mhz: int = 0) -> Cell:
    return Cell(RowKind.FORWARD, clock_mhz, prefill_tokens=tokens)


IDLE = Cell(RowKind.IDLE, 0)


# On a CPU, for real


def cpu_backend(tmp_path: Path, **given: object) -> TorchBackend:
    pytest.importorskip("torch", reason="needs torch")
    settings = {"place": "cpu", "rules": QUICK, "assume_power_w": 65.0, "rapl_root": tmp_path}
    model = given.pop("model", TINY)
    tp = given.pop("tp", 1)
    assert isinstance(model, ModelShape)
    assert isinstance(tp, int)
    return TorchBackend(model, model.shard(tp, 1), **(settings | given))  # type: ignore[arg-type]


def test_a_cpu_measures_chunks_decodes_and_both(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    try:
        metadata = backend.open()
        assert set(metadata) <= set(METADATA_KEYS)
        assert metadata["energy_source"] == "assumed 65 W"
        assert metadata["allreduce"] == "none (tp 1)"
        assert metadata["engine"] == "torch"
        for cell in (
            chunk(),
            Cell(RowKind.FORWARD, 0, 8, 24),
            Cell(RowKind.FORWARD, 0, 0, 0, 5, 123),
            Cell(RowKind.FORWARD, 0, 8, 24, 5, 123),
        ):
            row = backend.run(cell)
            assert row.source is Source.MEASURED
            assert row.latency_ms > 0
            assert row.latency_ci_ms is not None
            assert row.passes >= 3
            assert row.energy_j > 0
            assert row.clock_reached_mhz is None
        idle = backend.run(IDLE)
        assert (idle.latency_ms, idle.energy_j) == (1000.0, 65.0)
    finally:
        backend.close()
        backend.close()


def test_assumed_energy_is_power_times_the_mean_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = cpu_backend(tmp_path, tp=2)
    metadata = backend.open()
    assert metadata["allreduce"] == "left out: no device file"
    told = PassTimes(median_ms=10.0, median_ci_ms=0.1, mean_ms=12.5, passes=4)
    monkeypatch.setattr(measuring, "time_passes", lambda *_, **__: told)
    row = backend.run(chunk())
    backend.close()
    assert row.latency_ms == 10.0
    assert row.energy_j == pytest.approx(65.0 * 0.0125 * 2)  # both devices of the stage


def test_rapl_is_read_where_it_can_be(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text("1000000000")
    (zone / "energy_uj").write_text("1")
    sensors = cpu_sensors(65.0, tmp_path)
    assert sensors.metadata["energy_source"] == "rapl"
    assert sensors.assumed_power_w is None
    assert sensors.counter is not None


def test_without_a_counter_the_power_must_be_stated(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path, assume_power_w=None)
    with pytest.raises(BackendError) as caught:
        backend.open()
    assert "--assume-power 65W" in str(caught.value.hint)


def test_a_cpu_has_no_clock_to_lock(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    backend.open()
    with pytest.raises(BackendError, match="cannot be locked"):
        backend.run(chunk(clock_mhz=1005))
    backend.close()


def test_a_pass_without_tokens_is_refused(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    backend.open()
    with pytest.raises(BackendError, match="one new token"):
        backend.run(Cell(RowKind.FORWARD, 0))
    backend.close()
    with pytest.raises(BackendError, match="not open"):
        backend.run(chunk())


def test_a_model_that_does_not_fit_says_what_it_needs(tmp_path: Path) -> None:
    giant = dataclasses.replace(registry()["llama3-70b"], name="giant", layers=8000)
    backend = cpu_backend(tmp_path, model=giant)
    with pytest.raises(BackendError, match=r"8000 layers of giant need \d+\.\d GB") as caught:
        backend.open()
    assert "--tp" in str(caught.value.hint)


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    backend = TorchBackend(TINY, TINY.shard(1, 1), place="cuda")
    with pytest.raises(BackendError, match="no GPU that PyTorch can use"):
        backend.open()


def test_estimates_follow_what_was_measured(tmp_path: Path) -> None:
    backend = cpu_backend(tmp_path)
    assert backend.estimate_s(chunk()) == pytest.approx(QUICK.planned_s, abs=0.1)
    small, large = backend.estimate_s(chunk(64)), backend.estimate_s(chunk(65536))
    assert large > small
    backend._estimate.learn(chunk(64).shape, 10.0)
    assert backend.estimate_s(chunk(64)) == pytest.approx(60.0)
    assert backend.estimate_s(IDLE) == pytest.approx(QUICK.window_s)


# On GPUs that exist in simulated time


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


# Under torchrun

TWO_RANKS = """
import json, sys
from pathlib import Path

import torch
import torch.distributed as dist

from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape
from beamprof.backends.torch_layer import LayerWeights
from beamprof.backends.torch_pass import Stage
from beamprof.backends.torch_stage import TorchBackend
from beamprof.backends.pass_timing import TimingRules
from beamprof.backends.torch_experts import DenseWeights
from beamprof.backends.cell import Cell
from beamprof.errors import BackendError
from beamprof.models.shape import ModelShape

model = ModelShape("tiny", "qwen2", 64, 96, 2, 4, 2, 16, 100, 4096, dtype="float32", qkv_bias=True)
rules = TimingRules(0.05, 0.05, 0.0, 0.0, latency_target=1, energy_target=1)
nowhere = Path(sys.argv[1]) / "no-rapl"
backend = TorchBackend(
    model, model.shard(2, 1), place="cpu", rules=rules, assume_power_w=65.0, rapl_root=nowhere
)
metadata = backend.open()
ranks = backend._ranks


def share(layer, rank):
    q, k, v = layer.qkv.split((64, 32, 32))
    bq, bk, bv = layer.qkv_bias.split((64, 32, 32))
    gate, up = layer.mlp.gate_up.chunk(2)
    half = lambda tensor: tensor.chunk(2)[rank]
    return LayerWeights(
        qkv=torch.cat((half(q), half(k), half(v))),
        qkv_bias=torch.cat((half(bq), half(bk), half(bv))),
        q_norm=None, k_norm=None,
        out=layer.out.chunk(2, dim=1)[rank].contiguous(),
        mlp=DenseWeights(
            torch.cat((half(gate), half(up))), layer.mlp.down.chunk(2, dim=1)[rank].contiguous()
        ),
        attention_norm=layer.attention_norm, mlp_norm=layer.mlp_norm,
    )


# Two shards with their all-reduces give what the whole stage gives.
whole = Stage(model, model.shard(1, 1), "cpu", seed=7)
shard = Stage(model, model.shard(2, 1), "cpu", reduce=ranks.reduce)
shard.layers = [share(layer, ranks.rank) for layer in whole.layers]
with torch.inference_mode():
    one, two = whole.ready(StepShape(12)), shard.ready(StepShape(12))
    two.hidden.copy_(one.hidden)
    difference = float((one.run() - two.run()).abs().max())

found = {"difference": difference, "metadata": dict(metadata)}
if backend.follows:
    backend.follow()
else:
    rows = [
        backend.run(Cell(RowKind.FORWARD, 0, 8, 16)),
        backend.run(Cell(RowKind.FORWARD, 0, 0, 0, 4, 40)),
    ]
    found["rows"] = [[row.latency_ms, row.energy_j, row.passes] for row in rows]
    try:
        backend.run(Cell(RowKind.FORWARD, 0, 0, 0, 1, 10**12))
    except BackendError as error:
        found["too large"] = error.message
    found["after"] = backend.run(Cell(RowKind.FORWARD, 0, 8)).passes
backend.close()
Path(sys.argv[1], f"rank{ranks.rank}.json").write_text(json.dumps(found))
"""


def torchrun(tmp_path: Path, ranks: int, program: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch", reason="needs torch")
    script = tmp_path / "program.py"
    script.write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(ranks), str(script), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_ranks_compute_the_whole_and_measure_together(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, TWO_RANKS)
    assert done.returncode == 0, done.stderr[-4000:]
    leader, follower = (json.loads((tmp_path / f"rank{n}.json").read_text()) for n in (0, 1))
    for found in (leader, follower):
        assert found["difference"] < 1e-4
        assert found["metadata"]["allreduce"] == "measured"
    for latency_ms, energy_j, passes in leader["rows"]:
        assert latency_ms > 0
        assert 0.3 * 65e-3 * latency_ms < energy_j < 30 * 65e-3 * latency_ms  # one machine, once
        assert passes >= 3
    assert "need" in leader["too large"]
    assert leader["after"] >= 3


def test_ranks_that_are_not_tp_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BackendError, match="3 ranks") as caught:
        cpu_backend(tmp_path, tp=2).open()
    assert "--nproc-per-node 2" in str(caught.value.hint)


# On a GPU


def test_a_real_gpu_measures_at_its_current_clock() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    model = registry()["llama3-8b"]
    backend = TorchBackend(model, model.shard(1, 8), place="cuda")
    try:
        metadata = backend.open()
        assert metadata["energy_source"] == "nvml counter"
        short, long = backend.run(chunk(256)), backend.run(chunk(1024))
        decode = backend.run(Cell(RowKind.FORWARD, 0, 0, 0, 32, 32 * 1024))
        idle = backend.run(IDLE)
    finally:
        backend.close()
    for row in (short, long, decode):
        assert row.clock_reached_mhz is not None
        assert row.energy_j / row.latency_ms > idle.energy_j / idle.latency_ms
    assert long.energy_j > short.energy_j
