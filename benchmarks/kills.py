"""Kill owners of a lock, in many ways and at random moments: is a GPU left locked, or a lock taken?

    python benchmarks/kills.py [--json] [--kills N] [--seed S]

Real processes and real signals on a fake NVML that several processes share
(beam_runtime.testing.nvml_file); every set and reset is kept there with the process that did it.

locked after next start    a GPU stays locked when another controller has started and ended
locked while guarded       a second after its owner's death, with a guard that was not killed
false releases             somebody undid or replaced the lock of another, living owner
next start refused         it did not get its clock at once (it tries again after a pause)
release                    from SIGKILL of a steady owner until the GPU is free
release from the living    from the stop of an owner, or a reading that hangs, until they are free

Aims: 0, 0, 0, a p99 of 100 ms, and a second.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
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


Kind = Callable[[Trial, random.Random, Found], bool]


def kill(trial: Trial, process: "subprocess.Popen[str]") -> None:
    trial.died_s[process.pid] = time.time()
    process.kill()
    process.wait()


def steady(trial: Trial, moments: random.Random, found: Found) -> bool:
    """Long after the set, with a lock in force."""
    owner = trial.start(moments.randrange(1 << 30), steady=True)
    trial.until_locked()
    time.sleep(0.1 + 0.2 * moments.random())
    begun_s, trial.died_s[owner.pid] = time.monotonic(), time.time()
    owner.kill()
    if trial.until(lambda: not trial.board.locked(), 5.0):
        found.release_ms = (time.monotonic() - begun_s) * 1e3
    owner.wait()
    return True


def at_any_moment(trial: Trial, moments: random.Random, found: Found) -> bool:
    """While clocks are set and released in turn."""
    owner = trial.start(moments.randrange(1 << 30))
    trial.until_locked()
    time.sleep(moments.random() * 0.5)
    kill(trial, owner)
    return True


def at_the_start(trial: Trial, moments: random.Random, found: Found) -> bool:
    """Between the process's start and its first lock."""
    owner = trial.start(moments.randrange(1 << 30))
    time.sleep(moments.random() * 0.8)
    kill(trial, owner)
    return True


def at_the_release(trial: Trial, moments: random.Random, found: Found) -> bool:
    """SIGTERM, and SIGKILL while it is being obeyed."""
    owner = trial.start(moments.randrange(1 << 30), steady=True)
    trial.until_locked()
    owner.terminate()
    time.sleep(moments.random() * 0.02)
    kill(trial, owner)
    return True


def slow_driver(trial: Trial, moments: random.Random, found: Found) -> bool:
    """In the middle of a set of 50 ms a GPU."""
    trial.board.script("nvmlDeviceSetGpuLockedClocks", delay_s=0.05)
    return at_any_moment(trial, moments, found)


def guard_first(trial: Trial, moments: random.Random, found: Found) -> bool:
    """The guard, and its owner a moment later."""
    owner = trial.start(moments.randrange(1 << 30), steady=True)
    trial.until_locked()
    for guard in trial.guards(owner):
        os.kill(guard, signal.SIGKILL)
    time.sleep(moments.random() * 0.3)
    kill(trial, owner)
    return False


def both(trial: Trial, moments: random.Random, found: Found) -> bool:
    """Owner and guard in one blow, as with a container."""
    owner = trial.start(moments.randrange(1 << 30))
    trial.until_locked()
    time.sleep(moments.random() * 0.3)
    guards = trial.guards(owner)
    owner.send_signal(signal.SIGSTOP)
    for guard in guards:
        os.kill(guard, signal.SIGKILL)
    kill(trial, owner)
    return False


def record_removed(trial: Trial, moments: random.Random, found: Found) -> bool:
    """The record, or its folder, or what is in it, is gone; then the owner."""
    owner = trial.start(moments.randrange(1 << 30), steady=True)
    trial.until_locked()
    record = trial.state / "clocks.json"
    match moments.randrange(4):
        case 0:
            record.unlink(missing_ok=True)
        case 1:
            shutil.rmtree(trial.state, ignore_errors=True)
        case 2:
            record.write_text('{"version": 1, "holdings": []}')
        case 3:
            record.write_bytes(record.read_bytes()[: moments.randrange(200)])
    kill(trial, owner)
    trial.until(lambda: not trial.board.locked(), GUARD_S)
    record.unlink(missing_ok=True)  # a record that cannot be read stops every start, as it should
    return True


def disk_full(trial: Trial, moments: random.Random, found: Found) -> bool:
    """The file system of the state folder is full, and is made room on after the death."""
    trial.state.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(trial.state)],
        check=False, capture_output=True,
    )  # fmt: skip
    owner = trial.start(moments.randrange(1 << 30))
    trial.until_locked()
    filler = trial.state / "filler"
    if mounted(trial):  # else this user may not mount, and it is a kill as any other
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    time.sleep(moments.random() * 0.3)
    kill(trial, owner)
    trial.until(lambda: not trial.board.locked(), GUARD_S)
    filler.unlink(missing_ok=True)
    return True


def read_only(trial: Trial, moments: random.Random, found: Found) -> bool:
    """The state folder becomes read-only (as root: a file system that is)."""
    owner = trial.start(moments.randrange(1 << 30))
    trial.until_locked()
    source, target = str(trial.state), str(trial.state)
    subprocess.run(["mount", "--bind", source, target], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", target], check=False, capture_output=True)
    time.sleep(moments.random() * 0.3)
    kill(trial, owner)
    trial.until(lambda: not trial.board.locked(), GUARD_S)
    unmount(trial)
    return True


def mounted(trial: Trial) -> bool:
    return f" {trial.state} " in Path("/proc/self/mounts").read_text()


def unmount(trial: Trial) -> None:
    while mounted(trial):
        subprocess.run(["umount", "-l", str(trial.state)], check=True, capture_output=True)


def stop(trial: Trial, process: "subprocess.Popen[str]") -> float:
    """Anywhere but within the fake board's file: no driver keeps everybody else from reading.

    Returns:
        When, on the monotonic clock.
    """
    while True:
        begun_s = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        with trial.board.path.with_suffix(".lock").open("a") as lock:
            for _ in range(50):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return begun_s
                time.sleep(0.005)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


def until_free(trial: Trial, found: Found, begun_s: float) -> None:
    """How long the guard of an owner that lives takes to give the GPUs back."""
    locked = bool(trial.board.locked())
    found.locked_while_guarded = not trial.until(lambda: not trial.board.locked(), 5.0)
    if locked:
        found.from_living_ms = (time.monotonic() - begun_s) * 1e3


def hung_reading(trial: Trial, moments: random.Random, found: Found) -> bool:
    """A clock is read and the driver does not answer; the owner's other threads run on."""
    owner = trial.start(moments.randrange(1 << 30))
    trial.until_locked()
    time.sleep(moments.random() * 0.3)
    times = 1 << 20
    trial.board.hang("nvmlDeviceGetClockInfo", pid=owner.pid, times=times)

    def asked() -> bool:
        with trial.board.state() as state:
            return any(entry["times"] < times for entry in state["script"])

    if trial.until(asked):
        until_free(trial, found, time.monotonic())
    kill(trial, owner)
    return True


def stopped(trial: Trial, moments: random.Random, found: Found) -> bool:
    """Stopped at any moment until its guard frees the GPUs; another locks them; it goes on."""
    first = trial.start(moments.randrange(1 << 30), steady=moments.random() < 0.5)
    trial.until_locked()
    time.sleep(moments.random() * 0.3)
    until_free(trial, found, stop(trial, first))
    second = trial.start(moments.randrange(1 << 30), steady=True)
    # It is refused where the first was stopped between two locks, or in the middle of the record.
    trial.until(lambda: bool(trial.board.locked()), 4.0)
    time.sleep(moments.random() * 0.3)
    first.send_signal(signal.SIGCONT)
    time.sleep(0.5 + moments.random() * 0.5)
    for owner in moments.sample([first, second], 2):
        kill(trial, owner)
    return True


def race_of_three(trial: Trial, moments: random.Random, found: Found) -> bool:
    """Three start at once on GPUs that overlap; each is killed in turn."""
    owners = [
        trial.start(moments.randrange(1 << 30), gpus) for gpus in ("GPU-0,GPU-1", "GPU-0", "GPU-1")
    ]
    time.sleep(0.3 + moments.random())
    for owner in moments.sample(owners, 3):
        kill(trial, owner)
        time.sleep(moments.random() * 0.3)
    return True


KINDS: tuple[Kind, ...] = (
    steady, at_any_moment, at_the_start, at_the_release, slow_driver, guard_first, both,
    record_removed, disk_full, read_only, stopped, hung_reading, race_of_three,
)  # fmt: skip


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


def run(kind: Kind, seed: int) -> Found:
    moments, found = random.Random(seed), Found()
    folder = Path(tempfile.mkdtemp(prefix="beam-kill-"))
    trial = Trial(folder)
    try:
        guarded = kind(trial, moments, found)
        if guarded and not trial.until(lambda: not trial.board.locked(), GUARD_S):
            found.locked_while_guarded = True
        found.false_releases = false_releases(trial)
        found.next_start_refused = not trial.next_start(seed)
        free = trial.until(lambda: not trial.board.locked(), GUARD_S)
        found.locked_after_next_start = not free
    finally:
        trial.end()
        unmount(trial)
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", help="only this one")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if arguments.kind in (None, kind.__name__)]
    counts: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in kinds}
    release_ms: list[float] = []
    from_living_ms: list[float] = []
    for number in range(arguments.kills):
        kind, seed = kinds[number % len(kinds)], arguments.seed * 1_000_003 + number
        found = run(kind, seed)
        count = counts[kind.__name__]
        count["kills"] += 1
        for fault in ("locked_after_next_start", "locked_while_guarded", "next_start_refused"):
            count[fault] += getattr(found, fault)
            if getattr(found, fault):
                print(f"{kind.__name__} seed {seed}: {fault}", file=sys.stderr)
        count["false_releases"] += found.false_releases
        if found.false_releases:
            print(f"{kind.__name__} seed {seed}: false releases", file=sys.stderr)
        if found.release_ms is not None:
            release_ms.append(found.release_ms)
        if found.from_living_ms is not None:
            from_living_ms.append(found.from_living_ms)
    total = sum(counts.values(), Counter())
    quantiles = statistics.quantiles(release_ms, n=100) if len(release_ms) > 1 else [0.0] * 99
    result = {
        "seed": arguments.seed,
        "total": {key: total[key] for key in counts[kinds[0].__name__]},
        "kinds": {name: dict(count) for name, count in counts.items()},
        "release_ms": {"n": len(release_ms), "p50": quantiles[49], "p99": quantiles[98]},
        "from_living_ms": {"n": len(from_living_ms), "max": max(from_living_ms, default=0.0)},
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{total['kills']} kills, seed {arguments.seed}")
    for key in ("locked_after_next_start", "locked_while_guarded", "false_releases"):
        print(f"  {key.replace('_', ' '):26} {total[key]:4}   (aim 0)")
    print(f"  next start refused         {total['next_start_refused']:4}")
    print(
        f"  release after SIGKILL      p50 {quantiles[49]:.1f} ms, p99 {quantiles[98]:.1f} ms of "
        f"{len(release_ms)}   (aim p99 100)"
    )
    if from_living_ms:
        print(
            f"  release from the living    p50 {statistics.median(from_living_ms):.0f} ms, longest "
            f"{max(from_living_ms):.0f} ms of {len(from_living_ms)}   (aim 1,000)"
        )


if __name__ == "__main__":
    main()
