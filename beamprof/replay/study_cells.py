"""One cell of a study: one policy on one trace, played anywhere, and the row that comes of it.

A job carries its table and trace along, so a worker reads no file: what is played is what was
checked, also on another machine.
"""

import functools
import hashlib
import itertools
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

import beam_runtime
from beam_runtime.errors import BeamError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import StreamKind
from beamprof import version
from beamprof.errors import ReplayError
from beamprof.plain import plain
from beamprof.replay.metrics import J_PER_KWH, Metrics, measure, new_tokens, servable_in_time
from beamprof.replay.options import MAX_MODEL_LEN, ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.base import Policy
from beamprof.replay.policies.oracle import lower_bound
from beamprof.replay.policies.registry import (
    HINDSIGHT,
    ORACLE,
    STATIC_BEST,
    VANILLA,
    policy_named,
)
from beamprof.replay.promised import check_classes, promised_slos
from beamprof.replay.rivals import CHUNKS, Hindsight
from beamprof.replay.site import site_of
from beamprof.replay.study_spec import StudySpec
from beamprof.slo import classes_text, slo_of, slo_text
from beamprof.sources import sources_sha256
from beamprof.traces.trace import Trace
from beamprof.traces.transforms import cap_total_tokens

_SPREADS = ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms")


def _shares(value: str) -> pl.DataType:
    return pl.List(pl.Struct({value: pl.Int64, "share": pl.Float64}))


PROVENANCE: Mapping[str, pl.DataType] = {
    "table": pl.String(), "table_sha256": pl.String(), "table_source": pl.String(),
    "model": pl.String(), "device": pl.String(), "tp": pl.Int64(), "pp": pl.Int64(),
    "trace": pl.String(), "trace_sha256": pl.String(), "trace_source": pl.String(),
    "slo_ttft_ms": pl.Float64(), "slo_kind": pl.String(), "slo_stream_ms": pl.Float64(),
    "slo_tbt_share": pl.Float64(), "slo_answer_tokens": pl.Int64(),
    "slo_least_tokens_per_s": pl.Float64(), "slo_max_slowdown": pl.Float64(),
    "slo_classes": pl.String(), "policy": pl.String(),
    "noise_share": pl.Float64(), "seed": pl.Int64(), "smooth": pl.Boolean(),
    "host_gap_ms": pl.Float64(), "front_end_ms": pl.Float64(),
    "idle_power_w": pl.Float64(), "clock_delay_ms": pl.Float64(), "kv_blocks": pl.Int64(),
    "max_num_seqs": pl.Int64(), "max_model_len": pl.Int64(), "over_limit": pl.String(),
    "concurrency": pl.Int64(), "prefix_cache": pl.Boolean(),
    "largest_step_tokens": pl.Int64(), "beam_version": pl.String(), "code_sha256": pl.String(),
}  # fmt: skip
RESULTS: Mapping[str, pl.DataType] = {
    "requests": pl.Int64(), "requests_dropped": pl.Int64(), "duration_s": pl.Float64(),
    "setting": pl.String(), "waiting_gpu_power_w": pl.Float64(), "goodput": pl.Float64(),
    "energy_j": pl.Float64(), "energy_kwh": pl.Float64(),
    "prefill_energy_j": pl.Float64(), "decode_energy_j": pl.Float64(),
    "idle_energy_j": pl.Float64(), "mean_power_w": pl.Float64(), "j_per_token": pl.Float64(),
    "j_per_request": pl.Float64(),
    **{f"{what}_{one}": pl.Float64() for what in ("ttft", "tbt", "request") for one in _SPREADS},
    "tokens_per_s_user": pl.Float64(), "ttft_kept_share": pl.Float64(),
    "ttft_possible_kept_share": pl.Float64(), "stream_kept_share": pl.Float64(),
    "tbt_kept_share": pl.Float64(), "impossible_requests": pl.Int64(),
    "busy_share": pl.Float64(), "steps": pl.Int64(), "steps_per_s": pl.Float64(),
    "clock_shares": _shares("clock_mhz"), "chunk_shares": _shares("chunk_tokens"),
    "microbatches_shares": _shares("microbatches"), "pace_shares": _shares("pace_ms"),
    "clock_changes": pl.Int64(), "preemptions": pl.Int64(), "cached_tokens": pl.Int64(),
    "cached_share": pl.Float64(), "decisions": pl.Int64(),
    "undecided": pl.Int64(), "decision_mean_us": pl.Float64(), "wall_s": pl.Float64(),
}  # fmt: skip
NAMES = ("table", "trace", "trace_source")
# Of the machine that played, not of what was played: the only ones that differ from run to run.
TIMINGS = ("decision_mean_us", "wall_s")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A cell with all that playing it takes.

    Attributes:
        table: what the policy knows, and what is true.
        trace: requests to serve.
        policy: its name.
        options: SLO, noise, engine.
        largest_step_tokens: of any policy in the study: what decides which prompts any of them
            could have served in time.
        provenance: the row's first columns.
    """

    table: PerfTable
    trace: Trace
    policy: str
    options: ReplayOptions
    largest_step_tokens: int
    provenance: Mapping[str, Any]

    def __str__(self) -> str:
        table, trace = (Path(self.provenance[name]).name for name in ("table", "trace"))
        noise = self.options.noise
        words = f"{self.policy} on {trace}, {table}, {slo_text(self.options.slo)}"
        return f"{words}, noise {noise:g} seed {self.options.seed}" if noise else words

    @property
    def cell_id(self) -> str:
        """Hash of everything that the result depends on; where the files lie is not in it."""
        named = {key: value for key, value in self.provenance.items() if key not in NAMES}
        text = json.dumps([named, dict(self.table.metadata)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that could not be played, and why."""

    cell: str
    message: str
    cause: str | None = None
    hint: str | None = None


def jobs_of(
    spec: StudySpec, tables: Sequence[PerfTable], traces: Sequence[Trace]
) -> tuple[Job, ...]:
    """Every cell of the grid, in its order; vanilla and static:best first.

    Args:
        spec: the grid.
        tables: its tables, read, in the same order.
        traces: likewise.

    Raises:
        ReplayError: a policy that no table knows, a class that no trace has, options that make
            no sense, or a request with two promises of one stream.
    """
    names = tuple(dict.fromkeys((VANILLA, STATIC_BEST, *spec.policies)))
    _check_names(names, tables)
    code = code_sha256()
    hashes = [trace.sha256() for trace in traces]
    for trace, slo in itertools.product(traces, spec.slos):
        promised_slos(trace, slo)  # refused here, and not in each of its cells
    _check_classes(spec, traces)
    jobs = []
    for path, table in zip(spec.tables, tables, strict=True):
        largest = _largest_step(names, table)
        for trace_path, trace, trace_sha256 in zip(spec.traces, traces, hashes, strict=True):
            where = {
                "table": str(path),
                "table_sha256": table.metadata["rows_sha256"],
                "table_source": "+".join(table.sources),
                "model": table.model,
                "device": table.device,
                "tp": table.tp,
                "pp": table.pp,
                "trace": str(trace_path),
                "trace_sha256": trace_sha256,
                "trace_source": trace.provenance.source,
            }
            how = {
                "largest_step_tokens": largest,
                "beam_version": version.__version__,
                "code_sha256": code,
            }
            jobs += [
                Job(table, trace, name, options, largest,
                    {**where, "policy": name, **_columns_of_options(options), **how})
                for options in _options(spec)
                for name in names
            ]  # fmt: skip
    return tuple(jobs)


def _columns_of_options(options: ReplayOptions) -> dict[str, Any]:
    columns = asdict(options)
    del columns["classes"]
    slo = columns.pop("slo")
    return {
        "slo_ttft_ms": slo["ttft_ms"],
        "slo_kind": str(options.slo.kind),
        "slo_stream_ms": options.slo.stream_ms,
        "slo_tbt_share": slo["tbt_share"],
        "slo_answer_tokens": slo["answer_tokens"],
        "slo_least_tokens_per_s": slo["least_tokens_per_s"],
        "slo_max_slowdown": slo["max_slowdown"],
        "slo_classes": classes_text(options.classes),
        "noise_share": columns.pop("noise"),
        **columns,
        "over_limit": str(options.over_limit),
    }


def row_slo(row: Mapping[str, Any]) -> str:
    """The SLO of a study's row as parse_slo reads it."""
    kind, stream_ms = StreamKind(row["slo_kind"]), row["slo_stream_ms"]
    slo = slo_of(kind, row["slo_ttft_ms"], stream_ms, row["slo_tbt_share"])
    floor, slowdown = row["slo_least_tokens_per_s"], row["slo_max_slowdown"]
    return slo_text(slo.revised(least_tokens_per_s=floor, max_slowdown=slowdown))


def _options(spec: StudySpec) -> Iterable[ReplayOptions]:
    for slo in spec.slos:
        for noise in spec.noises:
            for seed in spec.seeds if noise else spec.seeds[:1]:
                yield ReplayOptions.assuming(
                    spec.assumptions,
                    slo=slo,
                    classes=spec.classes,
                    noise=noise,
                    seed=seed,
                    host_gap_ms=spec.host_gap_ms,
                    front_end_ms=spec.front_end_ms,
                    idle_power_w=spec.idle_power_w,
                    kv_blocks=spec.kv_blocks,
                    max_model_len=spec.max_model_len,
                    over_limit=spec.over_limit,
                    concurrency=spec.concurrency,
                )


def _largest_step(names: Sequence[str], table: PerfTable) -> int:
    """Of the policies that this table can have; the others fail in their cells."""
    largest = max(CHUNKS)
    for name in names:
        if name in (ORACLE, *HINDSIGHT):
            continue
        try:
            largest = max(largest, policy_named(name, table).max_batched_tokens)
        except ReplayError:
            continue
    return largest


def _check_names(names: Sequence[str], tables: Sequence[PerfTable]) -> None:
    """A policy that no table can have is a slip of the pen, not a cell that fails."""
    for name in names:
        if name in (ORACLE, *HINDSIGHT):
            continue
        refusals = []
        for table in tables:
            try:
                policy_named(name, table)
            except ReplayError as error:
                refusals.append(error)
        if len(refusals) == len(tables):
            raise refusals[0]


def _check_classes(spec: StudySpec, traces: Sequence[Trace]) -> None:
    """Likewise a class that no trace has; a trace may be without some of them."""
    for name, slo in spec.classes:
        refusals = []
        for trace in traces:
            try:
                check_classes(trace, {name: slo})
            except ReplayError as error:
                refusals.append(error)
        if len(refusals) == len(traces):
            raise refusals[0]


def play_job(job: Job) -> dict[str, Any] | Failure:
    """Play one cell: its row by column, in JSON's own types, or why there is none."""
    try:
        if code_sha256() != job.provenance["code_sha256"]:
            raise ReplayError(
                "this worker has another BEAM than the one that asks",
                cause="its sources are others, or were edited since",
                hint="install the same version on every node; run the same command again",
            )
        return _played(job)
    except BeamError as error:
        return Failure(str(job), error.message, error.cause, error.hint)
    except Exception as error:  # a bug in one cell must not take the others with it
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(
            str(job),
            f"BEAM has a bug: {type(error).__name__}: {error}",
            f"{Path(frame.filename).name} line {frame.lineno}",
            "play this cell with beam replay, and report what it prints",
        )


def _played(job: Job) -> dict[str, Any]:
    options, trace = job.options, job.trace
    if options.max_model_len is not None:
        trace = cap_total_tokens(trace, options.max_model_len, options.over_limit, MAX_MODEL_LEN)
    site, _ = site_of(job.table, job.table, options)
    row = {
        **job.provenance,
        "requests": trace.requests,
        "requests_dropped": job.trace.requests - trace.requests,
        "duration_s": trace.duration_s,
        # As played, mean over the clocks: the option, else the table's, else what was assumed.
        "waiting_gpu_power_w": float(site.cost.idle_power_w.mean()) / job.table.tp,
    }
    if job.policy == ORACLE:
        largest, new = job.largest_step_tokens, new_tokens(trace, site)
        bound = lower_bound(trace, site.cost, site.limits, largest, new)
        row |= {"energy_j": bound.energy_j, "energy_kwh": bound.energy_j / J_PER_KWH}
    else:
        possible = servable_in_time(trace, site, job.largest_step_tokens)
        if job.policy in HINDSIGHT:
            setting = Hindsight(trace, site, job.table).named(job.policy)
            policy: Policy = setting.policy(job.policy)
            row["setting"] = str(setting)
        else:
            policy = policy_named(job.policy, job.table)
        row |= _columns(measure(play(trace, policy, site), possible))
    complete: dict[str, Any] = plain({name: row.get(name) for name in (*PROVENANCE, *RESULTS)})
    return complete


def _columns(metrics: Metrics) -> dict[str, Any]:
    """Metrics with one number a column, its unit in the name."""
    kept = metrics.attainment
    row: dict[str, Any] = {
        "ttft_kept_share": kept.ttft,
        "ttft_possible_kept_share": kept.ttft_possible,
        "stream_kept_share": kept.stream,
        "tbt_kept_share": kept.tbt,
        "impossible_requests": kept.impossible,
        "busy_share": metrics.busy,
        "clock_shares": _listed(metrics.clock_share, "clock_mhz"),
        "chunk_shares": _listed(metrics.chunk_share, "chunk_tokens"),
        "microbatches_shares": _listed(metrics.microbatches_share, "microbatches"),
        "pace_shares": _listed(metrics.pace_share, "pace_ms"),
    }
    spreads = {"ttft": metrics.ttft, "tbt": metrics.tbt, "request": metrics.request}
    for what, spread in spreads.items():
        row |= {f"{what}_{name}": getattr(spread, name) for name in _SPREADS}
    return row | {name: getattr(metrics, name) for name in RESULTS if hasattr(metrics, name)}


def _listed(shares: Mapping[int, float], value: str) -> list[dict[str, float]]:
    return [{value: setting, "share": share} for setting, share in shares.items()]


@functools.cache
def code_sha256() -> str:
    """Hash of the sources that decide a replay, as this process found them (sources.py)."""
    package = Path(version.__file__).parent
    rooms = ("replay", "traces", "tables", "devices")
    return sources_sha256([Path(beam_runtime.__file__).parent, *(package / room for room in rooms)])
