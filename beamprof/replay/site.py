"""Where policies are played: the plant's table and the controller's, and what is assumed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo
from beamprof.errors import ReplayError
from beamprof.replay.options import ReplayOptions
from beamprof.replay.smooth_table import smoothed
from beamprof.tables.kv_room import kv_room_of
from beamprof.tables.waiting_power import with_waiting_power

NO_LIMIT_BLOCKS = 1 << 30
_BLOCK_TOKENS = EngineLimits(pp=1).block_size


@dataclass(frozen=True, eq=False)
class Site:
    """What is served, on what, and how well the controller knows it.

    Attributes:
        cost: the plant's truth.
        believed: the controller's table, at the same clocks.
        limits: of the engine; a policy may start it with another max_batched_tokens.
        kv_blocks: KV-cache blocks of the replica.
        slo: what every request is promised that brings no SLO of its own.
        classes: what requests of a class are promised instead, by its name.
        prefix_cache: prompts that begin alike are computed once, where the trace says which do.
        noise: standard deviation of a step's time, as a share of it.
        seed: of the noise.
        front_end_ms: from a request's sending to its place in the engine's queue.
        concurrency: of a closed loop: so many requests in flight, each that ends sends the next,
            whatever the trace's arrivals say. None = requests arrive when they arrive.
    """

    cost: StepCost
    believed: StepCost
    limits: EngineLimits
    kv_blocks: int
    slo: Slo
    noise: float = 0.0
    seed: int = 0
    front_end_ms: float = 0.0
    concurrency: int | None = None
    prefix_cache: bool = True
    classes: Mapping[str, Slo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.array_equal(self.cost.clocks_mhz, self.believed.clocks_mhz):
            raise ReplayError("plant and controller must be served at the same clocks")
        for cost in (self.cost, self.believed):
            if not np.isfinite(cost.idle_power_w).all():
                raise ReplayError(
                    "the table does not say what a waiting GPU draws",
                    hint="--idle-power 80W takes one value for all clocks",
                )


def site_of(
    table: PerfTable, plant_table: PerfTable, options: ReplayOptions
) -> tuple[Site, tuple[str, ...]]:
    """The site, and every assumption it rests on in a few words each.

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
    room = kv_room_of(table)
    room_blocks = NO_LIMIT_BLOCKS if room is None else room // _BLOCK_TOKENS
    waiting: list[str] = []
    true = smoothed(plant_table) if options.smooth else plant_table
    costs = [
        with_waiting_power(StepCost.from_table(one, clocks), one, options.idle_power_w, say)
        for one, say in ((true, waiting.append), (table, _nobody))
    ]
    site = Site(
        cost=costs[0],
        believed=costs[1],
        limits=EngineLimits(
            pp=table.pp,
            max_num_seqs=options.max_num_seqs,
            host_gap_ms=options.host_gap_ms,
            clock_delay_ms=options.clock_delay_ms,
        ),
        kv_blocks=options.kv_blocks or room_blocks,
        slo=options.slo,
        noise=options.noise,
        seed=options.seed,
        front_end_ms=options.front_end_ms,
        concurrency=options.concurrency,
        prefix_cache=options.prefix_cache,
        classes=dict(options.classes),
    )
    where = "" if options.kv_blocks else f" that {table.device} leaves beside the weights"
    memory = f"{site.kv_blocks:,} KV blocks{where}"
    if site.kv_blocks == NO_LIMIT_BLOCKS:
        memory = "unlimited KV memory"
    another = plant_table is not table
    return site, _assumed(options, another=another, waiting=waiting[0], memory=memory)


def _nobody(text: str) -> None:
    """Both tables' waiting power comes from one source: it is said once."""


def _assumed(
    options: ReplayOptions, *, another: bool, waiting: str, memory: str
) -> tuple[str, ...]:
    table = "another table than the policies'" if another else "the table"
    noise = f"{100 * options.noise:g} % step noise, seed {options.seed}"
    return (
        f"{table} smoothed along the clock" if options.smooth else f"{table} as it is",
        noise if options.noise else "no step noise",
        waiting,
        f"host gap {options.host_gap_ms:g} ms",
        f"front end {options.front_end_ms:g} ms",
        f"clock delay {options.clock_delay_ms:g} ms",
        memory,
        *(() if options.concurrency is None else (_loop_words(options.concurrency),)),
    )


def _loop_words(concurrency: int) -> str:
    return f"a closed loop of {concurrency} requests, arrivals not used"
