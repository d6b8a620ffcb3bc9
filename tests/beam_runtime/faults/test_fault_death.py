"""Point 3: processes end, in any way, start twice, fork, or find what a reboot left behind."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from fault_bench import PATIENCE_S, Bench, requests, wait_for

from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.control.controller import Controller
from beam_runtime.table.perf_table import PerfTable
from beamprof.tables.table_file import write_table

# A server that serves for ever, on GPUs in a file.
SERVER = """
    import signal, sys, time
    from pathlib import Path
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
    from beam_runtime.clocks.state_file import StateFile
    from beam_runtime.control.controller import Controller
    from beam_runtime.table.step_cost import StepCost
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.types import Decision, EngineLimits, Forecast, Knobs

    def fail(*_):
        raise RuntimeError("a bug in the server")

    signal.signal(signal.SIGUSR1, fail)
    gpus, folder, table = sys.argv[1:]
    spec = ActuatorSpec(ActuatorKind.FILE, file=gpus)
    actuator = GuardedActuator(spec.open(), spec, StateFile(Path(folder)))
    nothing = Forecast({}, {}, -1.0, -1.0, None, None, 0.0, 0.0, 250.0, 1.0, 1.0)

    def search(state):
        return Decision(Knobs(735 if len(state.waiting) % 2 else 960, 256), nothing, "")

    cost = StepCost.from_table(PerfTable.load(table))
    with Controller(cost, EngineLimits(pp=4), actuator=actuator, search=search) as beam:
        number = 0
        while True:
            beam.arrival(f"r{number}", 100)
            number += 1
            print("token", flush=True)
            time.sleep(0.02)
"""


@pytest.fixture
def server(
    mortal_children: None, small_table: PerfTable, tmp_path: Path
) -> "subprocess.Popen[str]":
    write_table(small_table.columns, small_table.metadata, tmp_path / "small.parquet")
    FileGpus.create(tmp_path / "gpus.json", 2)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(SERVER),
            str(tmp_path / "gpus.json"),
            str(tmp_path / "state"),
            str(tmp_path / "small.parquet"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: bool(FileGpus.locked(tmp_path / "gpus.json")))
    return process


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGKILL],
        [signal.SIGTERM],
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGHUP],
        [signal.SIGSEGV],
        [signal.SIGUSR1],  # an exception
    ],
)
def test_it_dies(
    server: "subprocess.Popen[str]", tmp_path: Path, signals: list[signal.Signals]
) -> None:
    for number in signals:
        server.send_signal(number)
    out, _ = server.communicate(timeout=PATIENCE_S)
    assert set(out.split()) == {"token"}, "what was served was served as ever"
    wait_for(lambda: not FileGpus.locked(tmp_path / "gpus.json"))
    wait_for(lambda: not StateFile(tmp_path / "state").read())


def guarded(gpus: Path, state: StateFile) -> GuardedActuator:
    return GuardedActuator(FileGpus(gpus), ActuatorSpec(ActuatorKind.FILE, file=str(gpus)), state)


def test_a_second_controller_is_refused_and_its_engine_serves(
    bench: Bench, server: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    gpus = tmp_path / "gpus.json"
    bench.actuator = guarded(gpus, StateFile(tmp_path / "state"))
    bench.run(requests())
    assert f"held by process {server.pid}" in bench.after.reason
    assert FileGpus.locked(gpus), "the first one's lock stands"
    server.kill()
    server.communicate()
    wait_for(lambda: not FileGpus.locked(gpus))


def test_what_a_reboot_left_on_record_is_in_nobodys_way(bench: Bench, tmp_path: Path) -> None:
    """The lock died with the boot; its record names a process number that is alive again."""
    gpus, state = tmp_path / "gpus.json", StateFile(tmp_path / "state")
    FileGpus.create(gpus, 2)
    rebooted = replace(Owner.current(), boot_id="before the reboot")
    with state.change() as holdings:
        holdings.append(Holding(rebooted, FileGpus(gpus).gpus, 1005, "nvml"))
    bench.actuator = guarded(gpus, state)
    bench.locked = lambda: list(FileGpus.locked(gpus).values()) or [None]
    locks: set[int | None] = set()
    bench.run(requests(), meanwhile=lambda controller, now_ms: locks.update(bench.locked_mhz))
    assert bench.after.steering
    assert {735, 1185} <= locks
    assert state.read() == ()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_serving(bench: Bench, tmp_path: Path) -> None:
    """The child says what children say, and ends; its parent's engine and clocks are its own."""
    gpus = tmp_path / "gpus.json"
    FileGpus.create(gpus, 2)
    bench.actuator = FileGpus(gpus)
    bench.locked = lambda: list(FileGpus.locked(gpus).values()) or [None]
    children: list[int] = []

    def fork(controller: Controller, now_ms: float) -> None:
        if children or not FileGpus.locked(gpus):
            return
        child = os.fork()
        if child == 0:
            before = FileGpus.locked(gpus)
            controller.arrival("child's", 100)
            controller.close()
            os._exit(0 if FileGpus.locked(gpus) == before else 1)
        children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    bench.run(requests(), meanwhile=fork)
    assert children == [0], "the child left its parent's lock alone"
    assert bench.after.steering
    assert bench.after.odd_events == 0
