"""`beam replay` as a function: one trace under several policies, side by side.

Vanilla and the best static setting are always among them: energy is stated relative to both.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from beam_runtime.search.slowdown import out_of_reach
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.plain import plain
from beamprof.replay.goodput import Kept, promises
from beamprof.replay.metrics import Metrics, lone_gap_ms, measure, new_tokens, servable_in_time
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
from beamprof.replay.promised import CLASS, check_classes, class_counts, own_slos
from beamprof.replay.record import Record
from beamprof.replay.results import check_frames_writable, frames_of, write_frames
from beamprof.replay.rivals import CHUNKS, Hindsight
from beamprof.replay.site import Site, site_of
from beamprof.traces.importing import as_trace
from beamprof.traces.prefixes import prefix_reuse
from beamprof.traces.trace import Trace
from beamprof.traces.transforms import cap_total_tokens


@dataclass(frozen=True, slots=True)
class Rung:
    """One policy's numbers, beside vanilla's and the best static setting's.

    Attributes:
        metrics: its own.
        setting: what hindsight chose, in words; empty for a policy that chooses by itself.
        to_vanilla, to_static: its energy over theirs.
        goodput_points, ttft_points, stream_points: shares kept less vanilla's, in points.
        slowdown: its mean request time over vanilla's.
    """

    metrics: Metrics
    setting: str
    to_vanilla: float
    to_static: float
    goodput_points: float
    ttft_points: float
    stream_points: float
    slowdown: float


_IN_A_NOTEBOOK = (
    "policy", "goodput", "energy_kwh", "to_vanilla", "to_static", "j_per_request",
    "request.mean_ms", "ttft.p99_ms", "tbt.p99_ms", "tokens_per_s_user", "setting",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClassGoodput:
    """The requests of one SLO class.

    Attributes:
        name: empty for those of none.
        slo: what they are promised, where they bring nothing of their own.
        requests: how many.
        goodput: by policy.
    """

    name: str
    slo: Slo
    requests: int
    goodput: dict[str, float]


@dataclass(frozen=True, slots=True, repr=False)
class ReplayReport:
    """The ladder of policies.

    Attributes:
        model, device, tp, pp: what the table describes.
        trace: its source; requests and duration after what was dropped.
        options: as played.
        lone_gap_ms: between two tokens of a request alone on the engine at its fastest: no
            policy can promise less.
        rungs: vanilla first, then static:best, then the others as asked.
        oracle_j: energy no policy can stay under; None where it was not asked for.
        dropped: requests lost or changed on the way from the source, by reason.
        assumed: what the plant rests on, a few words each.
        paths: files written.
        by_class: goodput of each SLO class of the trace, and of the requests of none.
    """

    model: str
    device: str
    tp: int
    pp: int
    trace: str
    requests: int
    duration_s: float
    options: ReplayOptions
    lone_gap_ms: float
    rungs: tuple[Rung, ...]
    oracle_j: float | None
    dropped: dict[str, int]
    assumed: tuple[str, ...]
    paths: tuple[Path, ...] = ()
    by_class: tuple[ClassGoodput, ...] = ()

    def __repr__(self) -> str:
        """The ladder on a line: energy over vanilla's, and goodput."""
        steps = ", ".join(
            f"{one.metrics.policy} {one.to_vanilla:.2f} ({100 * one.metrics.goodput:.1f} %)"
            for one in self.rungs
        )
        return f"ReplayReport({self.model} on {self.device}, {self.requests:,} requests: {steps})"

    def _repr_html_(self) -> str:
        """Its rows, in a notebook: goodput first, then energy and what readers get."""
        from beamprof.frames import frame

        table: str = frame(self).select(_IN_A_NOTEBOOK)._repr_html_()
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @property
    def vanilla(self) -> Metrics:
        """The first rung."""
        return self.rungs[0].metrics

    @property
    def static(self) -> Rung:
        """The second: the best single clock and chunk, by hindsight."""
        return self.rungs[1]


def replay(
    table: PerfTable | str | Path,
    trace: Trace | str | Path,
    policies: Sequence[str],
    options: ReplayOptions | None = None,
    *,
    plant_table: PerfTable | str | Path | None = None,
    output: str | Path | None = None,
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
    table = PerfTable.of(table)
    trace = as_trace(trace)
    output = None if output is None else Path(output)
    options = options or ReplayOptions()
    if output is not None:
        check_frames_writable(output, force=force)
    names = _names(policies)
    playable = {
        name: policy_named(name, table) for name in names if name not in (ORACLE, *HINDSIGHT)
    }
    if options.max_model_len is not None:
        trace = cap_total_tokens(trace, options.max_model_len, options.over_limit, MAX_MODEL_LEN)
    plant_table = table if plant_table is None else PerfTable.of(plant_table)
    check_classes(trace, dict(options.classes))
    site, assumed = site_of(table, plant_table, options)
    largest = max(*CHUNKS, *(policy.max_batched_tokens for policy in playable.values()))
    possible = servable_in_time(trace, site, largest)
    hindsight = Hindsight(trace, site, table)
    measured: dict[str, Metrics] = {}
    kept: dict[str, Kept] = {}
    frames: list[dict[str, pl.DataFrame]] = []
    for name in names:
        if name == ORACLE:
            continue
        progress(name)
        if name in HINDSIGHT:
            policy: Policy = hindsight.named(name).policy(name)
        else:
            policy = playable[name]
        played = play(trace, policy, site)
        measured[name] = measure(played, possible)
        kept[name] = promises(played).both
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
        lone_gap_ms=lone_gap_ms(site),
        rungs=_rungs(measured, hindsight),
        oracle_j=(
            lower_bound(trace, site.cost, site.limits, largest, new_tokens(trace, site)).energy_j
            if asked_oracle
            else None
        ),
        dropped=_dropped(trace),
        assumed=(*assumed, _prompts(trace, site), *_own(trace), *_floors(site)),
        by_class=_by_class(trace, site, kept),
    )
    if output is None:
        return report
    record = Record.of(table, plant_table, trace, command)
    metadata = {"report": plain(report), "record": plain(record)}
    return replace(report, paths=write_frames(frames, metadata, output, force=force))


def _names(policies: Sequence[str]) -> list[str]:
    """Without repeats, vanilla and static:best first."""
    return list(dict.fromkeys([VANILLA, STATIC_BEST, *(name.strip() for name in policies)]))


def _rungs(measured: Mapping[str, Metrics], hindsight: Hindsight) -> tuple[Rung, ...]:
    vanilla, static = measured[VANILLA], measured[STATIC_BEST]
    return tuple(
        Rung(
            metrics=one,
            setting=str(hindsight.named(name)) if name in HINDSIGHT else "",
            to_vanilla=one.energy_j / vanilla.energy_j,
            to_static=one.energy_j / static.energy_j,
            goodput_points=100 * (one.goodput - vanilla.goodput),
            ttft_points=100 * (one.attainment.ttft - vanilla.attainment.ttft),
            stream_points=100 * (one.attainment.stream - vanilla.attainment.stream),
            slowdown=one.request.mean_ms / vanilla.request.mean_ms,
        )
        for name, one in measured.items()
    )


def _by_class(trace: Trace, site: Site, kept: Mapping[str, Kept]) -> tuple[ClassGoodput, ...]:
    """Each class by itself; nothing where the trace has none."""
    if not class_counts(trace):
        return ()
    names = trace.frame[CLASS].fill_null("").to_numpy()
    return tuple(
        ClassGoodput(
            name, site.classes.get(name, site.slo), int(mine.sum()),
            {policy: float(both[mine].mean()) for policy, both in kept.items()},
        )
        for name in sorted(set(names.tolist()))
        for mine in (names == name,)
    )  # fmt: skip


def _own(trace: Trace) -> tuple[str, ...]:
    """How many requests bring their own SLO."""
    own = own_slos(trace)
    return (f"{own:,} of {trace.requests:,} requests with SLOs of their own",) if own else ()


def _floors(site: Site) -> tuple[str, ...]:
    """Floors of tokens per second that no setting gives."""
    every = (site.slo, *site.classes.values())
    return tuple(filter(None, (out_of_reach(site.cost, site.limits, slo) for slo in every)))


def _prompts(trace: Trace, site: Site) -> str:
    """What the plant does about prompts that begin alike, and of how many tokens."""
    tokens = int(trace.input_tokens.sum())
    reuse = prefix_reuse(trace, site.limits.block_size)
    if reuse is None:
        return f"all {tokens:,} prompt tokens played cold: the trace does not say which repeat"
    if not site.prefix_cache:
        return (
            f"all {tokens:,} prompt tokens played cold, though {reuse.reused_tokens:,} repeat "
            f"what came before"
        )
    return (
        f"a prefix cache, by {reuse.source.replace('_', ' ')} in {reuse.block_tokens}-token blocks"
    )


def _dropped(trace: Trace) -> dict[str, int]:
    """Every non-zero count of the trace's record."""
    counts: dict[str, int] = {}
    for step in trace.provenance.transforms:
        for reason, count in step.counts.items():
            if count:
                counts[reason] = counts.get(reason, 0) + count
    return counts
