"""How long a set may stay where it is: with one GPU, however many there are."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.memory import Memory
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, Record, StateFile
from beam_runtime.clocks.watch import Watch
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

    def confirmed(self) -> None:
        self.said.append("confirmed")

    def calling(self) -> None:
        self.said.append("call")

    def answered(self) -> None:
        self.said.append("answered")

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
    assert guard.said[0] == "call", "comparing first may hang, too"
    at = guard.said.index("set 210")
    assert guard.said[at + 1 :] == ["call", *["moved"] * 8, "answered", "returned"]
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


@pytest.mark.parametrize("answered", [b"", b"answered\n"])
def test_a_reading_or_release_that_does_not_return_is_given_up_like_a_set(answered: bytes) -> None:
    """While its owner's heart beats on; and not where it has returned."""
    reader, writer = os.pipe()
    os.write(writer, b"set 735\nreturned\ncall\n" + answered)
    lease = Holding(Owner.current(), ("GPU-0",), None, "nvml")
    watch, over = Watch(lease, reader, 1.0, hang_s=0.05), threading.Event()

    def beat() -> None:
        for _ in range(100):
            if over.wait(0.02):
                return
            os.write(writer, b".\n")
        os.write(writer, b"free\nquit\n")

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    said = watch.wait()
    over.set()
    heart.join()
    assert said == ("" if answered else "a driver call does not return for 0.05 s")


def test_who_keeps_pythons_lock_during_a_reading_makes_no_hang_of_it() -> None:
    """No heart beats then; afterwards it may beat before the reading is said to be answered."""
    reader, writer = os.pipe()
    os.write(writer, b"set 735\nreturned\ncall\n")
    lease = Holding(Owner.current(), ("GPU-0",), None, "nvml")
    watch = Watch(lease, reader, 60.0, hang_s=1.0)

    def go_on() -> None:
        time.sleep(2.0)
        os.write(writer, b".\n")
        time.sleep(0.05)
        os.write(writer, b"answered\nfree\nquit\n")

    engine = threading.Thread(target=go_on, daemon=True)
    engine.start()
    assert watch.wait() == ""
    engine.join()


class HangingOwner:
    """What a guarded actuator is asked for while the driver sits in one of its calls."""

    def __init__(self, folder: Path, function: str) -> None:
        self.over, self.inside, self.hangs = threading.Event(), threading.Event(), False
        self.guard = HearingGuard(*[None] * 3)  # type: ignore[arg-type]
        real = getattr(FakeNvml, function)

        def call(nvml: FakeNvml, *arguments: object) -> object:
            if self.hangs:
                self.inside.set()
                self.over.wait()
            return real(nvml, *arguments)

        nvml = type("Hanging", (FakeNvml,), {function: call})(fake_gpus(2))
        spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0", "GPU-1"))
        self.actuator = GuardedActuator(
            NvmlGpus(spec.gpus, nvml=nvml),
            spec,
            StateFile(folder),
            guard=lambda *_: self.guard,  # type: ignore[arg-type, return-value]
        )


@pytest.mark.parametrize(
    ("function", "act"),
    [
        ("nvmlDeviceGetClockInfo", "read_back"),
        ("nvmlDeviceGetClockInfo", "release"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "read_back"),
        ("nvmlDeviceResetGpuLockedClocks", "release"),
    ],
)
def test_whoever_waits_for_any_driver_call_hears_that_the_guard_gave_up(
    tmp_path: Path, function: str, act: str
) -> None:
    owner = HangingOwner(tmp_path, function)
    owner.actuator.set(735)
    assert not owner.actuator.overdue
    owner.hangs = True
    calling = threading.Thread(target=getattr(owner.actuator, act), daemon=True)
    calling.start()
    assert owner.inside.wait(20.0)
    told = [word for word in owner.guard.said if word in ("call", "answered")]
    assert told[-1] == "call"
    assert not owner.actuator.overdue, "it may still come back"
    owner.guard.ended, owner.guard.released = "a driver call does not return", True
    assert owner.actuator.overdue
    owner.hangs = False
    owner.over.set()
    calling.join()
    assert not owner.actuator.overdue
    assert "answered" in owner.guard.said


def test_a_record_that_is_waited_for_is_no_driver_that_hangs(tmp_path: Path) -> None:
    """Another process may sit on it, and a disk may take seconds."""
    owner = HangingOwner(tmp_path, "nvmlDeviceGetClockInfo")
    owner.actuator.set(735)
    told: list[str] = []

    class Watched(StateFile):
        @contextlib.contextmanager
        def change(self, *, durable: bool = True) -> Iterator[Record]:
            told.extend(word for word in owner.guard.said if word in ("call", "answered"))
            assert told[-1] == "answered"
            with super().change(durable=durable) as record:
                yield record

    owner.actuator._state = Watched(tmp_path)
    owner.actuator.set(960)
    owner.actuator.read_back()
    owner.actuator.release()
    owner.actuator.close()
    assert told.count("answered") > 3


def test_a_forked_child_tells_its_parents_guard_nothing(tmp_path: Path) -> None:
    owner = HangingOwner(tmp_path, "nvmlDeviceGetClockInfo")
    owner.actuator.set(735)
    told = list(owner.guard.said)
    owner.actuator._owner = replace(Owner.current(), pid=os.getpid() + 1)  # what a child sees
    owner.actuator.read_back()
    assert owner.guard.said == told
