"""Point 4, as real processes: what does not come back keeps neither the GPUs nor the process."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_bench import PATIENCE_S, wait_for

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.testing.nvml_file import FileBoard
from beamprof.tables.table_file import write_table

# A server on GPUs that several processes see. Told so by SIGUSR1, something in it hangs.
SERVER = """
    import os, signal, sys, threading, time
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
    from beam_runtime.control.controller import Controller
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.table.step_cost import StepCost
    from beam_runtime.types import Decision, EngineLimits, Forecast, Knobs

    what, table = sys.argv[1:]
    now = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: now.set())
    spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0", "GPU-1"))
    nothing = Forecast({}, {}, -1.0, -1.0, None, None, 0.0, 0.0, 250.0, 1.0, 1.0)

    def hang():
        while what == "spin":
            pass
        time.sleep(3600)

    def search(state):
        if now.is_set() and what in ("sleep", "spin"):
            hang()
        return Decision(Knobs(735 if int(2 * time.monotonic()) % 2 else 960, 256), nothing, "")

    class Adapter:
        def apply(self, orders):
            if now.is_set() and what == "apply" and orders.steering:
                hang()

        def snapshot(self):
            if now.is_set() and what == "snapshot":
                hang()
            raise LookupError("it has none")

    cost = StepCost.from_table(PerfTable.load(table))
    limits = EngineLimits(pp=4)
    with Controller(cost, limits, actuator=GuardedActuator(spec.open(), spec), search=search,
                    engine=Adapter()) as beam:
        number = 0
        while True:
            beam.arrival(f"r{number}", 100)
            beam.abort(f"r{number}")
            number += 1
            own = not beam.orders.steering and beam.orders.knobs.chunk_tokens > 256
            print("own" if own else "token", flush=True)
            if now.is_set() and what == "fork" and os.fork() == 0:
                beam.arrival("child's", 100)
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)
                print("child", os.getpid(), flush=True)
                time.sleep(3600)
            if what == "fork":
                now.clear()
            time.sleep(0.02)
"""


class Server:
    """One of them."""

    def __init__(self, folder: Path, what: str) -> None:
        self.board = FileBoard.create(folder, gpus=2)
        self.out = folder / "out"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(SERVER), what, str(folder / "t.parquet")],
                stdout=out,
                env={**os.environ, **self.board.env, "BEAM_STATE_DIR": str(folder / "state")},
            )

    def said(self) -> list[str]:
        return self.out.read_text().splitlines()

    def serves_on(self) -> None:
        """Tokens come, now and after now."""
        count = len(self.said())
        wait_for(lambda: len(self.said()) > count + 5)

    def until_locked(self) -> None:
        wait_for(lambda: len(self.board.locked()) == 2)


@pytest.fixture
def start(
    mortal_children: None,
    small_table: PerfTable,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Server]:
    write_table(small_table.columns, small_table.metadata, tmp_path / "t.parquet")
    server = Server(tmp_path, request.param)
    try:
        server.until_locked()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("start", ["sleep", "spin", "apply", "snapshot"], indirect=True)
def test_what_never_comes_back(start: Server) -> None:
    start.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: not start.board.locked())
    start.serves_on()
    wait_for(lambda: start.said()[-1] == "own")
    start.process.terminate()
    assert start.process.wait(PATIENCE_S) == -signal.SIGTERM
    assert not start.board.locked()


@pytest.mark.parametrize("start", ["a driver call"], indirect=True)
def test_a_driver_call_that_never_comes_back(start: Server) -> None:
    start.board.hang("nvmlDeviceSetGpuLockedClocks", pid=start.process.pid)
    wait_for(lambda: not start.board.locked())
    wait_for(lambda: start.said()[-1] == "own")
    start.serves_on()
    assert not start.board.locked(), "while one hangs no other is begun"
    start.process.terminate()
    assert start.process.wait(PATIENCE_S) == -signal.SIGTERM
    assert not start.board.locked()


@pytest.mark.parametrize("start", ["fork"], indirect=True)
def test_a_child_ends_when_it_is_told_to_and_touches_nothing(start: Server) -> None:
    start.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: any(line.startswith("child ") for line in start.said()))
    (child,) = (int(line.split()[1]) for line in start.said() if line.startswith("child "))
    os.kill(child, signal.SIGTERM)
    wait_for(lambda: not alive(child))
    start.serves_on()
    start.until_locked()
    actors = {entry["pid"] for entry in start.board.history()}
    assert child not in actors


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
