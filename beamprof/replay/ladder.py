"""`beam replay` as a function: one trace under several policies, side by side.

Vanilla and the best single clock are always among them: energy is stated relative to both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from beam_runtime.table.perf_table import PerfTable
from beamprof.plain import plain
from beamprof.replay.knee import knee_mhz
from beamprof.replay.metrics import Metrics, measure, servable_in_time
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.oracle import lower_bound
from beamprof.replay.policies.registry import KNEE, ORACLE, VANILLA, policy_named
from beamprof.replay.record import Record
from beamprof.replay.results import check_frames_writable, frames_of, write_frames
from beamprof.replay.site import site_of
from beamprof.traces.trace import Trace
from beamprof.traces.transforms import cap_total_tokens


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
        assumed: what the plant rests on, a few words each.
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
    assumed: tuple[str, ...]
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
    site, assumed = site_of(table, plant_table, options)
    largest = max(policy.max_batched_tokens for policy in playable)
    possible = servable_in_time(
        trace.input_tokens, site.ttft_in_engine_ms, site.cost, site.limits, largest
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
        assumed=assumed,
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


def _dropped(trace: Trace) -> dict[str, int]:
    """Every non-zero count of the trace's record."""
    counts: dict[str, int] = {}
    for step in trace.provenance.transforms:
        for reason, count in step.counts.items():
            if count:
                counts[reason] = counts.get(reason, 0) + count
    return counts
