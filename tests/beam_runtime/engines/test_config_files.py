"""beam.toml and the token: whatever lies at their names, the engine starts."""

import os
from pathlib import Path

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.errors import BeamError

ODD = ["pipe", "folder", "device", "dangling link", "nothing", "NUL in its name"]


def odd_place(folder: Path, kind: str) -> Path:
    path = folder / "odd"
    match kind:
        case "pipe":
            os.mkfifo(path)  # nobody ever writes to it
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")  # it never ends
        case "dangling link":
            path.symlink_to(folder / "nowhere")
        case "NUL in its name":
            path = folder / "o\0dd"
    return path


@pytest.mark.parametrize("kind", ODD)
def test_a_configuration_that_is_no_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BeamError, match="cannot read the configuration"):
        EmbeddedConfig.load(odd_place(tmp_path, kind))


@pytest.mark.parametrize("kind", ODD)
def test_a_token_that_is_no_file(tmp_path: Path, kind: str) -> None:
    config = EmbeddedConfig(token_file=odd_place(tmp_path, kind))
    with pytest.raises(BeamError, match="cannot read"):
        config.read_token({})


@pytest.mark.parametrize("content", [b"\xff" * 40, b"x" * (1 << 21)])
def test_contents_that_are_no_settings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(BeamError, match="cannot read the configuration"):
        EmbeddedConfig.load(path)
    with pytest.raises(BeamError, match="cannot read"):
        EmbeddedConfig(token_file=path).read_token({})


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    """As Kubernetes mounts them."""
    (tmp_path / "..data").write_text('policy = "off"\n')
    (tmp_path / "beam.toml").symlink_to("..data")
    assert EmbeddedConfig.load(tmp_path / "beam.toml").policy == "off"


@pytest.mark.parametrize("gpus", ["[-1]", "[4294967296]", '[""]', "[0, true]", "[1.0]", "[[0]]"])
def test_what_names_no_gpu_is_refused_by_its_field(tmp_path: Path, gpus: str) -> None:
    path = tmp_path / "beam.toml"
    path.write_text(f"[clock]\ngpus = {gpus}\n")
    with pytest.raises(BeamError, match=r"clock\.gpus must be"):
        EmbeddedConfig.load(path)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "beam.toml"
    path.write_text('policy = "steer"\n', encoding="utf-8-sig")
    assert EmbeddedConfig.load(path).policy == "steer"


def test_a_policy_of_the_environment_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "beam.toml"
    path.write_text("")
    with pytest.raises(BeamError, match="BEAM_POLICY must be off or observe or steer"):
        EmbeddedConfig.from_environment({"BEAM_CONFIG": str(path), "BEAM_POLICY": "Steer"})
