"""A site's own command: run per GPU, without a shell, undone when one GPU fails."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from lock_bench import PATIENCE_S, LockBench, bench, wait_for

from beam_runtime.clocks import command
from beam_runtime.clocks.calls import within
from beam_runtime.clocks.command import CommandGpus
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.nvml import FakeNvml, fake_gpus

__all__ = ["bench"]  # a fixture

SCRIPT = """
import json, pathlib, sys
calls = pathlib.Path(sys.argv[1])
calls.write_text(calls.read_text() + json.dumps(sys.argv[2:]) + "\\n")
if sys.argv[2:] == ["set", "GPU-1", "1", "1200"]:
    sys.exit("GPU-1 is not yours")
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    path = tmp_path / "calls"
    path.write_text("")
    return path


def actuator_of(calls: Path) -> CommandGpus:
    base = [sys.executable, "-c", SCRIPT, str(calls)]
    return CommandGpus(
        NvmlGpus(["GPU-0", "GPU-1"], nvml=FakeNvml(fake_gpus(2))),
        [*base, "set", "{gpu}", "{index}", "{clock_mhz}"],
        [*base, "release", "{gpu}", "$(touch nothing); {x}"],
    )


def test_a_command_is_started_as_programs_expect(calls: Path) -> None:
    """What BEAM's own threads block, a site's pipeline may rely on."""
    words = "import signal, sys; sys.exit(signal.SIGPIPE in signal.pthread_sigmask(0, ()))"
    argv = [sys.executable, "-c", words, "{gpu}", "{clock_mhz}"]
    actuator = CommandGpus(NvmlGpus(["GPU-0"], nvml=FakeNvml()), argv, argv[:-1])
    within(PATIENCE_S, lambda: actuator.set(1005))
    within(PATIENCE_S, actuator.release)


def test_what_a_command_says_is_told_in_one_plain_line(calls: Path) -> None:
    words = "import sys; sys.exit('no\\x1b[31m\\n\\x07way' + 'x' * 9000)"
    actuator = CommandGpus(
        NvmlGpus(["GPU-0"], nvml=FakeNvml()),
        [sys.executable, "-c", words, "{gpu}", "{clock_mhz}"],
        [sys.executable, "-c", "", "{gpu}"],
    )
    with pytest.raises(ClockError, match="failed") as caught:
        actuator.set(1005)
    said = str(caught.value.cause)
    assert said.startswith("exit 1: no\\x1b[31m \\x07way")
    assert said.isprintable() and len(said) < 600


def made(calls: Path) -> list[list[str]]:
    return [json.loads(line) for line in calls.read_text().splitlines()]


def test_each_gpu_gets_its_own_command_and_no_shell(calls: Path) -> None:
    actuator = actuator_of(calls)
    actuator.set(1005)
    actuator.release()
    actuator.release()
    assert made(calls) == [
        ["set", "GPU-0", "0", "1005"],
        ["set", "GPU-1", "1", "1005"],
        ["release", "GPU-0", "$(touch nothing); {x}"],
        ["release", "GPU-1", "$(touch nothing); {x}"],
    ]


def test_one_gpu_refuses_and_none_stays_locked(calls: Path) -> None:
    with pytest.raises(ClockError, match="failed") as caught:
        actuator_of(calls).set(1200)
    assert "GPU-1 is not yours" in str(caught.value.cause)
    assert [call[:2] for call in made(calls)] == [
        ["set", "GPU-0"],
        ["set", "GPU-1"],
        ["release", "GPU-0"],
        ["release", "GPU-1"],
    ]


def test_orphans_are_released_on_demand_only(calls: Path) -> None:
    actuator = actuator_of(calls)
    actuator.release()
    assert made(calls) == []
    actuator.release(orphans=True)
    assert [call[:2] for call in made(calls)] == [["release", "GPU-0"], ["release", "GPU-1"]]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["/nowhere/lock"], ClockUnavailableError),
        ([str(Path(__file__))], ClockPermissionError),
        ([sys.executable, "-c", "import time; time.sleep(60)"], ClockError),
    ],
)
def test_a_command_that_cannot_run(
    argv: list[str], error: type[ClockError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TIMEOUT_S", 0.05)
    gpus = NvmlGpus([0], nvml=FakeNvml())
    actuator = CommandGpus(gpus, [*argv, "{gpu}", "{clock_mhz}"], [sys.executable, "-V", "{gpu}"])
    with pytest.raises(error):
        actuator.set(1005)


@pytest.mark.parametrize(
    ("set_command", "release_command", "missing"),
    [
        (["lock", "{gpu}"], ["free", "{gpu}"], "{clock_mhz}"),
        (["lock", "{clock_mhz}"], ["free", "{gpu}"], "{gpu} or {index}"),
        (["lock", "{gpu}", "{clock_mhz}"], [], "{gpu} or {index}"),
    ],
)
def test_a_template_that_forgets_something(
    set_command: list[str], release_command: list[str], missing: str
) -> None:
    with pytest.raises(ClockUnavailableError) as caught:
        CommandGpus(NvmlGpus([0], nvml=FakeNvml()), set_command, release_command)
    assert missing in caught.value.message


COMMANDER = """
    import sys
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.lock import ClockLock
    from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
    folder = sys.argv[1]
    spec = ActuatorSpec(ActuatorKind.COMMAND, ("GPU-0",),
                        set_command=(folder + "/set", "{gpu}", "{clock_mhz}"),
                        release_command=(folder + "/release", "{gpu}"))
    with ClockLock(GuardedActuator(spec.open(), spec), settle_s=0.0) as lock:
        for line in sys.stdin:
            print("begin", flush=True)
            try:
                lock.set(int(line))
            except Exception as error:
                print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_under_way_when_its_owner_dies_is_waited_for_and_undone(
    bench: LockBench, number: signal.Signals
) -> None:
    """The command ends after its owner, and locks: whoever releases before that has not."""
    locked, begun = bench.folder / "locked", bench.folder / "begun"
    (bench.folder / "set").write_text(f"#!/bin/sh\ntouch {begun}\nsleep 0.6\necho $2 > {locked}\n")
    (bench.folder / "release").write_text(f"#!/bin/sh\nrm -f {locked}\n")
    for name in ("set", "release"):
        (bench.folder / name).chmod(0o755)
    owner = bench.start(COMMANDER, bench.folder)
    assert owner.stdin is not None
    owner.stdin.write("735\n")
    owner.stdin.flush()
    assert bench.heard(owner) == "begin"
    wait_for(begun.exists)
    owner.send_signal(number)
    owner.wait(20)
    guard_gone = bench.state.folder
    wait_for(lambda: not StateFile(guard_gone).read())
    time.sleep(1.0)  # longer than the command takes
    assert not locked.exists()
