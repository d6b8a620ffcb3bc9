"""The tables we ship load, may drive a controller, and come out again as they are."""

from pathlib import Path

import numpy as np
import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import COLUMNS, KEY_COLUMNS
from beam_runtime.types import Source
from beamprof.cli.main import main
from beamprof.tables.check import check_table

TABLES = Path(__file__).parents[1] / "tables"
SHIPPED = sorted(TABLES.glob("*/*/*.parquet"))


def test_the_documented_ones_are_there():
    names = {str(path.relative_to(TABLES)) for path in SHIPPED}
    a100 = {"llama3-70b/tp2-pp4.parquet", "llama3-8b/tp1-pp1.parquet"}
    hopper = {
        "llama3.3-70b/tp4-pp1.parquet",
        "llama3.3-70b-fp8/tp2-pp1.parquet",
        "qwen3-32b/tp2-pp1.parquet",
        "qwen3-30b-a3b/tp1-pp1.parquet",
        "gpt-oss-120b/tp2-pp1.parquet",
    }
    assert names == {f"a100-sxm4-80gb/{name}" for name in a100} | {
        f"{device}/{name}" for device in ("h100-sxm", "h200-sxm") for name in hopper
    }
    for name in names:
        assert name in (TABLES / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_they_are_what_their_path_says_and_may_drive_a_controller(path: Path):
    tp, pp = (int(part[2:]) for part in path.stem.split("-"))
    table = PerfTable.load(path, model=path.parent.name, tp=tp, pp=pp, device=path.parts[-3])
    assert table.sources == (Source.MODELLED,)
    assert check_table(table).drivable


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_the_documented_command_makes_the_same_rows(path: Path, tmp_path: Path):
    tp, pp = (part[2:] for part in path.stem.split("-"))
    again = tmp_path / path.name
    command = (
        f"profile --backend modelled --device {path.parts[-3]} --model {path.parent.name} "
        f"--tp {tp} --pp {pp}"
    )
    assert main([*command.split(), "--output", str(again)]) == 0
    shipped, made = PerfTable.load(path), PerfTable.load(again)
    assert len(shipped) == len(made)
    for column in COLUMNS:
        ours, theirs = shipped.columns[column.name], made.columns[column.name]
        if column.dtype == "float64" and column.name not in KEY_COLUMNS:
            # Rows are rounded to 7 digits, which another libm may tip over.
            np.testing.assert_allclose(theirs, ours, rtol=1e-6)
        else:
            assert theirs.tolist() == ours.tolist(), column.name
