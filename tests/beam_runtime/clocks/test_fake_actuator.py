import pytest

from beam_runtime.clocks.base import ClockActuator, ClockReading, check_supported
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import ClockUnavailableError
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.nvml import FakeNvml


@pytest.mark.parametrize("actuator", [FakeActuator(), NvmlGpus([0], nvml=FakeNvml())])
def test_real_and_fake_behave_alike(actuator: ClockActuator) -> None:
    clocks = actuator.supported_clocks_mhz()
    assert clocks == tuple(range(210, 1411, 15))
    actuator.set(clocks[3])
    assert [reading.clock_mhz for reading in actuator.read_back()] == [clocks[3]]
    assert [reading.gpu for reading in actuator.read_back()] == list(actuator.gpus)
    actuator.release()
    assert [reading.clock_mhz for reading in actuator.read_back()] == [clocks[-1]]
    with pytest.raises(ClockUnavailableError):
        actuator.set(clocks[-1] + 1)


def test_gpus_without_a_common_clock_are_told_so() -> None:
    with pytest.raises(ClockUnavailableError, match="in common"):
        check_supported(1005, ())


@pytest.mark.parametrize(
    ("reading_mhz", "reasons", "obeys"),
    [
        (1005, (), True),
        (1012, (), True),
        (990, (), False),
        (1020, (), False),
        (990, ("power cap",), True),
        (990, ("clock setting",), False),
        (990, ("thermal, software",), False),
        (1020, ("gpu idle",), False),
    ],
)
def test_what_counts_as_obeying_a_lock(
    reading_mhz: int, reasons: tuple[str, ...], obeys: bool
) -> None:
    assert ClockReading("GPU-0", reading_mhz, reasons).obeys(1005) is obeys
