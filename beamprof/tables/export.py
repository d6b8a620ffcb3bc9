"""Write a table for other tools: CSV or JSON lines in BEAM's columns, or the published CSV form.

CSV holds rows only. JSON lines begin with one line {"metadata": ...}. beam-artifact holds what
the BEAM paper's CSVs hold: no idle rows and no chunks with earlier context, in s and mJ; and a
column source beside theirs, so that modelled numbers stay modelled when they are read again.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import COLUMNS, RowKind
from beamprof.errors import ImportFormatError, OutputError
from beamprof.files import written_whole

# How files of each format may be named, where their names say a kind.
SUFFIXES = {"csv": (".csv",), "jsonl": (".jsonl", ".json"), "beam-artifact": (".csv",)}


@dataclass(frozen=True, slots=True)
class TableExport:
    """What was written where. ``left_out`` counts rows that the format cannot hold, by reason."""

    output_path: Path
    file_format: str
    rows: int
    left_out: dict[str, int]


def export_table(
    table: PerfTable | str | Path, output: str | Path, *, file_format: str, force: bool = False
) -> TableExport:
    """Write a table in another format.

    Args:
        table: what to write.
        output: the file to write.
        file_format: csv, jsonl or beam-artifact.
        force: replace an existing output.

    Raises:
        ImportFormatError: an unknown format.
        OutputError: the output exists without force, cannot be written, or no row fits the format.
    """
    table = PerfTable.of(table)
    writers = _writers()
    if file_format not in writers:
        raise ImportFormatError(
            f"unknown format {file_format!r}", hint=f"known formats: {', '.join(writers)}"
        )
    rows = list(_rows(table))
    left_out: dict[str, int] = {}
    if file_format == "beam-artifact":
        rows, left_out = _artifact_rows(rows)
        if not rows:
            raise OutputError(
                "beam-artifact can hold none of this table's rows",
                cause=", ".join(f"{count} {reason}" for reason, count in left_out.items()),
                hint="export it with --format csv",
            )
    output = Path(output)
    with (
        written_whole(output, force=force) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writers[file_format](rows, table, file)
    return TableExport(output, file_format, len(rows), left_out)


def output_beside(path: Path, table: PerfTable, file_format: str) -> Path:
    """Where an export goes that names no output: beside the table.

    beam-artifact's name is how its tools know GPU, model, tp and pp, so it is made of those.
    """
    if file_format != "beam-artifact":
        return path.with_suffix(f".{file_format}")
    gpu = (table.metadata.get("gpu_name") or table.device).replace("_", "-")
    return path.with_name(
        f"dvfs_profile_{gpu}_beam_{table.model}_tp{table.tp}_pp{table.pp}_one.csv"
    )


def _writers() -> dict[str, Callable[[list[dict[str, Any]], PerfTable, TextIO], None]]:
    return {"csv": _write_csv, "jsonl": _write_jsonl, "beam-artifact": _write_csv}


def _rows(table: PerfTable) -> Iterator[dict[str, Any]]:
    names = [column.name for column in COLUMNS]
    for values in zip(*(table.columns[name].tolist() for name in names), strict=True):
        yield {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in zip(names, values, strict=True)
        }


def _write_csv(rows: list[dict[str, Any]], _: PerfTable, file: TextIO) -> None:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_jsonl(rows: list[dict[str, Any]], table: PerfTable, file: TextIO) -> None:
    file.write(json.dumps({"metadata": dict(table.metadata)}) + "\n")
    file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _artifact_rows(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    kept = []
    left_out: dict[str, int] = {}
    for row in rows:
        if row["kind"] == str(RowKind.IDLE):
            left_out["idle rows"] = left_out.get("idle rows", 0) + 1
        elif row["prefill_context_tokens"]:
            reason = "rows of chunks with earlier context"
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            kept.append(
                {
                    "clock": row["clock_mhz"],
                    "batch_size": row["prefill_tokens"] + row["decode_requests"],
                    "decode_tokens": row["decode_requests"],
                    "total_ctx_len": row["decode_context_tokens"],
                    "time_taken": row["latency_ms"] / 1e3,
                    "energy_consumption": row["energy_j"] * 1e3,
                    "num_trials": row["passes"],
                    "valid": 1,
                    "source": row["source"],
                }
            )
    return kept, left_out
