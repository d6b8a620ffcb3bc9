"""`beam replay` as a function: one trace under several policies, side by side.

Vanilla and the best single clock are always among them: energy is stated relative to both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo
from beamprof.errors import ReplayError
from beamprof.plain import plain
from beamprof.replay.knee import knee_mhz
from beamprof.replay.metrics import Metrics, measure, servable_in_time
from beamprof.replay.plant import Site, play
from beamprof.replay.policies.oracle import lower_bound
from beamprof.replay.policies.registry import KNEE, ORACLE, VANILLA, policy_named
from beamprof.replay.record import Record
from beamprof.replay.results import check_frames_writable, frames_of, write_frames
from beamprof.traces.policies import OverLimit
from beamprof.traces.trace import Trace
from beamprof.traces.transforms import cap_total_tokens

# What fits eight measured A100s in serving (benchmarks/fidelity.py).
HOST_GAP_MS = 5.5
WAITING_GPU_W = 45.0
NO_LIMIT_BLOCKS = 1 << 30
DEFAULT_SLO = Slo()


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What is served, how, and what is promised.

    Attributes:
        slo: of every request.
        noise: standard deviation of a step's time, as a share.
        seed: of the noise.
        host_gap_ms: per stage and step, not covered by a pass.
        idle_power_w: of a waiting GPU; None = the table's idle rows, else WAITING_GPU_W.
        clock_delay_ms: from asking for a clock to running at it.
        kv_blocks: KV-cache blocks; None = memory is not what limits.
        max_num_seqs: requests that run at one time.
        max_model_len: most input + output tokens; None = no limit.
        over_limit: what happens to longer requests.
    """

    slo: Slo = DEFAULT_SLO
    noise: float = 0.0
    seed: int = 0
    host_gap_ms: float = HOST_GAP_MS
    idle_power_w: float | None = None
    clock_delay_ms: float = 25.0
    kv_blocks: int | None = None
    max_num_seqs: int = 256
    max_model_len: int | None = None
    over_limit: OverLimit = OverLimit.ERROR

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise ReplayError(
                "--noise is a share of a step's time from 0 up to 1",
                cause=f"found {self.noise:g}",
                hint="0.03 lets every step take 3 % more or less",
            )
        for name in ("host_gap_ms", "idle_power_w", "clock_delay_ms"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < float("inf"):
                raise ReplayError(f"{name} must be 0 or more", cause=f"found {value:g}")
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise ReplayError(f"--kv-blocks must be 1 or more, found {self.kv_blocks}")


@dataclass(frozen=True, slots=True)
class Rung:
    """One policy's numbers, and its energy over vanilla's and over the best single clock's.

    ``ttft_points``, ``tbt_points``: attainment less vanilla's, in percentage points.
    """

    metrics: Metrics
    to_vanilla: float
    to_knee: float
    ttft_points: float
    tbt_points: float


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The ladder of policies.

    Attributes:
        model, device, tp, pp: what the table describes.
        trace: its source; requests and duration after what was dropped.
        options: as played.
        knee_mhz: the clock of static:knee.
        rungs: vanilla first, then static:knee, then the others as asked.
        oracle_j: energy no policy can stay under; None where it was not asked for.
        dropped: requests lost or changed on the way from the source, by reason.
        notes: what was assumed.
        paths: files written.
    """

    model: str
    device: str
    tp: int
    pp: int
    trace: str
    requests: int
    duration_s: float
    options: ReplayOptions
    knee_mhz: int
    rungs: tuple[Rung, ...]
    oracle_j: float | None
    dropped: dict[str, int]
    notes: tuple[str, ...]
    paths: tuple[Path, ...] = ()

    @property
    def vanilla(self) -> Metrics:
        """The first rung."""
        return self.rungs[0].metrics


def replay(
    table: PerfTable,
    trace: Trace,
    policies: Sequence[str],
    options: ReplayOptions | None = None,
    *,
    plant_table: PerfTable | None = None,
    output: Path | None = None,
    force: bool = False,
    command: str = "",
    progress: Callable[[str], None] = lambda name: None,
) -> ReplayReport:
    """Play ``trace`` under every policy.

    Args:
        table: what the policies know.
        trace: requests to serve.
        policies: names, see policies.registry.
        options: SLO, noise, engine.
        plant_table: what is true; the policies' table by default.
        output: folder for results.FILES; None = nothing is written.
        force: replace files that exist.
        command: the command line that asked, for the record.
        progress: told the name of the policy that is about to be played.

    Raises:
        ReplayError: an unknown policy, two tables that do not belong together, a request that
            does not fit.
        TraceError: requests over max_model_len, by OverLimit.ERROR, or none left.
        OutputError: files exist, or cannot be written.
    """
    options = options or ReplayOptions()
    if output is not None:
        check_frames_writable(output, force=force)
    names = _names(policies)
    playable = [policy_named(name, table) for name in names if name != ORACLE]
    if options.max_model_len is not None:
        trace = cap_total_tokens(trace, options.max_model_len, options.over_limit)
    plant_table = plant_table or table
    site, notes = site_of(table, plant_table, options)
    largest = max(policy.max_batched_tokens for policy in playable)
    possible = servable_in_time(
        trace.input_tokens, options.slo.ttft_ms, site.cost, site.limits, largest
    )
    measured: list[Metrics] = []
    frames: list[dict[str, pl.DataFrame]] = []
    for policy in playable:
        progress(policy.name)
        played = play(trace, policy, site)
        measured.append(measure(played, possible))
        if output is not None:
            frames.append(frames_of(played, trace.frame["request_id"]))
    asked_oracle = ORACLE in names
    report = ReplayReport(
        model=table.model,
        device=table.device,
        tp=table.tp,
        pp=table.pp,
        trace=trace.provenance.source,
        requests=trace.requests,
        duration_s=trace.duration_s,
        options=options,
        knee_mhz=knee_mhz(table),
        rungs=_rungs(measured),
        oracle_j=(
            lower_bound(trace, site.cost, site.limits, largest).energy_j if asked_oracle else None
        ),
        dropped=_dropped(trace),
        notes=notes,
    )
    if output is None:
        return report
    record = Record.of(table, plant_table, trace, command)
    metadata = {"report": plain(report), "record": plain(record)}
    return replace(report, paths=write_frames(frames, metadata, output, force=force))


def _names(policies: Sequence[str]) -> list[str]:
    """Without repeats, vanilla and static:knee first."""
    return list(dict.fromkeys([VANILLA, KNEE, *(name.strip() for name in policies)]))


def _rungs(measured: Sequence[Metrics]) -> tuple[Rung, ...]:
    vanilla, knee = measured[0], measured[1]
    return tuple(
        Rung(
            one,
            one.energy_j / vanilla.energy_j,
            one.energy_j / knee.energy_j,
            100 * (one.attainment.ttft - vanilla.attainment.ttft),
            100 * (one.attainment.tbt - vanilla.attainment.tbt),
        )
        for one in measured
    )


def site_of(
    table: PerfTable, plant_table: PerfTable, options: ReplayOptions
) -> tuple[Site, tuple[str, ...]]:
    """Where policies are played, and what had to be assumed for it.

    Raises:
        ReplayError: the two tables do not belong together.
    """
    ours, theirs = ((t.model, t.tp, t.pp) for t in (table, plant_table))
    if ours != theirs:
        raise ReplayError(
            "the plant's table is for something else than the policies' table",
            cause=f"{theirs[0]} tp{theirs[1]} pp{theirs[2]} against "
            f"{ours[0]} tp{ours[1]} pp{ours[2]}",
        )
    low, high = plant_table.clocks_mhz[0], plant_table.clocks_mhz[-1]
    clocks = [clock for clock in table.clocks_mhz if low <= clock <= high]
    if not clocks:
        raise ReplayError("the two tables share no clock range")
    notes: list[str] = []
    costs = []
    for one in (plant_table, table):
        cost = StepCost.from_table(one, clocks)
        if options.idle_power_w is not None or not np.isfinite(cost.idle_power_w).all():
            gpu_w = WAITING_GPU_W if options.idle_power_w is None else options.idle_power_w
            if options.idle_power_w is None:
                notes.append(f"the table has no idle power: {gpu_w:g} W per waiting GPU")
            cost = replace(cost, idle_power_w=np.full(len(clocks), table.tp * gpu_w))
        costs.append(cost)
    if options.kv_blocks is None:
        notes.append("KV memory is not limited: --kv-blocks N limits it")
    limits = EngineLimits(
        pp=table.pp,
        max_num_seqs=options.max_num_seqs,
        host_gap_ms=options.host_gap_ms,
        clock_delay_ms=options.clock_delay_ms,
    )
    site = Site(
        cost=costs[0],
        believed=costs[1],
        limits=limits,
        kv_blocks=options.kv_blocks or NO_LIMIT_BLOCKS,
        slo=options.slo,
        noise=options.noise,
        seed=options.seed,
    )
    return site, tuple(dict.fromkeys(notes))


def _dropped(trace: Trace) -> dict[str, int]:
    """Every non-zero count of the trace's record."""
    counts: dict[str, int] = {}
    for step in trace.provenance.transforms:
        for reason, count in step.counts.items():
            if count:
                counts[reason] = counts.get(reason, 0) + count
    return counts
