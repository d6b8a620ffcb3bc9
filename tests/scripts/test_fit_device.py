"""What docs/benchmarks.md says of operators against device files, by scripts/fit_device.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs scipy, of the test extra")

ROOT = Path(__file__).parents[2]
OPERATORS = ROOT / ".." / "shared" / "data" / "operators-aiconfigurator"
pytestmark = pytest.mark.skipif(
    not OPERATORS.is_dir(), reason="the measurements in ../shared/data are absent"
)


def printed(*words: str) -> str:
    line = [sys.executable, str(ROOT / "scripts" / "fit_device.py"), *words, "--errors"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("device", ["h100-sxm", "h200-sxm"])
def test_hoppers_operators_are_within_what_is_promised(device: str) -> None:
    text = printed(device)
    (over_all,) = re.findall(rf"{device} all .* MAPE ([\d.]+)%", text)
    assert float(over_all) <= 8.0
    for family in ("GEMM", "attention", "MLA", "- on a node"):
        pattern = rf"{device} {family} .* fitted +([\d.]+)% +held out +([\d.]+)%"
        (errors,) = re.findall(pattern, text)
        assert max(map(float, errors)) <= 10.0, family


def test_power_is_printed_beside_what_its_readings_allow() -> None:
    text = printed("h200-sxm", "--power", "--operators", str(OPERATORS / "power" / "h200_sxm"))
    fitted, held, near = re.findall(r"fitted ([\d.]+)%, held out +([\d.]+)%.* to ([\d.]+)%", text)[
        0
    ]
    assert 10.0 < float(near) < min(float(fitted), float(held)) < 20.0
