"""The power constants in the device files are what scripts/fit_servers.py fits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import server_steps

from beamprof.devices.device import resolve_device

pytest.importorskip("scipy", reason="needs scipy, of the test extra")

ROOT = Path(__file__).parents[2]
SERVERS = ROOT / ".." / "shared" / "data" / "mlenergy-v3"
FITTED = ("busy_w_per_ghz", "tensor_w_per_ghz", "memory_w_per_tbps")
pytestmark = pytest.mark.skipif(not SERVERS.is_dir(), reason="mlenergy-v3 is not at hand")


@pytest.mark.parametrize(("device", "engine"), [("h100-sxm", "H100"), ("b200", "B200")])
def test_what_is_fitted_is_what_is_committed(device: str, engine: str) -> None:
    """A change of modelled times moves the fit: it is to be run again, and its error stated."""
    line = [sys.executable, str(ROOT / "scripts" / "fit_servers.py"), device]
    text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    power = resolve_device(device).power
    for name in FITTED:
        (fitted,) = re.findall(rf"^{name} +([\d.]+)", text, re.MULTILINE)
        assert float(fitted) == pytest.approx(getattr(power, name), rel=0.01), name
    kept = server_steps.ENGINES[engine]
    for name in ("step_ms", "request_ms", "sort_ns"):
        (fitted,) = re.findall(rf"{name}=([\d.e-]+)", text)
        assert float(fitted) == pytest.approx(getattr(kept, name), rel=0.02, abs=1e-4), name


def test_hopper_on_one_die_has_one_law_of_power() -> None:
    h100, h200 = (resolve_device(name).power for name in ("h100-sxm", "h200-sxm"))
    for name in (*FITTED, "attention_share", "reduce_idle_share"):
        assert getattr(h100, name) == getattr(h200, name), name
