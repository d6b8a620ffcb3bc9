"""Ways to kill an owner of a lock, each at a moment by chance.

Each says whether its guard lived, and so had to free the GPUs.
"""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from kill_trials import GUARD_S, Found, Trial, mounted, unmount

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
