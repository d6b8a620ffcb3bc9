import csv
import json
from pathlib import Path

import numpy as np
import pytest

from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import COLUMNS, RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Source
from beamprof.devices.device import resolve_device
from beamprof.devices.power import waiting_w
from beamprof.errors import ImportFormatError, ModelShapeError, OutputError
from beamprof.tables.export import export_table, output_beside
from beamprof.tables.importers import ImportOverrides, importer
from beamprof.tables.importers.beam_artifact import LICENCE, ORIGIN
from beamprof.tables.importing import import_table
from beamprof.tables.waiting_power import with_waiting_power

NAME = "dvfs_profile_NVIDIA A100-SXM4-80GB_meta-llama_Llama-3.3-70B-Instruct_tp2_pp4_one.csv"
HEADER = (
    "clock,batch_size,decode_tokens,total_ctx_len,time_taken,energy_consumption,num_trials,valid"
)
LINES = (
    "1410,1,60,2048,0.012,7630.5,50,1",
    "1410,128,60,40000,0.030,18000.0,50,1",
    "510,1,60,2048,0.028,8800.0,25,1",
    "510,128,60,40000,0.060,19000.0,25,1",
)


def written(folder: Path, *lines: str, header: str = HEADER, name: str = NAME) -> Path:
    path = folder / name
    path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return path


def read(path: Path, **overrides):
    return importer("beam-artifact")(path, ImportOverrides(**overrides))


def refused(path: Path, **overrides) -> ImportFormatError:
    with pytest.raises(ImportFormatError) as caught:
        read(path, **overrides)
    return caught.value


def test_units_and_shapes(tmp_path):
    imported = read(written(tmp_path, *LINES))
    columns = imported.columns
    assert columns["latency_ms"].tolist() == pytest.approx([12.0, 30.0, 28.0, 60.0])
    assert columns["energy_j"].tolist() == pytest.approx([7.6305, 18.0, 8.8, 19.0])
    # One token cannot hold sixty decodes: B = min(decode_tokens, batch_size).
    assert columns["decode_requests"].tolist() == [1, 60, 1, 60]
    assert columns["prefill_tokens"].tolist() == [0, 68, 0, 68]
    assert columns["prefill_context_tokens"].tolist() == [0] * 4
    assert columns["decode_context_tokens"].tolist() == [2048, 40000, 2048, 40000]
    assert columns["passes"].tolist() == [50, 50, 25, 25]
    assert set(columns["source"]) == {"imported"}


def test_metadata_from_the_name(tmp_path):
    metadata = read(written(tmp_path, *LINES)).metadata
    assert metadata["model"] == "llama3.3-70b"
    assert json.loads(metadata["model_shape"])["layers"] == 80
    assert (metadata["tp"], metadata["pp"], metadata["stage_layers"]) == ("2", "4", "20")
    assert metadata["device"] == "a100-sxm4-80gb"
    assert metadata["gpu_name"] == "NVIDIA A100-SXM4-80GB"
    assert (metadata["origin"], metadata["licence"]) == (ORIGIN, LICENCE)


@pytest.mark.parametrize(
    ("published", "known"),
    [
        ("Qwen_Qwen2.5-32B", "qwen2.5-32b"),
        ("Qwen_Qwen2.5-14B-Instruct", "qwen2.5-14b"),
        ("meta-llama_Meta-Llama-3-8B-Instruct", "llama3-8b"),
        ("meta-llama_Llama-3.3-70B-Instruct", "llama3.3-70b"),
        ("mistralai_Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("Qwen_Qwen3-8B", "qwen3-8b"),
        ("llama3-70b", "llama3-70b"),
    ],
)
def test_published_model_names(tmp_path, published, known):
    path = written(tmp_path, *LINES, name=f"dvfs_profile_NVIDIA H200_{published}_tp1_pp2_one.csv")
    metadata = read(path).metadata
    assert metadata["model"] == known
    assert metadata["device"] == "h200-sxm"


def test_the_user_knows_better_than_the_name(tmp_path):
    path = written(tmp_path, *LINES, name="mine.csv")
    assert "--model --tp --pp --device" in (refused(path).hint or "")
    assert "--pp" in (refused(path, model="qwen3-8b", tp=1, device="x").hint or "")
    imported = read(
        path, model="qwen3-8b", tp=1, pp=4, device="my-gpu", origin="our lab", licence="MIT"
    )
    found = imported.metadata
    assert (found["model"], found["tp"], found["pp"]) == ("qwen3-8b", "1", "4")
    assert (found["device"], found["origin"], found["licence"]) == ("my-gpu", "our lab", "MIT")
    assert not any("origin" in text for text in imported.notes)
    assert any(ORIGIN in text for text in read(written(tmp_path, *LINES)).notes)


def test_unknown_model_names_the_way_out(tmp_path):
    path = written(tmp_path, *LINES, name="dvfs_profile_NVIDIA H200_acme_Foo-1B_tp1_pp1_one.csv")
    error = refused(path)
    assert "acme_Foo-1B" in error.message
    assert "--model" in (error.hint or "")


def test_a_layout_that_does_not_divide(tmp_path):
    path = written(tmp_path, *LINES, name=NAME.replace("tp2", "tp3"))
    with pytest.raises(ModelShapeError, match="--tp 3"):
        read(path)
    assert "1 or more" in refused(written(tmp_path, *LINES), tp=0).message


def test_rows_that_are_not_valid_are_dropped_and_counted(tmp_path):
    failed = "900,64,60,2048,,,0,0"  # a trial that failed has no numbers
    imported = read(written(tmp_path, *LINES, failed))
    assert imported.dropped_rows == 1
    assert len(imported.columns["clock_mhz"]) == 4
    error = refused(written(tmp_path, failed))
    assert "no valid rows" in error.message
    assert "1 rows are marked" in (error.cause or "")


def test_a_missing_column_is_named_with_what_looks_like_it(tmp_path):
    error = refused(
        written(tmp_path, *LINES, header=HEADER.replace("energy_consumption", "energy_joules"))
    )
    assert "lacks the column energy_consumption" in error.message
    assert "energy_joules" in (error.cause or "")


@pytest.mark.parametrize(
    ("time_factor", "energy_factor", "reading"),
    [
        (1.0, 1e-3, "s and J"),
        (1e3, 1.0, "ms and mJ"),
        (1e3, 1e-3, "ms and J"),
        (1.0, 1e3, "s and uJ"),
        (1e6, 1.0, "us and mJ"),
    ],
)
def test_another_unit_is_refused_with_both_readings(tmp_path, time_factor, energy_factor, reading):
    scaled = []
    for line in LINES:
        fields = line.split(",")
        fields[4] = repr(float(fields[4]) * time_factor)
        fields[5] = repr(float(fields[5]) * energy_factor)
        scaled.append(",".join(fields))
    error = refused(written(tmp_path, *scaled))
    assert "another unit" in error.message
    assert "read as s and mJ" in (error.cause or "")
    assert f"read as {reading}: " in (error.cause or "")


def test_one_line_in_another_unit_is_named(tmp_path):
    error = refused(written(tmp_path, *LINES, "810,64,60,2048,0.02,9.0,50,1"))
    assert "line 6" in error.message
    assert "W per GPU" in error.message


def test_clocks_in_another_unit(tmp_path):
    lines = [line.replace("1410,", "1410000,").replace("510,", "510000,") for line in LINES]
    assert "MHz" in refused(written(tmp_path, *lines)).message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("810,64,60,2048,fast,9000,50,1", "time_taken must be a number, found 'fast'"),
        ("810,64,60,2048,nan,9000,50,1", "time_taken must be positive"),
        ("810,64,60,2048,0.02,-9000,50,1", "energy_consumption must be positive"),
        ("810,0,60,2048,0.02,9000,50,1", "batch_size must be positive"),
        ("810,64.5,60,2048,0.02,9000,50,1", "batch_size must be an integer"),
        (f"810,1{'0' * 400},60,2048,0.02,9000,50,1", "batch_size must be an integer"),
        ("810,64,60", "must be an integer, found None"),
        ("810,64,0,2048,0.02,9000,50,1", "2048 KV tokens of 0 decode requests"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, said):
    error = refused(written(tmp_path, *LINES, line))
    assert "line 6" in error.message
    assert said in error.message


def test_the_same_pass_twice(tmp_path):
    # Sixty and seventy of one token are the same: one decode.
    error = refused(written(tmp_path, *LINES, "1410,1,70,2048,0.012,7600,50,1"))
    assert "lines 2 and 6" in error.message


def test_files_that_are_no_csv(tmp_path):
    empty = tmp_path / NAME
    empty.write_text("")
    assert "empty" in refused(empty).message
    assert "no valid rows" in refused(written(tmp_path)).message
    empty.write_bytes(b"PAR1\xff\xfe\x00")
    assert "cannot be read" in refused(empty).message
    assert "no file" in refused(tmp_path / f"missing_{NAME}").message


def test_unknown_format():
    with pytest.raises(ImportFormatError, match="unknown format 'excel'") as caught:
        importer("excel")
    assert "beam-artifact" in (caught.value.hint or "")


def test_an_existing_output_is_kept(tmp_path):
    source, output = written(tmp_path, *LINES), tmp_path / "table.parquet"
    output.write_text("precious")
    with pytest.raises(OutputError):
        import_table(source, output, file_format="beam-artifact")
    assert output.read_text() == "precious"
    done = import_table(source, output, file_format="beam-artifact", force=True)
    assert PerfTable.load(output).metadata == done.table.metadata


def test_measured_csvs_survive_import_load_and_export(measured_csvs, tmp_path):
    for source in measured_csvs:
        output = tmp_path / f"{source.stem}.parquet"
        import_table(source, output, file_format="beam-artifact")
        table = PerfTable.load(output)
        assert len(table.rows(RowKind.FORWARD)["kind"]) == 744
        back = output_beside(output, table, "beam-artifact")
        export_table(table, back, file_format="beam-artifact")
        published, exported = (numbers(path) for path in (source, back))
        assert published.keys() == exported.keys()
        for key, values in published.items():
            np.testing.assert_allclose(exported[key], values, rtol=1e-13)
        # The exported file's own name says enough to import it again.
        again = import_table(
            back, tmp_path / "again.parquet", file_format="beam-artifact", force=True
        )
        for column in COLUMNS:
            ours, theirs = table.columns[column.name], again.table.columns[column.name]
            if column.dtype == "float64":
                np.testing.assert_allclose(ours, theirs, rtol=1e-13)
            else:
                assert np.array_equal(ours, theirs), column.name


def test_a_controller_and_a_replay_take_the_same_waiting_power(tmp_path):
    """The device file's, written into the table: the format has none, and a runtime no files."""
    imported = import_table(
        written(tmp_path, *LINES), tmp_path / "a.parquet", file_format="beam-artifact"
    )
    table = imported.table
    idle = table.rows(RowKind.IDLE)
    assert set(idle["source"]) == {"modelled"}
    assert table.sources == (Source.IMPORTED,), "of the passes"
    assert any("device file" in note for note in imported.notes)
    cost, said = StepCost.from_table(table), []
    by_device = waiting_w(resolve_device(table.device), cost.clocks_mhz.astype(float))
    assert cost.idle_power_w == pytest.approx(table.tp * by_device)
    in_replay = with_waiting_power(cost, table, None, said.append)
    assert in_replay.idle_power_w == pytest.approx(with_idle_power(cost, None).idle_power_w)
    assert "modelled" in said[0]


@pytest.mark.parametrize(
    ("device", "meant"), [("some-other-gpu", ""), ("a100-smx4", "did you mean a100-")]
)
def test_of_a_gpu_without_a_device_file_no_waiting_power_is_known(tmp_path, device, meant):
    imported = import_table(
        written(tmp_path, *LINES), tmp_path / "a.parquet", file_format="beam-artifact",
        overrides=ImportOverrides(device=device),
    )  # fmt: skip
    assert len(imported.table.rows(RowKind.IDLE)["kind"]) == 0
    (said,) = [note for note in imported.notes if "waits is not known" in note]
    assert device in said
    assert meant in said


def numbers(path: Path) -> dict[tuple[int, ...], list[float]]:
    """Pass -> seconds, millijoules, trials; decode_tokens as the decodes that it means."""
    with path.open(newline="") as file:
        return {
            (
                int(row["clock"]),
                int(row["batch_size"]),
                min(int(row["decode_tokens"]), int(row["batch_size"])),
                int(row["total_ctx_len"]),
            ): [float(row[name]) for name in ("time_taken", "energy_consumption", "num_trials")]
            for row in csv.DictReader(file)
        }
