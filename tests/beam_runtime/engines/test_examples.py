"""The configurations that examples and documentation show are ones that BEAM takes."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from beam_runtime.engines.config import EmbeddedConfig, EmbeddedPolicy
from beam_runtime.errors import BeamError

ROOT = Path(__file__).parents[3]


def shown() -> list[str]:
    """The TOML of the Kubernetes example, and of docs/vllm.md where it names a table."""
    manifest = (ROOT / "examples/kubernetes/vllm.yaml").read_text()
    (block,) = re.findall(r"beam\.toml: \|\n((?:    .*\n|\n)+)", manifest)
    page = (ROOT / "docs/vllm.md").read_text()
    blocks = re.findall(r"(?:^    .*\n|^\n)+", page, flags=re.MULTILINE)
    return [dedent(block)] + [
        dedent(one) for one in blocks if re.search(r"^    table = ", one, re.M)
    ]


@pytest.mark.parametrize("text", shown())
def test_it_is_read_and_only_observes(text: str, tmp_path: Path) -> None:
    file = tmp_path / "beam.toml"
    file.write_text(text)
    config = EmbeddedConfig.load(file)
    assert config.policy is EmbeddedPolicy.OBSERVE
    assert config.table is not None
    assert config.metrics_port == 9464


def test_policy_address_and_token_where_nobody_says(tmp_path: Path) -> None:
    file = tmp_path / "beam.toml"
    file.write_text('table = "t.parquet"\n')
    config = EmbeddedConfig.load(file)
    assert config.policy is EmbeddedPolicy.OBSERVE
    assert config.metrics_address == "127.0.0.1"
    assert config.read_token({}) == ""


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    file = tmp_path / "beam.toml"
    file.write_text('metrics_address = "::"\ntoken_file = "token"\n')
    config = EmbeddedConfig.load(file)
    assert config.metrics_address == "::"
    assert config.read_token({}) == "secret"
    assert config.read_token({"BEAM_TOKEN": "other"}) == "other"


@pytest.mark.parametrize("value", ['"everywhere"', "true", "9464", '""', '"host:1"'])
def test_an_address_is_an_ip_address(value: str, tmp_path: Path) -> None:
    file = tmp_path / "beam.toml"
    file.write_text(f"metrics_address = {value}\n")
    with pytest.raises(BeamError, match="metrics_address must be an IP address"):
        EmbeddedConfig.load(file)


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_token_file_without_a_token_is_said(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "token").write_text(text)
    file = tmp_path / "beam.toml"
    file.write_text('token_file = "token"\n')
    with pytest.raises(BeamError, match="token"):
        EmbeddedConfig.load(file).read_token({})
