"""CUDA_VISIBLE_DEVICES, however it is spelt, means the GPU that CUDA takes, or none."""

import pytest

from beam_runtime.clocks.visible import visible_gpus
from beam_runtime.errors import ClockUnavailableError
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus

UUIDS = [f"GPU-{letter}0000000-1111" for letter in "abcd"]


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml([FakeGpu(uuid) for uuid in UUIDS])


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        (None, "abcd"),
        ("", ""),
        ("  ", ""),
        ("2", "c"),
        (" 3 ,1 ", "db"),
        ("00001", "b"),  # one, not the first four digits of it
        ("00000000000", ""),  # longer than any index
        ("10000", ""),
        ("4294967296", ""),  # 0 in 32 bits
        ("-1", ""),
        ("1,-1,2", "b"),  # what is none ends the list
        ("1,,2", "b"),
        ("1,7,2", "b"),
        ("1.0", ""),
        ("\u0661", ""),  # a digit, but not CUDA's
        ("GPU-c", "c"),
        ("GPU-c0000000-1111, GPU-a", "ca"),
        ("GPU-", ""),  # of four, which?
        ("GPU-e", ""),
        ("none", ""),
        ("NoDevFiles", ""),
    ],
)
def test_what_it_names(nvml: FakeNvml, named: str | None, seen: str) -> None:
    environment = {} if named is None else {"CUDA_VISIBLE_DEVICES": named}
    expected = [next(uuid for uuid in UUIDS if uuid[4] == letter) for letter in seen]
    assert visible_gpus(environment, nvml=nvml) == expected


@pytest.mark.parametrize("named", ["0,0", "1,GPU-b", "GPU-b,GPU-b0"])
def test_twice_is_refused(nvml: FakeNvml, named: str) -> None:
    with pytest.raises(ClockUnavailableError, match="twice"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": named}, nvml=nvml)


def test_a_slice_is_named_by_its_own_name(nvml: FakeNvml) -> None:
    named = {"CUDA_VISIBLE_DEVICES": "MIG-5ca1ab1e-0000"}
    assert visible_gpus(named, nvml=nvml) == ["MIG-5ca1ab1e-0000"]


def test_an_index_among_unlike_boards_says_nothing_without_their_order() -> None:
    nvml = FakeNvml([FakeGpu("GPU-t", name="NVIDIA T400 4GB"), *fake_gpus(1)])
    with pytest.raises(ClockUnavailableError, match="cannot be told"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}, nvml=nvml)
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_gpus(ordered, nvml=nvml) == ["GPU-0"]
