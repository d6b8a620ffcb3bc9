"""A serving engine embeds beam_runtime: importing it must not bring anything along."""

import json
import subprocess
import sys
from pathlib import Path

from beam_runtime.table.perf_table import PerfTable
from beamprof.tables.table_file import write_table

_LOADED = """
import json, sys
before = set(sys.modules)
{statement}
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter loads for a statement."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADED.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_importing_beam_runtime_loads_the_standard_library_only() -> None:
    foreign = loaded_by("import beam_runtime; dir(beam_runtime)") - set(sys.stdlib_module_names)
    assert foreign == {"beam_runtime"}


def test_the_check_would_see_a_heavy_import() -> None:
    assert "numpy" in loaded_by("import beam_runtime; beam_runtime.PerfTable")


def test_using_beam_runtime_never_loads_the_offline_half() -> None:
    loaded = loaded_by("import beam_runtime; [getattr(beam_runtime, n) for n in dir(beam_runtime)]")
    assert not loaded & {"beamprof", "polars", "typer", "rich", "pydantic", "pandas", "torch"}


def test_a_controller_is_built_without_the_compiler(small_table: PerfTable, tmp_path: Path) -> None:
    path = tmp_path / "small.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    loaded = loaded_by(
        "from beam_runtime import Controller, EngineLimits; "
        f"assert Controller.from_table({str(path)!r}, EngineLimits(pp=4)).warming_up"
    )
    assert "pyarrow" in loaded
    assert not loaded & {"numba", "pandas"}


def test_the_command_line_starts_without_numbers() -> None:
    assert not loaded_by("import beamprof.cli.main") & {
        "numpy", "numba", "pyarrow", "polars", "pydantic", "torch", "scipy"
    }  # fmt: skip
