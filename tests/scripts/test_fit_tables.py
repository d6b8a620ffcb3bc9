"""scripts/fit_tables.py: the way to a device file that docs/device-file.md describes, and drift."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from beamprof.cli.main import main
from beamprof.devices.device import resolve_device

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SWEEP = "cells_per_clock = 12\nmax_tokens = 256\nmax_decodes = 64\nclocks = {clocks}\ntrials = 1\n"


def fit_tables(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "fit_tables.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def device_file(folder: Path, name: str, **constants: float) -> Path:
    """The A100's file with other constants, under another name."""
    text = (ROOT / "beamprof" / "devices" / "a100-sxm4-80gb.toml").read_text("utf-8")
    for constant, value in constants.items():
        text, hits = re.subn(rf"^{constant} = [^#\n]*", f"{constant} = {value}", text, flags=re.M)
        assert hits == 1
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPU that is slower and hungrier than the A100."""
    folder = tmp_path_factory.mktemp("truth")
    return device_file(
        folder, "truth", load_bytes_per_clock=22.0, kernel_us=9.0, busy_w_per_ghz=90.0
    )


def measured(truth: Path, clocks: str) -> Path:
    """A table of it, few cells at few clocks."""
    sweep, table = truth.with_name("sweep.toml"), truth.with_name("mine.parquet")
    sweep.write_text(SWEEP.format(clocks=clocks))
    words = ["--model", "llama3-8b", "--backend", "modelled", "--device", str(truth)]
    assert main(["profile", *words, "--sweep", str(sweep), "-o", str(table), "--fresh",
                 "--force"]) == 0  # fmt: skip
    return table


@pytest.mark.parametrize("clocks", ["[510, 960, 1410]", "[1410]"])
def test_a_handful_of_passes_makes_a_device_file(truth: Path, tmp_path: Path, clocks: str) -> None:
    table, mine = measured(truth, clocks), device_file(tmp_path, "mine")
    before = resolve_device(str(mine))
    done = fit_tables(str(mine), "--table", str(table), "--write")
    assert done.returncode == 0, done.stderr
    latency, energy = map(float, re.findall(r"([\d.]+) % \(bias", done.stdout)[:2])
    assert latency < 2.5
    assert energy < 2.5
    after = resolve_device(str(mine))
    assert after.launch.kernel_us > 1.3 * before.launch.kernel_us
    assert after.power.busy_w_per_ghz > 1.2 * before.power.busy_w_per_ghz
    assert after.power.clock_w_per_ghz == before.power.clock_w_per_ghz
    pairs = zip(after.memory.bandwidth_tbps, before.memory.bandwidth_tbps, strict=True)
    factors = [new / old for new, old in pairs]
    assert 0.7 < min(factors) < 1.3
    if clocks == "[1410]":  # what changes with the clock cannot be told: it stays
        assert max(factors) - min(factors) < 0.003
        assert after.power.voltage_slope_per_ghz == before.power.voltage_slope_per_ghz


def test_held_out_errors_leave_batches_out(truth: Path, tmp_path: Path) -> None:
    table = measured(truth, "[1410]")
    done = fit_tables(str(device_file(tmp_path, "mine")), "--table", str(table), "--held-out")
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"^held out: every third batch from \d+ +latency +([\d.]+) %", done.stdout,
                        flags=re.M)  # fmt: skip
    assert len(errors) == 3
    assert max(map(float, errors)) < 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.toml", "--table", "nothing.parquet"], "nothing"),
        (["a6000"], "no tables of a6000"),
        (["h100-sxm", "--table", "nothing.parquet"], "nothing.parquet"),
    ],
)
def test_what_is_not_there_is_said(words: list[str], said: str) -> None:
    done = fit_tables(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not (DATA / "measured-more-nodes").is_dir(), reason="no measured-more-nodes")
def test_the_committed_file_comes_out_of_the_fit() -> None:
    done = fit_tables("a100-pcie-80gb", "--check")
    assert done.returncode == 0, done.stderr


def test_the_a100s_share_their_kernels() -> None:
    one, other = map(resolve_device, ("a100-sxm4-80gb", "a100-pcie-80gb"))
    assert one.gemm["bfloat16"] == other.gemm["bfloat16"]
    assert one.launch == other.launch
