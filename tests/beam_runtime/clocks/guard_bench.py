"""GPUs in a file, a state folder, and owners to kill: what tests of the guard start from."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from lock_bench import PATIENCE_S

from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import StateFile

OWNER = """
    import sys, time
    from pathlib import Path
    from beam_runtime.clocks.guard import Guard
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.file_gpus import FileGpus
    from beam_runtime.clocks.lock import ClockLock
    from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
    from beam_runtime.clocks.state_file import StateFile

    gpus, folder, timeout_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

    def guard(spec, state, lease):
        return Guard(spec, state, lease, heartbeat_timeout_s=timeout_s)

    spec = ActuatorSpec(ActuatorKind.FILE, FileGpus(gpus).gpus, file=gpus)
    actuator = GuardedActuator(spec.open(), spec, StateFile(folder), guard=guard)
    try:
        lock = ClockLock(actuator)
        lock.set(1005)
        print("locked", flush=True)
        {end}
    except BaseException as error:
        print(f"{{type(error).__name__}}: {{error}}", flush=True)
        raise
"""


class Bench:
    """A file of GPUs, a state folder, and owners to kill."""

    def __init__(self, folder: Path) -> None:
        self.gpus = folder / "gpus.json"
        self.state = StateFile(folder / "state")
        FileGpus.create(self.gpus, 2)

    def owner(self, end: str = "time.sleep(600)", timeout_s: float = 60.0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(OWNER).format(end=end),
                str(self.gpus),
                str(self.state.folder),
                str(timeout_s),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    def locked(self) -> dict[str, int]:
        return FileGpus.locked(self.gpus)

    def wait_until_free(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while (self.locked() or self.state.read()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert self.locked() == {}
        assert self.state.read() == ()

    def spec(self) -> ActuatorSpec:
        return ActuatorSpec(ActuatorKind.FILE, FileGpus(self.gpus).gpus, file=str(self.gpus))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
