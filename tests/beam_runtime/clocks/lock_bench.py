"""Owners in processes of their own, on GPUs that outlive them: what tests of leases start from."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beam_runtime.clocks.state_file import StateFile
from beam_runtime.testing.nvml_file import FileBoard

# How long a test waits for what takes well under a second before it calls it missing.
PATIENCE_S = 20.0

HOLDER = """
    import sys, time
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.setter import ClockSetter
    from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
    def tell(outcome):
        words = "set" if outcome.error is None else type(outcome.error).__name__
        why = str(outcome.error or "").replace(chr(10), "; ")
        print(words, outcome.clock_mhz, why, flush=True)
    spec = ActuatorSpec(ActuatorKind.NVML, tuple(sys.argv[2:]) or ("GPU-0",))
    setter = ClockSetter(GuardedActuator(spec.open(), spec), tell)
    setter.open()
    setter.want(int(sys.argv[1]))
    for line in sys.stdin:
        setter.want(int(line) or None)
    setter.close()
"""


def wait_for(what: Callable[[], object]) -> None:
    """Until it holds; an AssertionError if it never does."""
    end_s = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert what()


class LockBench:
    """A board of GPUs, a state folder, and owners to kill."""

    def __init__(self, folder: Path) -> None:
        self.board = FileBoard.create(folder, gpus=2)
        self.folder = folder
        self.state = StateFile(folder / "state")
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, program: str, *words: object, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *map(str, words)],
            env={**os.environ, **self.board.env, "BEAM_STATE_DIR": str(self.state.folder), **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def holder(self, clock_mhz: int, *gpus: str, **env: str) -> "subprocess.Popen[str]":
        """An owner that holds a lock, and takes wishes on its standard input."""
        process = self.start(HOLDER, clock_mhz, *gpus, **env)
        assert self.heard(process) == f"set {clock_mhz}"
        return process

    def heard(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def wish(self, process: "subprocess.Popen[str]", clock_mhz: int) -> str:
        assert process.stdin is not None
        process.stdin.write(f"{clock_mhz}\n")
        process.stdin.flush()
        return self.heard(process)

    def free(self) -> None:
        wait_for(lambda: not self.board.locked())

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.board.unscript()
        self.free()


def children(pid: int) -> list[int]:
    """Of all its threads: a guard is started by the one that talks to the driver."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LockBench]:
    made = LockBench(tmp_path)
    yield made
    made.end()
