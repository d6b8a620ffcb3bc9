"""What an assumption is worth: the same replay with one of them changed at a time.

Noise, waiting power, host gap, front end, clock delay and the plant's table are varied in the
plant; the policies' table is made wrong while the plant's stays true.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from beam_runtime.table.perf_table import PerfTable
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.policies.registry import ORACLE, STATIC_BEST, VANILLA
from beamprof.tables.table_file import seal_table
from beamprof.traces.trace import Trace

TABLE_ERROR, TABLE_NOISE = 0.15, 0.10


def _same(table: PerfTable) -> PerfTable:
    return table


@dataclass(frozen=True, slots=True)
class Variation:
    """One assumption, changed.

    Attributes:
        name: in words.
        options: what is changed of ReplayOptions.
        believed: what the policies' table becomes; the plant's stays.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    believed: Callable[[PerfTable], PerfTable] = _same


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a policy under a variation; as in ladder.Rung."""

    variation: str
    policy: str
    goodput: float
    vanilla_goodput: float
    to_vanilla: float
    to_static: float
    slowdown: float
    tokens_per_s_user: float


def biased(table: PerfTable, factor: float) -> PerfTable:
    """The table with every pass's latency times ``factor``."""
    forward = table.columns["kind"] == "forward"
    latency_ms = np.where(forward, factor, 1.0) * table.columns["latency_ms"]
    return seal_table({**table.columns, "latency_ms": latency_ms}, table.metadata)


def noisy(table: PerfTable, share: float, seed: int = 0) -> PerfTable:
    """The table with every pass's latency and energy off by a random share, log-normal."""
    random = np.random.default_rng(seed)
    forward = table.columns["kind"] == "forward"
    columns = dict(table.columns)
    for name in ("latency_ms", "energy_j"):
        factor = np.exp(random.normal(0.0, share, len(forward)))
        columns[name] = np.where(forward, factor, 1.0) * columns[name]
    return seal_table(columns, table.metadata)


VARIATIONS: tuple[Variation, ...] = (
    Variation("as assumed"),
    Variation("no step noise", {"noise": 0.0}),
    Variation("10 % step noise", {"noise": 0.1}),
    Variation("another seed", {"seed": 1}),
    Variation("plant's table not smoothed", {"smooth": False}),
    Variation("45 W per waiting GPU", {"idle_power_w": 45.0}),
    Variation("120 W per waiting GPU", {"idle_power_w": 120.0}),
    Variation("host gap 4 ms", {"host_gap_ms": 4.0}),
    Variation("host gap 9 ms", {"host_gap_ms": 9.0}),
    Variation("no front end", {"front_end_ms": 0.0}),
    Variation("clock delay 200 ms", {"clock_delay_ms": 200.0}),
    Variation(f"policies' table {TABLE_NOISE:.0%} noisy", believed=lambda t: noisy(t, TABLE_NOISE)),
    Variation(
        f"policies' table {TABLE_ERROR:.0%} fast", believed=lambda t: biased(t, 1 - TABLE_ERROR)
    ),
    Variation(
        f"policies' table {TABLE_ERROR:.0%} slow", believed=lambda t: biased(t, 1 + TABLE_ERROR)
    ),
)


def sensitivity(
    table: PerfTable,
    trace: Trace,
    policies: Sequence[str],
    options: ReplayOptions,
    *,
    plant_table: PerfTable | None = None,
    variations: Sequence[Variation] = VARIATIONS,
    progress: Callable[[str], None] = lambda words: None,
) -> tuple[Outcome, ...]:
    """Every policy that is no baseline, under every variation.

    Args:
        table: what the policies know, before a variation makes it wrong.
        trace: requests to serve.
        policies: names; baselines and the oracle are left out.
        options: what is assumed.
        plant_table: what is true; the table by default.
        variations: what is changed; each is played from the same trace and seed.
        progress: told the name of each variation when it has been played.

    Raises:
        ReplayError, TraceError: as ladder.replay.
    """
    asked = [name for name in policies if name not in (VANILLA, STATIC_BEST, ORACLE)]
    found = []
    for one in variations:
        report = replay(
            one.believed(table),
            trace,
            asked,
            replace(options, **one.options),
            plant_table=plant_table or table,
        )
        progress(one.name)
        for rung in report.rungs[1:]:
            m = rung.metrics
            if m.policy in asked or not asked:
                found.append(
                    Outcome(
                        variation=one.name,
                        policy=m.policy,
                        goodput=m.goodput,
                        vanilla_goodput=report.vanilla.goodput,
                        to_vanilla=rung.to_vanilla,
                        to_static=rung.to_static,
                        slowdown=rung.slowdown,
                        tokens_per_s_user=m.tokens_per_s_user,
                    )
                )
    return tuple(found)
