"""A sweep that its budget cannot hold is refused before it starts, not after."""

import json

import pytest

from beam_runtime.types import StepShape
from beamprof.cli.main import main
from beamprof.errors import SweepError
from beamprof.models.registry import resolve_model
from beamprof.profiler import slow_device
from beamprof.profiler.plan import Plan
from beamprof.profiler.slow_device import check_budget, cpu_speeds
from beamprof.units import format_duration

PLAN = Plan((0,), (StepShape(512), StepShape(decode_requests=8, decode_context_tokens=4096)), 1.0,
            rounds=2, window_s=1.0, seed=0)  # fmt: skip


@pytest.fixture
def stage():
    return resolve_model("llama3-8b").shard(1, 1)


def at(monkeypatch, flops_per_s, bytes_per_s):
    monkeypatch.setattr(slow_device, "cpu_speeds", lambda: (flops_per_s, bytes_per_s))


def test_a_pass_longer_than_its_window_counts_as_long_as_it_takes(stage, monkeypatch):
    at(monkeypatch, 1e18, 16e9)  # moving 16 GB of weights takes a second
    weights_s = stage.weight_bytes / 16e9
    passes_s = 4 * 6 * weights_s  # two cells, two rounds
    with pytest.raises(SweepError, match="cannot be measured on this CPU within 5 s") as refused:
        check_budget(PLAN, stage, "cpu", 5.0, "llama3-8b")
    assert f"one pass {format_duration(weights_s)}" in refused.value.cause
    assert "--backend modelled" in refused.value.hint
    said = check_budget(PLAN, stage, "cpu", 0.7 * passes_s, "llama3-8b")
    assert "may not be held" in said
    assert check_budget(PLAN, stage, "cpu", 1.3 * passes_s, "llama3-8b") == ""


def test_windows_are_what_a_fast_device_takes(stage, monkeypatch):
    at(monkeypatch, 1e18, 1e18)
    needed_s = PLAN.duration_s
    assert check_budget(PLAN, stage, "cpu", 1.01 * needed_s, "llama3-8b") == ""
    assert check_budget(PLAN, stage, "cpu", 0.9 * needed_s, "llama3-8b") != ""


def test_the_hint_names_a_budget_that_holds(stage, monkeypatch):
    at(monkeypatch, 50e9, 10e9)
    with pytest.raises(SweepError) as refused:
        check_budget(PLAN, stage, "cpu", 10.0, "llama3-8b")
    minutes = int(refused.value.hint.split("--budget ")[1].split("m")[0])
    assert check_budget(PLAN, stage, "cpu", 60.0 * minutes, "llama3-8b") == ""


def test_a_gpu_is_not_asked_how_fast_the_cpu_is(stage, monkeypatch):
    monkeypatch.setattr(slow_device, "cpu_speeds", lambda: 1 / 0)
    assert check_budget(PLAN, stage, "cuda", 60.0, "llama3-8b") == ""


def test_this_cpus_speeds_are_speeds():
    flops_per_s, bytes_per_s = cpu_speeds()
    assert 1e8 < flops_per_s < 1e15 and 1e8 < bytes_per_s < 1e13


def test_the_command_says_so_before_it_starts(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    at(monkeypatch, 1e9, 1e9)

    monkeypatch.chdir(tmp_path)
    words = ["profile", "--model", "llama3-8b", "--backend", "torch", "--budget", "1m",
             "--assume-power", "65W"]  # fmt: skip
    assert main(words) == 2
    assert "cannot be measured on this CPU within" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["status"] == "error"
    assert list(tmp_path.iterdir()) == []
