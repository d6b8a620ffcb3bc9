"""Clocks that no GPU of a table can be locked to are found, and never asked for."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from beam_runtime.errors import ClockUnavailableError, CoverageError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import StepShape
from beamprof.cli.main import main
from beamprof.replay.policies.registry import policy_named
from beamprof.tables.check import check_table
from beamprof.tables.findings import judge_offered
from beamprof.tables.importing import import_table
from beamprof.tables.lookup import lookup_step

TABLES = Path(__file__).parents[3] / "tables"
TABLE = TABLES / "h100-sxm/qwen3-32b/tp2-pp1.parquet"


@pytest.fixture(scope="module")
def table() -> PerfTable:
    return PerfTable.load(TABLE)


def shifted(table: PerfTable, by_mhz: int, **metadata: str) -> PerfTable:
    columns = {**table.columns, "clock_mhz": table.columns["clock_mhz"] + by_mhz}
    return dataclasses.replace(table, columns=columns, metadata={**table.metadata, **metadata})


@pytest.mark.parametrize("path", sorted(TABLES.rglob("*.parquet")))
def test_shipped_tables_hold_clocks_that_there_are(path: Path) -> None:
    assert judge_offered(PerfTable.load(path)).ok


def test_other_clocks_cannot_drive_a_controller(table: PerfTable) -> None:
    for told in (table.metadata["device_clocks_mhz"], "[]", ""):  # the device's file knows too
        found = check_table(shifted(table, 7, device_clocks_mhz=told))
        assert not found.drivable
        finding = next(one for one in found.findings if one.name == "clocks on offer")
        assert f"{len(table.clocks_mhz)} of {len(table.clocks_mhz)}" in finding.text
    unknown = shifted(table, 7, device_clocks_mhz="[]", device="nobody-knows-it")
    assert judge_offered(unknown).ok is None


def test_an_import_says_so(table: PerfTable, tmp_path: Path) -> None:
    csv = tmp_path / "dvfs_profile_NVIDIA A100-SXM4-80GB_llama3-8b_tp1_pp1_one.csv"
    lines = ["clock,batch_size,decode_tokens,total_ctx_len,time_taken,energy_consumption,"
             "num_trials,valid"]  # fmt: skip
    for clock in (1417, 1207, 997):
        for tokens in (1, 8, 64, 512):
            for context in (0, 100):
                decodes = tokens if context else 0
                lines.append(f"{clock},{tokens},{decodes},{context * decodes},"
                             f"{0.02 + tokens * 1e-4 + context * 1e-6},"
                             f"{3000 + tokens * 30 + context},3,1")  # fmt: skip
    csv.write_text("\n".join(lines) + "\n")
    found = import_table(csv, tmp_path / "t.parquet", file_format="beam-artifact")
    assert any("997, 1207, 1417 MHz" in note for note in found.notes)


def test_a_clock_that_is_not_offered_is_not_looked_up(table: PerfTable) -> None:
    between = [m for m in table.offered_mhz if table.clocks_mhz[0] < m < table.clocks_mhz[1]]
    assert lookup_step(table, StepShape(512), clock_mhz=between[0]).rows
    with pytest.raises(ClockUnavailableError, match="cannot be locked to 1000 MHz") as caught:
        lookup_step(table, StepShape(512), clock_mhz=1000)
    assert caught.value.hint == "nearest: 990 or 1005 MHz"
    assert main(["table", "lookup", str(TABLE), "--prefill", "512", "--clock", "1000"]) == 2


def test_nor_is_it_replayed(table: PerfTable) -> None:
    with pytest.raises(ClockUnavailableError, match="1000 MHz"):
        policy_named("static:1000", table)
    assert policy_named("static:990", table)
    measured = table.clocks_mhz[0]
    assert policy_named(f"static:{measured}", table)
    assert policy_named(f"static:{measured + 7}", shifted(table, 7))  # it was locked once


def test_the_hint_about_a_clock_outside_can_be_typed(table: PerfTable) -> None:
    with pytest.raises(CoverageError, match="clock 200 MHz is outside") as caught:
        StepCost.from_table(table, [200, 1980])
    hint = caught.value.hint or ""
    assert "h100-sxm has no 200 MHz" in hint
    words = hint.partition("): beam ")[2].split()
    assert main([*words, "--dry-run"]) == 0
    clocks = json.loads(f"[{words[-1]}]")
    assert set(clocks) <= set(table.offered_mhz)
    assert clocks == sorted(np.unique(clocks).tolist())
    assert re.search(r"--device h100-sxm", hint)
