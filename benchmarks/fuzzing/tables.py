"""Tables that are Parquet files all right, and hold what no table holds."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing.damage import VALUES, damaged

from beam_runtime.table.schema import COLUMNS, rows_sha256

_ODD: tuple[object, ...] = (
    [1], {"a": 1}, b"\xff", float("inf"), -float("inf"), float("nan"), 1e308, -1.0, 0,
    (1 << 63) - 1, -(1 << 63), "\x1b[31m", "", "x" * 1000, None, True,
)  # fmt: skip


def sample_table(folder: Path) -> bytes:
    """A small table of tp 2 x pp 4, of made-up numbers in an A100's order of magnitude."""
    from beamprof.tables.table_file import write_table

    path = folder / "sample.parquet"
    if not path.exists():
        write_table(*_rows(), path)
    return path.read_bytes()


def damaged_table(whole: bytes) -> Callable[[random.Random], bytes]:
    """Makes damaged copies: of its bytes, its columns, its metadata, its rows."""
    with pq.ParquetFile(io.BytesIO(whole)) as file:
        table, metadata = file.read(), dict(file.metadata.metadata)

    def spoil(moments: random.Random) -> bytes:
        changed, said = table, dict(metadata)
        match moments.randrange(5):
            case 0:
                return damaged(whole, moments)
            case 1:
                name = moments.choice(changed.column_names)
                at = changed.column_names.index(name)
                changed = changed.set_column(
                    at, name, pa.array([moments.choice(_ODD)] * len(table))
                )
            case 2:
                key = moments.choice(tuple(said))
                said[key] = moments.choice(VALUES)[:100_000]
            case 3:
                rows = [moments.randrange(len(table)) for _ in range(moments.randrange(80))]
                changed = _sealed(changed.take(pa.array(rows, pa.int64())), said)
            case 4:
                changed = _one_value(changed, moments)
                changed = _sealed(changed, said)
        sink = io.BytesIO()
        pq.write_table(changed.replace_schema_metadata(said), sink)
        return sink.getvalue()

    return spoil


def _one_value(table: pa.Table, moments: random.Random) -> pa.Table:
    """One number of one row is another."""
    name = moments.choice([column.name for column in COLUMNS if column.dtype != "string"])
    at, values = table.column_names.index(name), table[name].to_pylist()
    row = moments.randrange(len(values))
    if table[name].type == pa.float64():
        values[row] = moments.choice((0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), 1e9))
    else:
        values[row] = moments.choice((0, -1, 1, (1 << 63) - 1, 1 << 40))
    return table.set_column(at, name, pa.array(values, table[name].type))


def _sealed(table: pa.Table, said: dict[bytes, bytes]) -> pa.Table:
    """Its checksum is right again: what is behind it is looked at, too."""
    columns = {}
    for column in COLUMNS:
        found = table[column.name]
        if column.dtype == "string":
            columns[column.name] = np.array(found.to_pylist(), dtype=object)
        else:
            columns[column.name] = found.to_numpy()
    said[b"beam.rows_sha256"] = rows_sha256(columns).encode()
    return table


def _rows() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    cells = (
        [(tokens, 0, 0, 0) for tokens in (8, 32, 64, 128, 256, 512)]
        + [(0, 0, b, b * context) for b in (1, 8, 32, 64, 128) for context in (64, 512, 2048)]
        + [(chunk, context, 0, 0) for chunk in (64, 256) for context in (512, 4096)]
    )
    clocks = (510, 735, 960, 1185, 1410)
    rows = np.array([(clock, *cell) for clock in clocks for cell in cells])
    clock, c, k, b, s = rows.T
    latency_ms = (8.0 + 0.05 * (c + b) + 1e-6 * c * k + 2e-6 * s) * (0.5 + 705 / clock)
    columns = {
        "kind": np.full(len(rows), "forward"), "clock_mhz": clock, "prefill_tokens": c,
        "prefill_context_tokens": k, "decode_requests": b, "decode_context_tokens": s,
        "latency_ms": latency_ms,
        "energy_j": (180.0 + 420.0 * (clock / 1410) ** 2.5) * latency_ms / 1e3,
        "passes": np.ones(len(rows), dtype=np.int64), "source": np.full(len(rows), "modelled"),
    }  # fmt: skip
    metadata = {
        "model": "made-up", "model_shape": json.dumps({"layers": 80}), "tp": "2", "pp": "4",
        "stage_layers": "20", "dtype": "bfloat16", "device": "a100-sxm4-80gb", "gpu_name": "",
        "engine": "modelled", "energy_source": "modelled", "allreduce": "none",
        "host_gap_ms": "2.0", "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return columns, metadata
