import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import COLUMNS, rows_sha256
from beamprof.errors import ImportFormatError, OutputError
from beamprof.tables.doubts import doubts
from beamprof.tables.export import export_table, output_beside
from beamprof.tables.importers import ImportOverrides, importer
from beamprof.tables.importing import import_table
from beamprof.tables.merge import Prefer, merge_files, merge_tables
from beamprof.tables.table_file import seal_table, write_table

TABLE = Path(__file__).parents[3] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"


def part(table: PerfTable, mask) -> PerfTable:
    columns = {name: values[mask] for name, values in table.columns.items()}
    return seal_table(columns, table.metadata)


@settings(max_examples=25)
@given(st.data())
def test_a_table_cut_anywhere_merges_back_whole(sound_table, data):
    table = sound_table()
    side = np.array(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))))
    forward = table.columns["kind"] == "forward"
    if not (side & forward).any() or not (~side & forward).any():
        return  # a half without a forward row is no table
    merged = merge_tables({"a": part(table, side), "b": part(table, ~side)})
    assert rows_sha256(merged.table.columns) == rows_sha256(table.columns)
    assert merged.replaced_rows == 0


def test_more_clocks_join(rows, seal):
    low = seal([row for row in rows if row["clock_mhz"] < 900])
    high = seal([row for row in rows if row["clock_mhz"] > 900])
    merged = merge_tables({"low": low, "high": high}).table
    assert merged.clocks_mhz == seal(rows).clocks_mhz
    assert merged.metadata["model"] == "llama3-70b"


def test_the_same_pass_twice_needs_a_preference(rows, seal):
    old = seal(rows, created="2026-01-01T00:00:00+00:00")
    newer_rows = [{**row, "latency_ms": row["latency_ms"] * 1.1} for row in rows[:3]]
    new = seal(newer_rows, created="2026-02-01T00:00:00+00:00")
    with pytest.raises(TableError, match="same pass") as caught:
        merge_tables({"new": new, "old": old})
    assert "--prefer newest" in (caught.value.hint or "")
    # The order in which tables are named decides nothing.
    for tables in ({"new": new, "old": old}, {"old": old, "new": new}):
        merged = merge_tables(tables, prefer=Prefer.NEWEST)
        assert merged.replaced_rows == 3
        assert len(merged.table) == len(rows)
        for row in newer_rows:
            found = [
                latency
                for latency, clock, requests, context in zip(
                    merged.table.columns["latency_ms"],
                    merged.table.columns["clock_mhz"],
                    merged.table.columns["decode_requests"],
                    merged.table.columns["decode_context_tokens"],
                    strict=True,
                )
                if (clock, requests, context)
                == (row["clock_mhz"], row["decode_requests"], row["decode_context_tokens"])
                and requests
            ]
            assert found == [row["latency_ms"]]


def test_newest_of_undated_tables(rows, seal):
    with pytest.raises(TableError, match="when it was created"):
        merge_tables({"a": seal(rows, created=""), "b": seal(rows)}, prefer=Prefer.NEWEST)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "llama3.3-70b"),
        ("tp", "4"),
        ("pp", "2"),
        ("device", "h200-sxm"),
        ("dtype", "float16"),
        ("energy_source", "rapl"),
        ("engine", "vllm"),
    ],
)
def test_tables_of_different_things_do_not_merge(rows, seal, key, value):
    with pytest.raises(TableError, match=f"{key} differs"):
        merge_tables({"a": seal(rows[:9]), "b": seal(rows[9:], **{key: value})})


def test_sources_are_never_mixed(rows, seal):
    modelled = [{**row, "source": "modelled"} for row in rows[9:]]
    with pytest.raises(TableError, match="never mixed"):
        merge_tables({"a": seal(rows[:9]), "b": seal(modelled)})


def test_circumstances_stand_side_by_side(rows, seal):
    a = seal(rows[:9], driver="550", sweep='{"name": "quick"}')
    b = seal(rows[9:], driver="560", sweep="not json")
    merged = merge_tables({"a": a, "b": b})
    assert merged.table.metadata["driver"] == "550; 560"
    assert any("driver" in text for text in merged.notes)
    assert json.loads(merged.table.metadata["sweep"]) == {"merged": [{"name": "quick"}, "not json"]}


def test_a_merge_of_one(sound):
    with pytest.raises(TableError, match="two tables or more"):
        merge_tables({"a": sound})


def test_merge_files_writes_what_loads(rows, seal, tmp_path):
    for name, some in (("a", rows[:9]), ("b", rows[9:])):
        table = seal(some)
        write_table(table.columns, table.metadata, tmp_path / name)
    output = tmp_path / "out.parquet"
    merge_files([tmp_path / "a", tmp_path / "b"], output)
    assert len(PerfTable.load(output)) == len(rows)
    with pytest.raises(OutputError):
        merge_files([tmp_path / "a", tmp_path / "b"], output)


def typed(row: dict[str, str | None]) -> list[object]:
    """A CSV line back in the table's types; empty numbers are NaN."""
    made = {"int64": int, "float64": lambda text: float(text or "nan"), "string": str}
    return [made[column.dtype](row[column.name]) for column in COLUMNS]


def same(a: object, b: object) -> bool:
    return a == b or (
        isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    )


def assert_rows(table: PerfTable, found: list[list[object]]) -> None:
    assert len(found) == len(table)
    for index, row in enumerate(found):
        for column, value in zip(COLUMNS, row, strict=True):
            assert same(table.columns[column.name][index].item(), value), column.name


@settings(max_examples=20)
@given(st.data())
def test_csv_and_jsonl_hold_every_bit(sound_table, tmp_path_factory, data):
    whole = sound_table()
    table = part(whole, slice(0, 20))
    floats = st.floats(min_value=0.5, max_value=2.0)
    scale = np.array(data.draw(st.lists(floats, min_size=20, max_size=20)))
    columns = {**table.columns, "latency_ms": table.columns["latency_ms"] * scale}
    table = seal_table(columns, table.metadata)
    folder = tmp_path_factory.mktemp("export")
    export_table(table, folder / "t.csv", file_format="csv")
    with (folder / "t.csv").open(newline="") as file:
        assert_rows(table, [typed(row) for row in csv.DictReader(file)])
    export_table(table, folder / "t.jsonl", file_format="jsonl")
    head, *lines = [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()]
    assert head == {"metadata": dict(table.metadata)}
    nan = float("nan")
    assert_rows(
        table,
        [[nan if row[c.name] is None else row[c.name] for c in COLUMNS] for row in lines],
    )


def test_beam_artifact_counts_what_it_cannot_hold(sound, tmp_path):
    path = output_beside(tmp_path / "t.parquet", sound, "beam-artifact")
    written = export_table(sound, path, file_format="beam-artifact")
    with_context = int((sound.columns["prefill_context_tokens"] > 0).sum())
    assert written.left_out == {
        "idle rows": 9,
        "rows of chunks with earlier context": with_context,
    }
    assert written.rows == len(sound) - 9 - with_context
    imported = importer("beam-artifact")(path, ImportOverrides())
    assert imported.metadata["model"] == "llama3-70b"
    assert len(imported.columns["kind"]) == written.rows


def test_modelled_rows_stay_modelled_through_the_papers_csv(tmp_path):
    """Nobody launders a model into a measurement by exporting and importing it."""
    table = PerfTable.load(TABLE)
    assert table.sources == ("modelled",)
    path = output_beside(tmp_path / "t.parquet", table, "beam-artifact")
    export_table(table, path, file_format="beam-artifact")
    done = import_table(path, tmp_path / "back.parquet", file_format="beam-artifact")
    assert done.table.sources == ("modelled",)
    assert any("stay so" in note for note in done.notes)
    assert doubts(done.table) == doubts(table)
    assert "table export" in done.table.metadata["origin"]
    assert done.table.metadata["energy_source"] == "modelled"


def test_other_rows_are_imported_as_somebody_elses(sound, tmp_path):
    path = output_beside(tmp_path / "t.parquet", sound, "beam-artifact")
    export_table(sound, path, file_format="beam-artifact")
    imported = importer("beam-artifact")(path, ImportOverrides())
    assert set(imported.columns["source"]) == {"imported"}
    assert "table export" in imported.metadata["origin"]
    text = path.read_text()
    path.write_text(text.replace(",measured\n", ",guessed\n", 1))
    with pytest.raises(ImportFormatError, match="source must be"):
        importer("beam-artifact")(path, ImportOverrides())
    rows = [line.rpartition(",")[0] for line in text.splitlines()]
    path.write_text("\n".join(rows) + "\n")  # as the paper's authors write it
    imported = importer("beam-artifact")(path, ImportOverrides())
    assert "BEAM-artifact" in imported.metadata["origin"]


def test_an_export_that_would_be_empty(rows, seal, tmp_path):
    table = seal([row for row in rows if row["prefill_context_tokens"]])
    with pytest.raises(OutputError, match="none of this table's rows"):
        export_table(table, tmp_path / "t.csv", file_format="beam-artifact")
    assert list(tmp_path.iterdir()) == []


def test_exports_never_overwrite_unasked(sound, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("precious")
    with pytest.raises(OutputError):
        export_table(sound, path, file_format="csv")
    assert path.read_text() == "precious"
    with pytest.raises(ImportFormatError, match="unknown format"):
        export_table(sound, path, file_format="xlsx", force=True)
    export_table(sound, path, file_format="csv", force=True)
    assert path.read_text().startswith("kind,clock_mhz,")
