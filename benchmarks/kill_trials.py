"""A machine of two GPUs whose owners are killed: what kills.py tries, and what it looks for.

GPUs are a fake NVML's that several processes share; every set and reset is kept there with the
process that did it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beam_runtime.testing.nvml_file import FileBoard

OWNER = """
import random, sys, threading, time
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.setter import ClockSetter
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec

def tell(outcome):
    print("set" if outcome.error is None else f"refused: {outcome.error.message}", flush=True)

moments = random.Random(int(sys.argv[1]))
gpus = tuple(sys.argv[2].split(","))
spec = ActuatorSpec(ActuatorKind.NVML, gpus)
setter = ClockSetter(GuardedActuator(spec.open(), spec), tell, settle_s=0.5)
setter.open()
print("ready", flush=True)
while True:
    setter.want(moments.choice((510, 735, 960, 1185)))
    if len(sys.argv) > 3:
        time.sleep(3600)
    time.sleep(moments.random() * 0.1)
    if moments.random() < 0.2:
        setter.want(None)
"""
PATIENCE_S = 30.0
GUARD_S = 1.0  # what the guard is given after its owner's death


@dataclass
class Trial:
    """A machine of two GPUs and its owners.

    Attributes:
        folder: everything of it.
    """

    folder: Path
    board: FileBoard = field(init=False)
    owners: list["subprocess.Popen[str]"] = field(default_factory=list)
    died_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.board = FileBoard.create(self.folder, gpus=2)
        self.state = self.folder / "state"

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **self.board.env, "BEAM_STATE_DIR": str(self.state)}

    def start(
        self, seed: int, gpus: str = "GPU-0,GPU-1", *, steady: bool = False
    ) -> "subprocess.Popen[str]":
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(seed), gpus, *(["steady"] if steady else [])],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.owners.append(owner)
        return owner

    def until(self, what: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        end_s = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end_s:
                return False
            time.sleep(0.002)
        return True

    def until_locked(self) -> None:
        if not self.until(lambda: bool(self.board.locked())):
            raise RuntimeError("an owner did not lock its GPUs")

    def guards(self, owner: "subprocess.Popen[str]") -> list[int]:
        tasks = Path(f"/proc/{owner.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def next_start(self, seed: int) -> bool:
        """Another controller starts, locks, and is ended by SIGTERM; whether it could lock."""
        owner = self.start(seed, steady=True)
        words = owner.stdout
        assert words is not None
        said = [words.readline().strip() for _ in range(2)]
        locks = said == ["ready", "set"]
        if not locks:
            print(f"the next start said {said}", file=sys.stderr)
        owner.terminate()
        owner.wait(PATIENCE_S)
        return locks

    def end(self) -> None:
        for owner in self.owners:
            if owner.poll() is None:
                owner.kill()
            owner.wait()
            if owner.stdout is not None:
                owner.stdout.close()


@dataclass
class Found:
    """What a trial came to."""

    locked_after_next_start: bool = False
    locked_while_guarded: bool = False
    next_start_refused: bool = False
    false_releases: int = 0
    release_ms: float | None = None
    from_living_ms: float | None = None


def false_releases(trial: Trial) -> int:
    """How often somebody else undid or replaced the lock of an owner that lived.

    Somebody else is neither that owner nor its guard, which is its child.
    """
    owners = {owner.pid for owner in trial.owners}
    found, holders = 0, dict[int, int]()
    for entry in trial.board.history():
        gpu = entry["gpu"]
        actor = entry["pid"] if entry["pid"] in owners else entry["ppid"]
        holder = holders.get(gpu)
        if holder is not None and holder != actor and entry["before_mhz"] is not None:
            found += entry["time_s"] < trial.died_s.get(holder, float("inf"))
        if entry["clock_mhz"] is None:
            holders.pop(gpu, None)
        else:
            holders[gpu] = actor
    return found


def mounted(trial: Trial) -> bool:
    return f" {trial.state} " in Path("/proc/self/mounts").read_text()


def unmount(trial: Trial) -> None:
    while mounted(trial):
        subprocess.run(["umount", "-l", str(trial.state)], check=True, capture_output=True)
