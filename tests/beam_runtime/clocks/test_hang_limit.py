"""How long a set may stay where it is: with one GPU, however many there are."""

import time
from pathlib import Path

import pytest

from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.clocks.watch import Memory
from beam_runtime.testing.nvml import FakeNvml, fake_gpus


class HearingGuard:
    """Takes down what a guard would be told."""

    ended = ""
    released = False

    def __init__(self, spec: ActuatorSpec, state: StateFile, lease: Holding) -> None:
        self.said: list[str] = []

    def about_to_set(self, clock_mhz: int) -> None:
        self.said.append(f"set {clock_mhz}")

    def moved(self) -> None:
        self.said.append("moved")

    def returned(self) -> None:
        self.said.append("returned")

    def freed(self) -> None:
        self.said.append("free")

    def beat(self) -> bool:
        return True

    def close(self) -> None:
        self.said.append("quit")


def memory() -> Memory:
    return Memory(Holding(Owner.current(), ("GPU-0",), None, "nvml"))


def test_the_guard_hears_of_each_gpu_that_is_set(tmp_path: Path) -> None:
    nvml = FakeNvml(fake_gpus(8))
    uuids = tuple(gpu.uuid for gpu in nvml.gpus)
    spec = ActuatorSpec(ActuatorKind.NVML, uuids)
    guards: list[HearingGuard] = []

    def start(*charge: object) -> HearingGuard:
        guards.append(HearingGuard(*charge))  # type: ignore[arg-type]
        return guards[-1]

    actuator = GuardedActuator(
        NvmlGpus(uuids, nvml=nvml),
        spec,
        StateFile(tmp_path),
        guard=start,  # type: ignore[arg-type]
    )
    actuator.set(actuator.supported_clocks_mhz()[0])
    (guard,) = guards
    assert guard.said[1:] == [*["moved"] * 8, "returned"]
    actuator.close()
    assert all(gpu.lock_mhz is None for gpu in nvml.gpus)


def test_a_set_that_moves_on_does_not_hang() -> None:
    heard = memory()
    heard.take_in("set 960")
    begun_s = heard.setting_since_s
    assert begun_s is not None
    while time.monotonic() <= begun_s:
        pass
    heard.take_in("moved")
    assert heard.setting_since_s is not None and heard.setting_since_s > begun_s


def test_moving_without_a_set_begins_none() -> None:
    heard = memory()
    for word in ("set 960", "moved", "returned", "moved"):
        heard.take_in(word)
    assert heard.setting_since_s is None
    assert heard.lease.clock_mhz == 960


@pytest.mark.parametrize("count", [1, 2, 8, 72])
def test_many_gpus_may_hang_no_longer_than_one(count: int) -> None:
    spec = ActuatorSpec(ActuatorKind.NVML, tuple(f"GPU-{at}" for at in range(count)))
    assert spec.hang_s == spec.on(spec.gpus[:1]).hang_s
    # A lock was seen to take 0.2 s, and eight GPUs are freed in 0.4 s.
    assert 2 * 0.2 <= spec.hang_s <= 1.0 - 0.4
    assert spec.set_limit_s >= spec.hang_s


def test_whoever_tells_nothing_on_the_way_has_its_whole_time() -> None:
    command = ActuatorSpec(ActuatorKind.COMMAND, ("GPU-0", "GPU-1"), set_command=("true",))
    assert command.hang_s == command.set_limit_s
    across = ActuatorSpec(ActuatorKind.NVML, ("GPU-0", "node-2:7777/0"))
    assert across.hang_s == across.set_limit_s
