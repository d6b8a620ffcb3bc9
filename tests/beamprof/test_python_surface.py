"""`import beamprof` offers every command as a function, and costs nothing."""

import collections.abc
import inspect
import os
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import beam_runtime
import beamprof
from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
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


def taken(hint: object) -> set[object]:
    """Every type within a hint."""
    whole = hint if isinstance(hint, collections.abc.Hashable) else None
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return {whole}.union(*map(taken, parts))


def functions(module: types.ModuleType) -> list[tuple[str, object]]:
    found = [(name, getattr(module, name)) for name in module.__all__]
    made = [
        (f"{name}.{method}", getattr(kind, method))
        for name, kind in found
        if inspect.isclass(kind)
        for method, how in vars(kind).items()
        if isinstance(how, classmethod) and not method.startswith("_")
    ]
    return [*((name, found) for name, found in found if inspect.isfunction(found)), *made]


PUBLIC = [*functions(beamprof), *functions(beam_runtime)]


@pytest.mark.parametrize("function", [one for _, one in PUBLIC], ids=[name for name, _ in PUBLIC])
def test_where_a_file_is_taken_its_name_is(function: object) -> None:
    """A table or a path may be given as the name of the file, in every public function."""
    try:
        hints = typing.get_type_hints(function, localns={"pl": pl, "PathLike": os.PathLike})
    except NameError as error:
        pytest.skip(f"a name for type checkers only: {error}")
    for name, hint in hints.items():
        if name != "return" and taken(hint) & {Path, PerfTable} and "Mapping" not in str(hint):
            assert str in taken(hint), name


def test_a_files_name_is_enough(tmp_path: Path) -> None:
    name, whole = str(TABLE), beamprof.load_table(TABLE)
    assert beamprof.inspect_table(name) == beamprof.inspect_table(whole)
    assert beamprof.check_table(name).drivable
    assert beamprof.lookup_step(name, beam_runtime.StepShape(64)).rows
    assert beamprof.compare_tables(name, name).differences == ()
    assert beamprof.decide_state(name, beamprof.state_of("300", "")).feasible
    assert beam_runtime.StepCost.from_table(name).clocks_mhz.tolist() == list(whole.clocks_mhz)
    trace = str(tmp_path / "s.parquet")
    beamprof.save_trace(beamprof.load_from_rate(1.0, 100, 5).trace, trace)
    assert beamprof.open_trace(trace).requests
    out = str(tmp_path / "replayed")
    report = beamprof.replay_trace(name, trace, ["vanilla"], output=out)
    assert beamprof.load_replay(out).report.rungs == report.rungs
    assert beamprof.write_report([out], str(tmp_path / "r.html")).size_bytes
    spec = beamprof.resolve_spec({"model": "llama3-8b", "device": "h100", "backend": "modelled"})
    request = beamprof.ProfileRequest(spec, output=str(tmp_path / "t.parquet"))  # type: ignore
    assert beamprof.dry_run(request).cells


@pytest.mark.parametrize("wrong", [None, 3, b"8b.parquet", {}])
def test_what_is_no_table_is_told(wrong: Any) -> None:
    for function in (
        beamprof.inspect_table,
        beamprof.check_table,
        beam_runtime.StepCost.from_table,
    ):
        with pytest.raises(TypeError, match="expected a PerfTable or a file's name, found a"):
            function(wrong)
    with pytest.raises(TableError, match="no table at"):
        beamprof.inspect_table("nix.parquet")


@pytest.mark.parametrize("wrong", ["4", None, [4]])
def test_limits_that_are_no_numbers_are_told(wrong: Any) -> None:
    with pytest.raises(TypeError, match="pp must be a whole number, found"):
        beam_runtime.EngineLimits(pp=wrong)
    with pytest.raises(TypeError, match="host_gap_ms must be a number, found"):
        beam_runtime.EngineLimits(pp=1, host_gap_ms=wrong)
    assert beam_runtime.EngineLimits(pp=np.int64(4)).max_steps_in_flight == 4
