"""`import beamprof` offers every command as a function, and costs nothing."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import beamprof
from beamprof.advice.advise import Advice
from beamprof.replay.ladder import ReplayReport

TABLE = Path(__file__).parents[2] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"


def test_every_name_resolves_also_after_its_room_was_imported() -> None:
    import beamprof.decide
    import beamprof.replay

    assert set(beamprof.__all__) == set(beamprof._HOME)
    for name in beamprof.__all__:
        assert callable(getattr(beamprof, name)), name
        assert name in dir(beamprof)
    with pytest.raises(AttributeError, match="nix"):
        beamprof.__getattr__("nix")


def test_importing_it_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import beamprof; "
        "print({n.split('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'beamprof'}"


def test_a_table_and_a_trace_are_frames() -> None:
    table = beamprof.load_table(TABLE)
    rows = beamprof.frame(table)
    assert isinstance(rows, pl.DataFrame)
    assert rows.height == len(table)
    assert {"clock_mhz", "latency_ms", "energy_j"} <= set(rows.columns)
    load = beamprof.load_from_rate(1.0, 500, 20)
    assert beamprof.frame(load.trace).height == load.trace.requests
    with pytest.raises(TypeError, match="no rows"):
        beamprof.frame(3)


def test_advice_reads_well() -> None:
    advice = beamprof.advise(beamprof.load_table(TABLE), beamprof.load_from_rate(1.0, 500, 20))
    assert isinstance(advice, Advice)
    rows = beamprof.frame(advice)
    assert rows["name"].to_list() == ["as it is", "one clock", "vLLM's flags", "BEAM"]
    assert rows["of_today"][0] == 1.0
    assert repr(advice).startswith("Advice(llama3-8b on a100-sxm4-80gb: as it is 1.00 (100.0 %)")
    assert "<table" in advice._repr_html_()


def test_a_replays_rows() -> None:
    table = beamprof.load_table(TABLE)
    load = beamprof.load_from_rate(1.0, 500, 20)
    report = beamprof.replay_trace(table, load.trace, ["static:1050"])
    assert isinstance(report, ReplayReport)
    rows = beamprof.frame(report)
    assert rows.height == len(report.rungs)
    assert {"policy", "energy_j", "ttft.p50_ms", "to_vanilla"} <= set(rows.columns)
    said = repr(report)
    assert said.startswith(f"ReplayReport(llama3-8b on a100-sxm4-80gb, {report.requests} requests")
    assert "vanilla 1.00 (" in said and "static:1050 " in said
    shown = report._repr_html_()
    assert "<table" in shown and "goodput" in shown and "static:1050" in shown
