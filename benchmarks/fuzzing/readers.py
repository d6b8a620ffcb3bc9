"""Readers of the offline half: tables, traces, models, sweeps, journals, metrics, results.

Each function here makes its samples in a folder and returns what reads one damaged input.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from fuzzing.damage import damaged
from fuzzing.samples import CONFIGS, METRICS, POOL, STATE, STUDY, SWEEP, TRACES

Read = Callable[[random.Random], object]

_SCRAPED_S = 1_700_000_000


def _file(path: Path, samples: list[bytes], read: Callable[[Path], object]) -> Read:
    """Reads one damaged file."""

    def once(moments: random.Random) -> object:
        path.write_bytes(damaged(moments.choice(samples), moments))
        return read(path)

    return once


def traces(folder: Path) -> Read:
    """Any format's importer, by its columns or by name, and whatever carries it."""
    import bz2
    import gzip
    import io
    import lzma

    import polars as pl

    from beamprof.traces.importing import ImportOptions, import_trace
    from beamprof.traces.policies import BadRows

    packed = io.BytesIO()
    pl.read_csv(io.StringIO(TRACES["servegen"])).write_parquet(packed)
    mooncake = TRACES["mooncake"].encode()
    samples = {
        **{name: [text.encode()] for name, text in TRACES.items()},
        "": [packed.getvalue(), *(pack(mooncake) for pack in (gzip.compress, bz2.compress,
                                                              lzma.compress))],
    }  # fmt: skip
    path = folder / "trace"

    def once(moments: random.Random) -> object:
        name = moments.choice(tuple(samples))
        path.write_bytes(damaged(moments.choice(samples[name]), moments))
        options = ImportOptions(
            bad_rows=moments.choice(list(BadRows)), sort=moments.random() < 0.5,
            rate_rps=moments.choice((None, None, None, 2.0)),
        )  # fmt: skip
        return import_trace(path, format_name=moments.choice((None, name or None)), options=options)

    return once


def own_traces(folder: Path) -> Read:
    """A trace of ours and its sidecar."""
    from beamprof.traces.importing import import_trace
    from beamprof.traces.trace_file import load_trace, save_trace, sidecar_path

    foreign = folder / "foreign"
    foreign.write_text(TRACES["jsonl"])
    names = [folder / name for name in ("t.parquet", "t.csv")]
    whole = {}
    for name in names:
        save_trace(import_trace(foreign), name)
        whole[name] = name.read_bytes(), sidecar_path(name).read_bytes()

    def once(moments: random.Random) -> object:
        path = moments.choice(names)
        rows, said = whole[path]
        both = moments.random()
        path.write_bytes(damaged(rows, moments) if both < 0.6 else rows)
        sidecar_path(path).write_bytes(damaged(said, moments) if both > 0.4 else said)
        return load_trace(path)

    return once


def models(folder: Path) -> Read:
    """config.json, and the stage that is made of it."""
    from beamprof.models.config import read_config

    samples = [json.dumps(config, indent=1).encode() for config in CONFIGS]
    return _file(folder / "config.json", samples, lambda path: read_config(path).shard(2, 2))


def sweeps(folder: Path) -> Read:
    """A sweep, a study and a user's settings."""
    from beamprof.profiler.spec import resolve_spec
    from beamprof.replay.study_spec import resolve_study

    def read(path: Path) -> object:
        return resolve_spec(sweep=str(path))

    one = _file(folder / "sweep.toml", [SWEEP.encode()], read)
    other = _file(folder / "study.toml", [STUDY.encode()], lambda path: resolve_study(file=path))
    return lambda moments: moments.choice((one, other))(moments)


def devices(folder: Path) -> Read:
    """A device file."""
    from beamprof.devices import device

    shipped = Path(device.__file__).parent / "a100-sxm4-80gb.toml"
    return _file(folder / "device.toml", [shipped.read_bytes()],
                 lambda path: device.resolve_device(str(path)))  # fmt: skip


def metrics(folder: Path) -> Read:
    """vLLM's metrics, and the load that is made of them."""
    from beamprof.advice.load import load_from_scrape
    from beamprof.advice.scrape import read_scrape

    def read(path: Path) -> object:
        os.utime(path, (_SCRAPED_S, _SCRAPED_S))
        return load_from_scrape(read_scrape(str(path)))

    return _file(folder / "metrics.txt", [METRICS.encode()], read)


def engine_states(folder: Path) -> Read:
    """A state for beam decide, down to the snapshot."""
    from beam_runtime.types import EngineLimits, Slo
    from beamprof.decide.engine_state import read_state

    limits = EngineLimits(pp=2)
    return _file(folder / "state.json", [json.dumps(STATE).encode()],
                 lambda path: read_state(path).snapshot(limits, Slo(), 1410))  # fmt: skip


def journals(folder: Path) -> Read:
    """A sweep's journal."""
    from beam_runtime.table.schema import RowKind
    from beam_runtime.types import Source
    from beamprof.backends.base import Measurement
    from beamprof.backends.cell import Cell
    from beamprof.profiler.journal import Journal, peek
    from beamprof.profiler.plan import Trial

    sweep = {"model": "llama3-8b", "trials": "2"}
    path = folder / "journal.jsonl"
    with Journal.open(path, sweep) as journal:
        for number in range(3):
            cell = Cell(RowKind.FORWARD, 1410, 64, 0, 8, 4096)
            measured = Measurement(2.0, 0.5, Source.MEASURED, 0.001, 0.01, 1395.0, passes=10)
            journal.append(Trial(cell, number), measured)
    whole = path.read_bytes()

    def once(moments: random.Random) -> object:
        path.write_bytes(damaged(whole, moments))
        if moments.random() < 0.3:
            return peek(path)
        with Journal.open(path, sweep) as journal:
            return journal.entries

    return once


def pools(folder: Path) -> Read:
    """A ServeGen pool of one client."""
    from beamprof.traces.servegen_pool import read_pool

    rows, lengths = (text.encode() for text in POOL)
    (folder / "pool").mkdir(exist_ok=True)
    at = folder / "pool"

    def once(moments: random.Random) -> object:
        both = moments.random()
        name, other = at / "chunk-0-trace.csv", at / "chunk-0-dataset.json"
        name.write_bytes(damaged(rows, moments) if both < 0.6 else rows)
        other.write_bytes(damaged(lengths, moments) if both > 0.4 else lengths)
        return read_pool(at, 0.0, 1200.0)

    return once


def foreign_tables(folder: Path) -> Read:
    """A published CSV of measurements."""
    from beamprof.tables.importers import ImportOverrides, importer

    text = (
        "clock,batch_size,decode_tokens,total_ctx_len,time_taken,energy_consumption,num_trials,"
        "valid\n1410,1,60,2048,0.012,7630.5,50,1\n1410,128,60,40000,0.030,18000.0,50,1\n"
        "510,1,60,2048,0.028,8800.0,25,1\n510,128,60,40000,0.060,19000.0,25,1\n"
    )
    name = "dvfs_profile_NVIDIA A100-SXM4-80GB_meta-llama_Llama-3.3-70B-Instruct_tp2_pp4_one.csv"
    read = importer("beam-artifact")
    return _file(folder / name, [text.encode()], lambda path: read(path, ImportOverrides()))


def decision_logs(folder: Path) -> Read:
    """A decision log, as beam report reads it."""
    from fuzzing.hooks import written_log

    from beamprof.report.html.log_run import load_log

    text = written_log(folder).read_bytes()
    return _file(folder / "decisions.jsonl", [text], load_log)


def names(folder: Path) -> Read:
    """What a user types: files that no file can be called, models, promises, clocks, times."""
    from beam_runtime.table.perf_table import PerfTable
    from beamprof import units
    from beamprof.advice.scrape import read_scrape
    from beamprof.decide.engine_state import read_state, state_of
    from beamprof.devices.device import resolve_device
    from beamprof.files import check_writable
    from beamprof.models.registry import resolve_model
    from beamprof.profiler.spec import resolve_spec
    from beamprof.replay.saved import load_replay
    from beamprof.replay.saved_study import load_study
    from beamprof.replay.study_spec import resolve_study
    from beamprof.slo import parse_slo
    from beamprof.tables.importers import ImportOverrides, importer
    from beamprof.traces.importing import open_trace
    from beamprof.traces.servegen_pool import read_pool

    readers: list[Callable[[str], object]] = [
        resolve_model, resolve_device, read_scrape, PerfTable.load,
        lambda name: resolve_spec(sweep=name), lambda name: open_trace(Path(name)),
        lambda name: read_state(Path(name)), lambda name: load_replay(Path(name)),
        lambda name: load_study(Path(name)), lambda name: read_pool(Path(name), 0.0, 600.0),
        lambda name: check_writable(Path(name), force=False),
        lambda name: importer("aiconfigurator")(Path(name), ImportOverrides()),
        lambda name: importer("beam-artifact")(Path(name), ImportOverrides()),
        lambda name: resolve_study({"tables": name, "traces": name, "seeds": name}),
        lambda name: parse_slo(name, "slo"), lambda name: units.parse_clocks(name, "clocks"),
        lambda name: units.parse_duration_s(name, "window"),
        lambda name: units.parse_power_w(name, "power"), lambda name: state_of(name, name),
    ]  # fmt: skip
    samples = [b"llama3-8b", b"meta-llama/Llama-3.1-8B", b"a100-sxm4-80gb.toml", b"~/t.parquet",
               b"~nobody-here/x.json", b"x/y.toml", b"1s/200ms@99%", b"1s/tpot=100ms", b"15m",
               b"65W", b"510,960,1410", b"210:1410:15", b"0:4:1", b"500x", b"t.csv"]  # fmt: skip

    def once(moments: random.Random) -> object:
        name = damaged(moments.choice(samples), moments)[:30_000]
        return moments.choice(readers)(name.decode("utf-8", "surrogateescape"))

    return once


def replays(folder: Path) -> Read:
    """What beam replay wrote, for beam report: bytes that fell over, and other words in them."""
    import io

    import pyarrow.parquet as pq
    from fuzzing.tables import sample_table

    from beam_runtime.table.perf_table import PerfTable
    from beamprof.replay.ladder import replay
    from beamprof.replay.options import ReplayOptions
    from beamprof.replay.results import FILES, METADATA_KEY
    from beamprof.replay.saved import load_replay
    from beamprof.traces.synthetic import Lengths, poisson

    table = folder / "table.parquet"
    table.write_bytes(sample_table(folder))
    trace = poisson(4.0, 20.0, lengths=Lengths(200, 20), seed=1)
    out = folder / "replay"
    replay(PerfTable.load(table), trace, ["vanilla"], ReplayOptions(), output=out, command="beam")
    whole = {name: (out / f"{name}.parquet").read_bytes() for name in FILES}
    key = METADATA_KEY.encode()

    def reworded(data: bytes, moments: random.Random) -> bytes:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            rows, said = file.read(), dict(file.metadata.metadata)
        said[key] = damaged(said[key], moments)
        sink = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(said), sink)
        return sink.getvalue()

    def once(moments: random.Random) -> object:
        seed = moments.random()  # the same words in all files, or bytes of one
        changed = moments.choice(tuple(whole)) if moments.random() < 0.5 else ""
        for name, data in whole.items():
            spoilt = data
            if not changed:
                spoilt = reworded(data, random.Random(seed))
            elif name == changed:
                spoilt = damaged(data, moments)
            (out / f"{name}.parquet").write_bytes(spoilt)
        return load_replay(out)

    return once
