"""The [clock] part of beam.toml: whose clocks are set."""

from pathlib import Path

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.engines.vllm.power import open_wattmeter
from beam_runtime.errors import BeamError


def load(tmp_path: Path, text: str) -> EmbeddedConfig:
    path = tmp_path / "beam.toml"
    path.write_text(text)
    return EmbeddedConfig.load(path)


def test_gpus_of_other_nodes_follow_this_machines(tmp_path: Path) -> None:
    text = """
        [clock]
        gpus = ["GPU-8f", 1]
        [clock.nodes]
        "node2.rack-7:4938" = [0, 1]
        "[fd00::7]:4938" = [3]
    """
    assert load(tmp_path, text).gpus == (
        "GPU-8f", 1, "node2.rack-7:4938/0", "node2.rack-7:4938/1", "[fd00::7]:4938/3",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ('nodes = ["node2:4938"]', "clock.nodes must be a table"),
        ('nodes = {"node2" = [0]}', "clock.nodes.node2 must be named HOST:PORT"),
        ('nodes = {"node2:65536" = [0]}', "must be named HOST:PORT"),
        ('nodes = {"http://node2:4938" = [0]}', "must be named HOST:PORT"),
        ('nodes = {"node2:4938" = 4}', "must be a list of NVML indices"),
        ('nodes = {"node2:4938" = [-1]}', "must be a list of NVML indices"),
        ('nodes = {"node2:4938" = ["GPU-8f"]}', "must be a list of NVML indices"),
        ('nodes = {"node2:4938" = [true]}', "must be a list of NVML indices"),
    ],
)
def test_what_is_no_node_is_refused(tmp_path: Path, nodes: str, message: str) -> None:
    with pytest.raises(BeamError, match=message):
        load(tmp_path, f"[clock]\ngpus = [0]\n{nodes}")


def test_other_nodes_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BeamError, match=r"clock\.gpus must be this node's GPUs"):
        load(tmp_path, '[clock.nodes]\n"node2:4938" = [0]')


def test_an_index_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "beam.toml"
    path.write_text(f'[clock]\ngpus = [0]\nnodes = {{ "a:1" = [0x{"f" * 5000}] }}\n')
    with pytest.raises(BeamError, match=r"clock\.nodes\.a:1 is a whole number"):
        EmbeddedConfig.load(path)


def test_no_meter_for_other_nodes() -> None:
    assert open_wattmeter(["node2:4938/0"]) is None


def test_an_index_is_a_number(tmp_path: Path) -> None:
    """As in CUDA_VISIBLE_DEVICES: NVML would look for a UUID of that name."""
    with pytest.raises(BeamError, match=r'0, not "0"'):
        load(tmp_path, '[clock]\ngpus = ["0", "1"]\n')


def test_a_daemon_listens_at_a_port_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BeamError, match=r"clock\.nodes\.node2:0"):
        load(tmp_path, '[clock]\ngpus = [0]\n[clock.nodes]\n"node2:0" = [0]\n')
