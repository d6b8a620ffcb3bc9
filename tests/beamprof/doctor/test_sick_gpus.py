"""beam doctor shows each GPU as what it is, beside the others; each failing line has its remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest

from beam_runtime.clocks.state_file import StateFile
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus
from beamprof.doctor.diagnose import Diagnosis, diagnose

LOST, NOT_SUPPORTED, NO_PERMISSION, UNKNOWN = 15, 3, 4, 999


@pytest.fixture
def look(tmp_path: Path) -> Callable[[FakeNvml], Diagnosis]:
    return lambda nvml: diagnose(nvml=nvml, state=StateFile(tmp_path / "state"))


Look = Callable[[FakeNvml], Diagnosis]


@pytest.mark.parametrize(
    "function",
    ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName",
     "nvmlDeviceGetClockInfo", "nvmlDeviceGetPowerUsage"],
)  # fmt: skip
@pytest.mark.parametrize("code", [LOST, UNKNOWN])
def test_a_sick_gpu_hides_no_other(look: Look, function: str, code: int) -> None:
    nvml = FakeNvml(fake_gpus(4))
    if function == "nvmlDeviceGetHandleByIndex":
        real = nvml.nvmlDeviceGetHandleByIndex

        def handle(index: int) -> FakeGpu:
            if index == 1:
                raise FakeNvml.NVMLError(code)
            return real(index)

        nvml = type("Sick", (FakeNvml,), {"__slots__": (), function: lambda self, at: handle(at)})(
            gpus=nvml.gpus
        )
    else:
        nvml.fail(function, code, gpu=1)
    found = look(nvml)
    assert [gpu.index for gpu in found.gpus] == [0, 1, 2, 3]
    assert [bool(gpu.sick) for gpu in found.gpus] == [False, True, False, False]
    assert f"code {code}" in found.gpus[1].sick
    assert not found.well and not found.controls
    (line,) = (check for check in found.checks if check.name == "GPU 1" and check.ok is False)
    assert "dmesg" in line.remedy


@pytest.mark.parametrize(
    "function",
    ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature",
     "nvmlDeviceGetPersistenceMode", "nvmlDeviceGetMigMode", "nvmlDeviceGetEnforcedPowerLimit",
     "nvmlDeviceGetComputeRunningProcesses"],
)  # fmt: skip
def test_a_reading_that_a_gpu_does_not_have_is_no_sickness(look: Look, function: str) -> None:
    nvml = FakeNvml(fake_gpus(2))
    nvml.fail(function, NOT_SUPPORTED, gpu=0)
    found = look(nvml)
    assert [gpu.sick for gpu in found.gpus] == ["", ""]
    assert found.well


def old_nvml(function: str, gpus: list[FakeGpu]) -> FakeNvml:
    """A binding that has no such function."""

    def absent(self: FakeNvml) -> None:
        raise AttributeError(f"module 'pynvml' has no attribute {function!r}")

    made: FakeNvml = type("Old", (FakeNvml,), {"__slots__": (), function: property(absent)})(gpus)
    return made


FUNCTIONS = [name for name in dir(FakeNvml) if name.startswith("nvmlDevice")]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_binding_without_one_of_its_functions_ends_no_look(look: Look, function: str) -> None:
    found = look(old_nvml(function, fake_gpus(2)))
    needed = {"nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"}
    if function in needed:
        assert not found.controls
    else:
        assert [gpu.uuid for gpu in found.gpus] == ["GPU-0", "GPU-1"]


@pytest.mark.parametrize("field", ["memory_clocks_mhz", "clocks_mhz"])
def test_a_gpu_without_a_list_of_clocks_is_shown_as_one(look: Look, field: str) -> None:
    nvml = FakeNvml(fake_gpus(2))
    setattr(nvml.gpus[0], field, ())
    found = look(nvml)
    assert [gpu.clocks for gpu in found.gpus] == [0, 81]
    (line,) = (check for check in found.checks if check.name == "GPU 0" and check.ok is False)
    assert "lists no SM clocks" in line.found
    assert line.remedy


def test_a_display_card_comes_first_and_is_shown_as_itself(look: Look) -> None:
    display = FakeGpu("GPU-d", name="NVIDIA T400 4GB", memory_clocks_mhz=(5001, 405))
    found = look(FakeNvml([display, FakeGpu("GPU-h", name="NVIDIA H100 80GB HBM3")]))
    assert [(gpu.index, gpu.name) for gpu in found.gpus] == [
        (0, "NVIDIA T400 4GB"), (1, "NVIDIA H100 80GB HBM3"),
    ]  # fmt: skip


def test_a_lock_of_somebody_unknown_is_told_and_left(look: Look) -> None:
    nvml = FakeNvml(fake_gpus(2))
    nvml.gpus[1].lock_mhz = nvml.gpus[1].sm_clock_mhz = 735
    found = look(nvml)
    (line,) = (check for check in found.checks if "no record" in check.found)
    assert "735 MHz" in line.found and "nvidia-smi -rgc -i GPU-1" in line.remedy
    assert nvml.locked == [None, 735]
    assert not found.controls
