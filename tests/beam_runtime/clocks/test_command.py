"""A site's own command: run per GPU, without a shell, undone when one GPU fails."""

import json
import sys
from pathlib import Path

import pytest

from beam_runtime.clocks import command
from beam_runtime.clocks.command import CommandGpus
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.nvml import FakeNvml, fake_gpus

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
