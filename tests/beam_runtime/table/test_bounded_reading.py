"""Whatever lies in a table's file, loading it ends in a table or a TableError, in little memory."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.errors import TableError
from beam_runtime.table.parquet import MOST_ROWS
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import COLUMNS
from beamprof.tables.table_file import write_table

MOST_MB = 300


@pytest.fixture(scope="module")
def good(small_table: PerfTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "good.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    return path


def grown_mb(load: Callable[[], object]) -> float:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1e3


def refused(path: Path) -> TableError:
    with pytest.raises(TableError) as caught:
        PerfTable.load(path)
    assert str(path) in caught.value.message
    return caught.value


def rewritten(good: Path, path: Path, *, rows: int = 0, **columns: object) -> Path:
    """The good table with other columns; ``rows`` = its first row so often."""
    with pq.ParquetFile(good) as file:
        table, metadata = file.read(), file.metadata.metadata
    if rows:
        table = pa.table({name: pa.repeat(table[name][0], rows) for name in table.column_names})
    for name, values in columns.items():
        at = table.column_names.index(name)
        array = values if isinstance(values, pa.Array) else pa.array(values)
        table = table.set_column(at, name, array)
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def with_metadata(good: Path, path: Path, change: dict[bytes, bytes]) -> Path:
    with pq.ParquetFile(good) as file:
        table, metadata = file.read(), file.metadata.metadata
    pq.write_table(table.replace_schema_metadata({**metadata, **change}), path)
    return path


def test_rows_by_the_million_are_refused_from_their_count(good: Path, tmp_path: Path) -> None:
    path = rewritten(good, tmp_path / "many.parquet", rows=MOST_ROWS * 5)
    assert path.stat().st_size < 1 << 20
    assert grown_mb(lambda: refused(path)) < MOST_MB
    assert f"{MOST_ROWS * 5} rows" in refused(path).message


def test_a_long_text_in_every_row_is_not_unpacked(good: Path, tmp_path: Path) -> None:
    rows = 1_000  # 50 MB, and with numpy's four bytes a letter 200
    texts = pa.repeat("x" * 50_000, rows)
    path = rewritten(good, tmp_path / "long.parquet", rows=rows, throttle=texts)
    assert path.stat().st_size < 1 << 20
    assert grown_mb(lambda: refused(path)) < 100


@pytest.mark.parametrize(
    "change",
    [
        {b"beam.model": b"\xff\xfe"},
        {b"beam.\xff": b"x"},
        {b"beam.model": b"llama\x1b]0;owned\x07"},
        {b"beam.tp": b"9" * 5000},
        {b"beam.tp": "\u00b2".encode()},
        {b"beam.pp": b"-1"},
        {b"beam.schema_version": b""},
        {b"beam.origin": b"x" * (5 << 20)},
    ],
)
def test_metadata_that_no_table_has(good: Path, tmp_path: Path, change: dict[bytes, bytes]) -> None:
    refused(with_metadata(good, tmp_path / "odd.parquet", change))


@pytest.mark.parametrize("name", [column.name for column in COLUMNS])
@pytest.mark.parametrize(
    "value",
    [
        [1], {"a": 1}, b"\xff", float("inf"), -float("inf"), 1e308, (1 << 63) - 1,
        "\x1b[31m", None,
    ],
    ids=str,
)  # fmt: skip
def test_columns_that_hold_anything(good: Path, tmp_path: Path, name: str, value: object) -> None:
    if value is None and next(one for one in COLUMNS if one.name == name).nullable:
        return  # not known, and that is in order
    with pq.ParquetFile(good) as file:
        rows = file.metadata.num_rows
    # The checksum would tell, too: rows are looked at before it.
    path = rewritten(good, tmp_path / "odd.parquet", **{name: [value] * rows})
    with pytest.raises(TableError):
        PerfTable.load(path)


@given(at=st.floats(0.0, 1.0), bits=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_any_damage_is_a_table_error(
    good: Path, tmp_path_factory: pytest.TempPathFactory, at: float, bits: bytes, cut: bool
) -> None:
    data = bytearray(good.read_bytes())
    where = int(at * (len(data) - len(bits)))
    data[where : where + len(bits)] = bits
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(data[:where] if cut else data)
    try:
        table = PerfTable.load(path)
    except TableError:
        return
    assert np.isfinite(table.columns["latency_ms"]).all(), "damage that the checksum allows is none"


@pytest.mark.parametrize("name", ["", "no\x00name", "x" * 5000])
def test_names_that_are_no_file(name: str) -> None:
    with pytest.raises(TableError):
        PerfTable.load(name)
