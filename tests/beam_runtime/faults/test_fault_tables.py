"""Point 4: whatever is wrong with the table, the engine keeps its own settings."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_bench import Bench, requests

from beam_runtime.control.controller import Controller
from beam_runtime.control.resources import open_cost, open_table
from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import METADATA_PREFIX, rows_sha256
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beam_runtime.types import EngineLimits, Knobs, Snapshot
from beamprof.tables.check import check_table
from beamprof.tables.table_file import write_table


@pytest.fixture
def table_file(small_table: PerfTable, tmp_path: Path) -> Path:
    path = tmp_path / "small.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    return path


def test_no_table(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run(requests(), cost=TableError("no table at x", hint="make one"), search=None)
    assert bench.after.reason.startswith("no usable table: no table at x")
    assert bench.after.counts.events > 20, "it goes on counting"
    assert bench.actuator.calls == [], "and locks nothing"
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1, "said once"
    assert bench.controller is not None
    with pytest.raises(TableError, match="no table at x"):
        bench.controller.decide(Snapshot(0.0, bench.limits, Knobs(1410, 512)))


def test_a_load_that_the_table_does_not_cover(bench: Bench) -> None:
    largest = dict(bench.cost.fit.largest, decode_requests=2.0)
    narrow = replace(bench.cost, fit=replace(bench.cost.fit, largest=largest))
    crowd = [replace(r, arrival_ms=1000.0) for r in requests(8, tokens=40)]
    alone = [replace(r, request_id=f"alone{r.request_id}") for r in requests(3)]
    late = [replace(r, request_id=f"late{r.request_id}", arrival_ms=9000.0) for r in requests(2)]
    reasons: list[str] = []

    def watch(controller: Controller, now_ms: float) -> None:
        reason = controller.status.reason
        if not reasons or reasons[-1] != reason:
            reasons.append(reason)

    bench.run([*alone, *crowd, *late], cost=narrow, meanwhile=watch)
    assert [reason[:30] for reason in reasons] == ["", "the table does not cover this ", ""]
    assert bench.after.counts.falls == 1


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter a table's rows and give it a checksum that fits, as a broken profiler would."""
    with pq.ParquetFile(path) as file:
        schema, table, raw = file.schema_arrow, file.read(), dict(file.metadata.metadata)
    columns = {name: table.column(name).to_numpy().copy() for name in table.column_names}
    change(columns)
    raw = {key: value for key, value in raw.items() if key.startswith(METADATA_PREFIX.encode())}
    raw[f"{METADATA_PREFIX}rows_sha256".encode()] = rows_sha256(columns).encode()
    altered = pa.table(
        {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    )
    pq.write_table(altered.replace_schema_metadata(raw), path)


def value(column: str, of_row: float) -> Callable[[Path], None]:
    """A table whose row 7 holds this."""
    return lambda path: reseal(path, lambda columns: columns[column].__setitem__(7, of_row))


def only(keep: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A table without the rows that are not kept."""

    def change(columns: dict[str, Any]) -> None:
        kept = keep(columns)
        columns.update({name: values[kept] for name, values in columns.items()})

    return lambda path: reseal(path, change)


def another_version(path: Path) -> None:
    with pq.ParquetFile(path) as file:
        table, raw = file.read(), dict(file.metadata.metadata)
    raw[f"{METADATA_PREFIX}schema_version".encode()] = b"9.0"
    pq.write_table(table.replace_schema_metadata(raw), path)


def a_bit_flipped(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 1
    path.write_bytes(bytes(whole))


def twice(path: Path) -> None:
    def change(columns: dict[str, Any]) -> None:
        columns.update({name: np.append(values, values[:1]) for name, values in columns.items()})

    reseal(path, change)


def in_millijoules(path: Path) -> None:
    reseal(path, lambda columns: columns.update(energy_j=columns["energy_j"] * 1e3))


def of_one_gpu(path: Path) -> None:
    """Passes read from one of the stage's GPUs, idle rows from all."""

    def change(columns: dict[str, Any]) -> None:
        share = np.where(columns["kind"] == "forward", 4, 1)
        columns.update(energy_j=columns["energy_j"] / share)

    reseal(path, change)


def untouched(path: Path) -> None:
    """The table is good; it is for something else."""


@pytest.mark.parametrize(
    ("break_it", "wanted", "words"),
    [
        (lambda path: path.unlink(), {}, "no table at"),
        (lambda path: path.write_bytes(b""), {}, "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), {}, "cannot be read"),
        (a_bit_flipped, {}, ""),
        (another_version, {}, "schema version 9.0"),
        (untouched, {"device": "h100-sxm"}, "expected h100-sxm"),
        (untouched, {"model": "llama3-70b"}, "expected llama3-70b"),
        (untouched, {"tp": 4}, "expected 4"),
        (untouched, {"pp": 2}, "expected 2"),
        (value("latency_ms", np.nan), {}, "latency_ms = nan"),
        (value("energy_j", 0.0), {}, "energy_j = 0.0"),
        (value("latency_ms", -1.0), {}, "latency_ms = -1.0"),
        (twice, {}, "describe the same pass"),
        (in_millijoules, {}, "W per GPU"),
        (only(lambda columns: columns["prefill_tokens"] == 0), {}, "no pass with a chunk"),
        (only(lambda columns: columns["decode_requests"] == 0), {}, "no pass with decodes"),
        (of_one_gpu, {}, "draw less than the same GPUs waiting"),
    ],
)
def test_a_table_that_cannot_be_used(
    bench: Bench, table_file: Path, break_it: Callable[[Path], None], wanted: Any, words: str
) -> None:
    break_it(table_file)
    cost = open_cost(open_table(table_file, **wanted), None)
    assert isinstance(cost, TableError)
    assert words in str(cost)
    bench.run(requests(), cost=cost, search=None)
    assert bench.after.reason.startswith("no usable table")
    assert bench.actuator.calls == []


def noisy(path: Path) -> None:
    """By a fifth from row to row: beam table check refuses it."""

    def change(columns: dict[str, Any]) -> None:
        energy_j = columns["energy_j"]
        idle = columns["kind"] == "idle"
        noise = np.random.default_rng(0).uniform(0.8, 1.2, energy_j.size)
        columns.update(energy_j=energy_j * np.where(idle, 1.0, noise))

    reseal(path, change)


def test_a_table_that_is_only_poor_is_gone_by(bench: Bench, table_file: Path) -> None:
    noisy(table_file)
    assert not check_table(PerfTable.load(table_file)).drivable
    cost = open_cost(open_table(table_file), None)
    bench.run(requests(4), cost=cost)
    assert bench.after.steering


@pytest.mark.parametrize(
    "thin",
    [
        only(lambda columns: columns["clock_mhz"] == 1410),
        # Half the cells lack most clocks.
        only(
            lambda columns: (
                (columns["clock_mhz"] % 450 == 60) | (columns["decode_requests"] % 32 == 0)
            )
        ),
        only(
            lambda columns: (
                (columns["decode_requests"] == 0)
                | (columns["decode_context_tokens"] == 512 * columns["decode_requests"])
            )
        ),
    ],
    ids=["one clock", "missing clocks", "one context"],
)
def test_a_table_with_holes(bench: Bench, table_file: Path, thin: Callable[[Path], None]) -> None:
    """Whether or not it may steer by it, nobody's tokens suffer."""
    thin(table_file)
    cost = open_cost(open_table(table_file), None)
    bench.run(requests(4), cost=cost, search=None)
    assert bench.after.counts.failed_searches == 0
    assert bench.after.steering == (not isinstance(cost, TableError))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"gpu_name": "NVIDIA H100 80GB HBM3"}, "the table is for NVIDIA H100 80GB HBM3"),
        ({"device": "h100-sxm"}, "the table is for h100-sxm"),
    ],
)
@pytest.mark.parametrize("may_lock", [True, False])
def test_a_table_for_another_kind_of_gpu(
    small_table: PerfTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    metadata: dict[str, str], words: str, may_lock: bool,
) -> None:  # fmt: skip
    nvml = FakeNvml(fake_gpus(8))
    monkeypatch.setattr("beam_runtime.clocks.nvml._import_pynvml", lambda: nvml)
    monkeypatch.setattr("beam_runtime.clocks.choose.may_lock_clocks", lambda *_, **__: may_lock)
    path = tmp_path / "table.parquet"
    write_table(small_table.columns, {**small_table.metadata, **metadata}, path)
    with Controller.from_table(path, EngineLimits(pp=4), gpus=range(8)) as beam:
        beam.arrival("a", 100)
        assert words in beam.status.reason
        assert not beam.orders.steering
    assert nvml.locked == [None] * 8


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"quantization": "fp8"}, "weights not quantised, this engine has fp8"),
        ({"quantization": "", "dtype": "float32"}, "weights bfloat16, this engine has float32"),
        ({"quantization": "", "dtype": "torch.float16"}, ""),
        ({}, ""),
    ],
)
def test_a_table_of_other_formats(
    small_table: PerfTable, tmp_path: Path, engine: dict[str, str], words: str
) -> None:
    shape = {"precision": {"method": "", "attention": "bfloat16", "kv": "bfloat16"}}
    path = tmp_path / "table.parquet"
    metadata = {**small_table.metadata, "model_shape": json.dumps(shape)}
    write_table(small_table.columns, metadata, path)
    with Controller.from_table(path, EngineLimits(pp=4), **engine) as beam:  # type: ignore[arg-type]
        assert words in beam.status.reason
        assert bool(words) == ("another precision" in beam.status.reason)
