"""A list of GPUs is held against the layout, and their names against the table's."""

import pytest

from beam_runtime.clocks.layout import check_layout, check_model, models_of
from beam_runtime.errors import ClockUnavailableError, TableError
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus

A100 = "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([0], "1 GPUs are named for a replica of 8"),
        (range(9), "9 GPUs are named for a replica of 8"),
        (["GPU-a", "GPU-b"] * 4, "GPU GPU-a is named twice"),
    ],
)
def test_a_list_that_does_not_fit(gpus: list[int | str], words: str) -> None:
    with pytest.raises(ClockUnavailableError, match=words):
        check_layout(gpus, tp=2, pp=4)


def test_a_list_that_fits_and_none() -> None:
    check_layout(range(8), tp=2, pp=4)
    check_layout((), tp=2, pp=4)


@pytest.mark.parametrize(
    ("name", "gpu_name", "device"),
    [
        (A100, A100, "a100-sxm4-80gb"),
        (A100, "A100-SXM4-80GB", "a100-sxm4-80gb"),  # drivers before 460 had no NVIDIA in it
        (A100, "NVIDIA_A100-SXM4-80GB", ""),  # out of a file's name
        ("NVIDIA H100 80GB HBM3", "H100", "h100-sxm"),
        (A100, "", "a100-sxm4-80gb"),
        ("NVIDIA H100 80GB HBM3", "", "h100-sxm"),
        ("NVIDIA L40S", "", "l40s"),
        ("Tesla V100-SXM2-16GB", "", "paper"),  # a device that is no chip
        ("some new board", "", "h100-sxm"),
    ],
)
def test_the_same_kind(name: str, gpu_name: str, device: str) -> None:
    check_model([name, name], gpu_name, device)


@pytest.mark.parametrize(
    ("names", "gpu_name", "device"),
    [
        (["NVIDIA A100 80GB PCIe"], A100, "a100-sxm4-80gb"),
        (["NVIDIA H100 NVL"], "NVIDIA H100 80GB HBM3", "h100-sxm"),
        ([A100 + " MIG 3g.40gb"], A100, "a100-sxm4-80gb"),
        ([A100, "NVIDIA H100 80GB HBM3"], A100, "a100-sxm4-80gb"),
        (["NVIDIA L40"], "", "l40s"),
        ([A100], "", "h100-sxm"),
        (["NVIDIA GH200 480GB"], "", "h200-sxm"),
    ],
)
def test_another_kind(names: list[str], gpu_name: str, device: str) -> None:
    with pytest.raises(TableError, match=f"the table is for {gpu_name or device}") as caught:
        check_model(names, gpu_name, device)
    assert names[-1] in caught.value.message


def test_names_of_other_nodes_and_of_sick_gpus_are_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = FakeNvml([*fake_gpus(1), FakeGpu("GPU-h", name="NVIDIA H100 80GB HBM3")])
    monkeypatch.setattr("beam_runtime.clocks.nvml._import_pynvml", lambda: nvml)
    assert models_of([0, "GPU-h", "node2:4938/0"]) == (A100, "NVIDIA H100 80GB HBM3")
    assert models_of(["node2:4938/0"]) == models_of([7]) == ()
    check_model((), A100)
