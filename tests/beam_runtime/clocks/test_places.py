"""Which names are of this machine's GPUs, and which of another's."""

import pytest

from beam_runtime.clocks.places import by_place, index_on_node, node_of, on_node
from beam_runtime.errors import ClockUnavailableError


@pytest.mark.parametrize(
    "gpu",
    [
        0, 7, "GPU-8f3c", "0000:17:00.0", "MIG-5ca1ab1e-0000",
        "MIG-GPU-8f3c0000-1111/1/0",  # as drivers before 470 name a slice
    ],
)  # fmt: skip
def test_of_this_machine(gpu: str | int) -> None:
    assert node_of(gpu) == ""
    assert by_place([gpu]) == {"": (gpu,)}


@pytest.mark.parametrize("address", ["node2:4938", "10.0.0.2:4938", "[fe80::1]:4938"])
def test_of_another(address: str) -> None:
    gpu = on_node(address, 3)
    assert (node_of(gpu), index_on_node(gpu)) == (address, 3)
    assert by_place([gpu, 0]) == {"": (0,), address: (gpu,)}


@pytest.mark.parametrize("gpu", ["node2:4938/", "node2:4938/x", "node2:4938/-1", "n:1/00000"])
def test_an_index_that_is_none(gpu: str) -> None:
    with pytest.raises(ClockUnavailableError, match="no GPU of another node"):
        index_on_node(gpu)
