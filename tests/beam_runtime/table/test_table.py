"""Every broken table is refused with the row or field, the cause and a hint."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import METADATA_PREFIX, RowKind, rows_sha256
from beamprof.errors import OutputError
from beamprof.tables.table_file import seal_table, write_table

METADATA = {
    "model": "llama3-8b",
    "tp": "2",
    "pp": "1",
    "stage_layers": "32",
    "device": "a100-sxm4-80gb",
    "energy_source": "modelled",
}


def columns() -> dict[str, np.ndarray]:
    return {
        "kind": np.array(["forward", "forward", "forward", "idle"]),
        "clock_mhz": np.array([1410, 510, 1410, 510]),
        "prefill_tokens": np.array([0, 128, 128, 0]),
        "prefill_context_tokens": np.zeros(4, dtype=np.int64),
        "decode_requests": np.array([1, 0, 0, 0]),
        "decode_context_tokens": np.array([5, 0, 0, 0]),
        "latency_ms": np.array([10.0, 20.0, 30.0, 1000.0]),
        "energy_j": np.array([5.0, 6.0, 7.0, 160.0]),
        "passes": np.ones(4, dtype=np.int64),
        "source": np.array(["measured"] * 4),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "table.parquet"
    write_table(columns(), METADATA, file)
    return file


def rewrite(path: Path, *, drop: str | None = None, metadata: dict[str, str | None] | None = None):
    """Alter a file behind the writer's back, as a broken tool or disk would."""
    with pq.ParquetFile(path) as file:
        table, raw = file.read(), dict(file.metadata.metadata)
    for key, value in (metadata or {}).items():
        name = f"{METADATA_PREFIX}{key}".encode()
        raw.pop(name, None)
        if value is not None:
            raw[name] = value.encode()
    raw.pop(b"ARROW:schema", None)
    if drop:
        table = table.drop_columns([drop])
    pq.write_table(table.replace_schema_metadata(raw), path)


def test_what_is_written_is_what_is_read(path: Path):
    table = PerfTable.load(path, model="llama3-8b", tp=2, pp=1, device="a100-sxm4-80gb")
    assert table.clocks_mhz == (510, 1410)
    assert len(table) == 4
    assert table.rows(RowKind.FORWARD)["latency_ms"].tolist() == [20.0, 10.0, 30.0]
    assert np.isnan(table.columns["temperature_c"]).all()
    assert {k: table.metadata[k] for k in METADATA} == METADATA


def test_polars_reads_it_and_what_polars_writes_is_read(path: Path):
    frame = pl.read_parquet(path)
    assert frame["latency_ms"].to_list() == PerfTable.load(path).columns["latency_ms"].tolist()
    raw = pq.ParquetFile(path).metadata.metadata
    ours = {k.decode(): v.decode() for k, v in raw.items() if k.startswith(b"beam.")}
    frame.write_parquet(path, metadata=ours)
    assert len(PerfTable.load(path)) == 4


def test_the_checksum_does_not_depend_on_row_order():
    shuffled = {name: values[[2, 0, 3, 1]] for name, values in columns().items()}
    assert (
        seal_table(columns(), METADATA).metadata["rows_sha256"]
        == seal_table(shuffled, METADATA).metadata["rows_sha256"]
    )


def test_missing_file(tmp_path: Path):
    with pytest.raises(TableError, match="no table at") as caught:
        PerfTable.load(tmp_path / "none.parquet")
    assert "beam profile" in caught.value.hint


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_file(path: Path, damage: str):
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "text":
            path.write_text("clock,latency\n1410,3\n")
    with pytest.raises(TableError) as caught:
        PerfTable.load(path)
    assert caught.value.hint


def test_every_single_flipped_byte_is_noticed_or_harmless(path: Path):
    reference = PerfTable.load(path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        path.write_bytes(bytes(flipped))
        try:
            table = PerfTable.load(path)
        except TableError:
            continue
        assert rows_sha256(table.columns) == rows_sha256(reference.columns)


def test_altered_value_fails_the_checksum(path: Path):
    with pq.ParquetFile(path) as file:
        table, raw = file.read(), file.metadata.metadata
    at = table.column_names.index("energy_j")
    values = table.column(at).to_pylist()
    values[0] *= 0.9
    altered = table.set_column(at, "energy_j", pa.array(values))
    pq.write_table(altered.replace_schema_metadata(raw), path)
    with pytest.raises(TableError, match="checksum"):
        PerfTable.load(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"schema_version": "2.0"}, "schema version 2.0"),
        ({"schema_version": None}, "no BEAM table"),
        ({"model": None}, "lacks the metadata model"),
        ({"tp": "two"}, "tp must be a positive integer"),
        ({"rows_sha256": "0" * 64}, "checksum"),
        *(
            ({key: value}, f"{key} must be milliseconds from 0 to 60,000, found '{value}'")
            for key in ("host_gap_ms", "stage_transfer_ms")
            for value in ("soon", "nan", "-5", "inf", "1e9")
        ),
        ({"ep": "0"}, "ep must be a positive integer"),
        ({"dp": "two"}, "dp must be a positive integer"),
    ],
)
def test_broken_metadata(path: Path, metadata: dict[str, str | None], words: str):
    rewrite(path, metadata=metadata)
    with pytest.raises(TableError, match=words) as caught:
        PerfTable.load(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "gap_ms"), [("6.8", 6.8), ("0", 0.0), ("60000", 60_000.0), ("", 0.0), (None, 0.0)]
)
def test_gaps_that_metadata_know_are_numbers(path: Path, text: str | None, gap_ms: float):
    rewrite(path, metadata={"host_gap_ms": text, "stage_transfer_ms": text})
    table = PerfTable.load(path)
    assert (table.host_gap_ms, table.stage_transfer_ms) == (gap_ms, gap_ms)


def test_a_newer_minor_version_is_read(path: Path):
    rewrite(path, metadata={"schema_version": "1.9"})
    assert len(PerfTable.load(path)) == 4


@pytest.mark.parametrize("column", ["clock_mhz", "energy_j", "source"])
def test_missing_column(path: Path, column: str):
    rewrite(path, drop=column)
    with pytest.raises(TableError, match=f"lacks the columns {column}"):
        PerfTable.load(path)


@pytest.mark.parametrize(
    "wanted", [{"model": "llama3-70b"}, {"tp": 4}, {"pp": 2}, {"device": "h100-sxm"}]
)
def test_a_table_for_something_else(path: Path, wanted: dict[str, object]):
    with pytest.raises(TableError, match=f"expected {next(iter(wanted.values()))}") as caught:
        PerfTable.load(path, **wanted)
    assert "beam profile --model" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("latency_ms", np.nan, "row 2 has latency_ms = nan"),
        ("latency_ms", 0.0, "latency_ms = 0.0"),
        ("latency_ms", -1.0, "latency_ms = -1.0"),
        ("energy_j", np.inf, "energy_j = inf"),
        ("decode_context_tokens", -5, "decode_context_tokens = -5"),
        ("source", "guessed", "source = guessed"),
        ("kind", "backward", "kind = backward"),
    ],
)
def test_values_that_cannot_be(field: str, value: object, words: str):
    rows = columns()
    rows[field] = rows[field].astype(object)
    rows[field][2] = value
    kind = str if field in ("kind", "source") else columns()[field].dtype
    rows[field] = rows[field].astype(kind)
    with pytest.raises(TableError, match=words.replace("row 2 ", "row . ")):
        seal_table(rows, METADATA)


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_energy_in_another_unit(factor: float):
    rows = columns()
    rows["energy_j"] = rows["energy_j"] * factor
    with pytest.raises(TableError, match="W per GPU") as caught:
        seal_table(rows, METADATA)
    assert "millijoules" in caught.value.hint


def test_duplicates_and_passes_of_nothing():
    rows = columns()
    rows["clock_mhz"] = np.array([1410, 1410, 1410, 510])
    with pytest.raises(TableError, match="2 rows describe the same pass") as caught:
        seal_table(rows, METADATA)
    assert "prefill_tokens 128" in caught.value.cause
    rows = columns()
    rows["prefill_tokens"] = np.array([0, 0, 128, 0])
    with pytest.raises(TableError, match="prefill_tokens = 0"):
        seal_table(rows, METADATA)


def test_idle_rows_alone_are_no_table():
    rows = {name: values[3:] for name, values in columns().items()}
    with pytest.raises(TableError, match="no forward rows"):
        seal_table(rows, METADATA)


def test_output_is_never_overwritten_and_survives_a_full_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        write_table(columns(), METADATA, path)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match="cannot write") as caught:
        write_table(columns(), METADATA, path, force=True)
    assert caught.value.cause == "No space left on device"
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_output_in_a_place_that_does_not_exist(tmp_path: Path):
    with pytest.raises(OutputError, match="no directory"):
        write_table(columns(), METADATA, tmp_path / "none" / "t.parquet")
    with pytest.raises(OutputError, match="is a directory"):
        write_table(columns(), METADATA, tmp_path)
