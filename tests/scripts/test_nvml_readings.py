"""scripts/nvml_readings.py against the fake NVML: what it reads, what it leaves alone."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from beam_runtime.clocks import nvml as clocks_nvml
from beam_runtime.testing import FakeNvml
from beam_runtime.testing.nvml import FakeGpu

SCRIPT = Path(__file__).parents[2] / "scripts" / "nvml_readings.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nvml_readings", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Time:
    """Seconds that pass only when somebody sleeps, or reads the energy counter."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def time(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(script, "time", clock)
    return clock


def ticking(time: Time, watts: float, tick_s: float) -> FakeNvml:
    """A counter that moves once in a while, by what was drawn since; a read takes 20 us."""

    def tick(gpu: FakeGpu) -> None:
        time.now_s += 20e-6
        gpu.energy_mj = int(time.now_s / tick_s) * int(watts * tick_s * 1e3)

    return FakeNvml([FakeGpu("GPU-0", name="NVIDIA H200", power_mw=81_000)], on_energy=tick)


def read(script: ModuleType, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(clocks_nvml, "_import_pynvml", lambda: nvml)
    monkeypatch.setattr(sys, "argv", ["nvml_readings.py", *words])
    return int(script.main())


def test_waiting_power_and_the_counters_tick(
    script: ModuleType, time: Time, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    nvml = ticking(time, watts=80.0, tick_s=0.1)
    assert read(script, nvml, monkeypatch, "--seconds", "5") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"] == "NVIDIA H200"
    assert found["power_usage_w"] == 81.0
    assert found["counter"]["waiting_w"] == pytest.approx(80.0, rel=0.03)
    assert found["counter"]["tick_s"] == pytest.approx(0.1, rel=0.02)
    assert found["counter"]["step_j"] == pytest.approx(8.0)
    assert found["latency_us"]["energy"]["median"] == pytest.approx(20.0)
    assert found["latency_us"]["energy"]["p99"] >= found["latency_us"]["energy"]["median"]


def test_nothing_is_set(script: ModuleType, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = ticking(time, watts=80.0, tick_s=0.1)
    read(script, nvml, monkeypatch, "--seconds", "1")
    assert not [call for call in nvml.calls if "Set" in call or "Reset" in call]
    assert nvml.locked == [None]
    assert not nvml.initialised


def test_a_counter_that_stands_still_says_nothing_of_power(
    script: ModuleType, time: Time, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    nvml = FakeNvml([FakeGpu("GPU-0", energy_mj=7)])
    assert read(script, nvml, monkeypatch, "--seconds", "2") == 0
    counter = json.loads(capsys.readouterr().out)["counter"]
    assert counter == {"waiting_w": None, "tick_s": None, "step_j": None, "ticks": 0.0}


def test_a_gpu_that_is_not_there_is_an_error_with_a_hint(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(script, FakeNvml(), monkeypatch, "--gpu", "9") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "hint: " in err
