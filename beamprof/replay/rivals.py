"""The best that a person could do without BEAM, found with hindsight on the trace itself.

    vanilla:best   the chunk with which vLLM at its highest clock keeps most requests' promises
    static:best    the cheapest clock and chunk that keep as many, within 0.1 points
    max-q          the cheapest power limit that keeps as many, with vanilla:best's chunk

None looks at an SLO while it runs, so one replay of a clock and a chunk answers for any
number of SLOs.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.replay.goodput import promises
from beamprof.replay.plant import play
from beamprof.replay.policies.power_limit import PowerLimit, highest_pass_w
from beamprof.replay.policies.registry import MAX_Q, VANILLA_BEST
from beamprof.replay.policies.static import Static
from beamprof.replay.promised import promised_slos
from beamprof.replay.site import Site
from beamprof.traces.trace import Trace

# vLLM's max_num_batched_tokens: BEAM's authors' 256, its own default 2048, and what lies around.
CHUNKS = (128, 256, 512, 1024, 2048)
# Of what the GPUs draw at most.
LIMIT_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
AS_GOOD = 0.001
# Where not even one in two requests is served as promised, energy is not the question.
KEPT_AT_ALL = 0.5
# Goodput wavers from clock to clock with the noise: so far below what is asked for, a lower
# clock is not looked at any more.
_HOPELESS = 0.02
_AT_LEAST = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """One clock and chunk for the whole trace, and what came of it for one SLO."""

    clock_mhz: int
    chunk_tokens: int
    energy_j: float
    goodput: float

    def __str__(self) -> str:
        return f"{self.clock_mhz} MHz, chunk {self.chunk_tokens:,}"

    def policy(self, name: str) -> Static:
        """It, to be played again."""
        return Static(name, self.clock_mhz, self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Limit:
    """One power limit of every GPU for the whole trace."""

    limit_w: float
    tp: int
    chunk_tokens: int

    def __str__(self) -> str:
        return f"{self.limit_w:.0f} W a GPU, chunk {self.chunk_tokens:,}"

    def policy(self, name: str) -> PowerLimit:
        """It, to be played."""
        return PowerLimit(name, self.limit_w, self.tp, self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Rivals:
    """The two for one SLO; ``plays`` is how many settings were looked at."""

    vanilla: Setting
    static: Setting
    plays: int


class Hindsight:
    """Settings by their names in registry.HINDSIGHT, each looked for when it is asked for.

    Args:
        trace: played for it.
        site: where, and for what SLO.
        table: whose GPUs a power limit is of.
    """

    def __init__(self, trace: Trace, site: Site, table: PerfTable) -> None:
        self._trace, self._site, self._table = trace, site, table

    def named(self, name: str) -> Setting | Limit:
        """The setting."""
        if name == MAX_Q:
            return self._limit
        return self._rivals.vanilla if name == VANILLA_BEST else self._rivals.static

    @functools.cached_property
    def _rivals(self) -> Rivals:
        return find_rivals(self._trace, self._site, [self._site.slo])[0]

    @functools.cached_property
    def _limit(self) -> Limit:
        return find_limit(self._trace, self._site, self._table, self._rivals.vanilla)


def find_limit(trace: Trace, site: Site, table: PerfTable, vanilla: Setting) -> Limit:
    """The cheapest of LIMIT_SHARES that keeps as much as ``vanilla``, at its chunk."""
    most_w = highest_pass_w(table)
    best, least_j = Limit(most_w, table.tp, vanilla.chunk_tokens), math.inf
    for share in LIMIT_SHARES:
        limit = Limit(share * most_w, table.tp, vanilla.chunk_tokens)
        played = play(trace, limit.policy("trial"), site)
        goodput = promises(played).goodput
        if goodput >= vanilla.goodput - AS_GOOD and played.energy_j < least_j:
            best, least_j = limit, played.energy_j
    return best


def find_rivals(
    trace: Trace,
    site: Site,
    slos: Sequence[Slo],
    chunks: Sequence[int] = CHUNKS,
) -> tuple[Rivals, ...]:
    """For each of ``slos``.

    Vanilla at every chunk, then for each chunk clocks downwards for as long as any SLO may still
    be kept as well, and not past the point from which energy only rises.
    """
    search = _Search(trace, site, slos)
    clocks = [int(clock) for clock in site.cost.clocks_mhz[::-1]]
    for chunk in chunks:
        search.play(clocks[0], chunk)
    best = [search.most(at, clocks[0]) for at in range(len(slos))]
    for chunk in chunks:
        below, rising, least_j = 0, 0, float("inf")
        for clock in clocks:
            found = search.play(clock, chunk)
            hopeless = all(
                one.goodput < vanilla.goodput - _HOPELESS
                for one, vanilla in zip(found, best, strict=True)
            )
            below = below + 1 if hopeless else 0
            rising = rising + 1 if found[0].energy_j > least_j else 0
            least_j = min(least_j, found[0].energy_j)
            if below >= _AT_LEAST or rising > _AT_LEAST:
                break
    return tuple(
        Rivals(vanilla, search.least(at, vanilla.goodput - AS_GOOD), len(search.found))
        for at, vanilla in enumerate(best)
    )


class _Search:
    """Settings by clock and chunk, each with one answer per SLO."""

    def __init__(self, trace: Trace, site: Site, slos: Sequence[Slo]) -> None:
        self._trace, self._site = trace, site
        self._promised = [promised_slos(trace, slo, site.classes) for slo in slos]
        self.found: dict[tuple[int, int], tuple[Setting, ...]] = {}

    def play(self, clock_mhz: int, chunk_tokens: int) -> tuple[Setting, ...]:
        key = (clock_mhz, chunk_tokens)
        if key not in self.found:
            policy = Static("trial", clock_mhz, chunk_tokens)
            played = play(self._trace, policy, self._site)
            self.found[key] = tuple(
                Setting(clock_mhz, chunk_tokens, played.energy_j, promises(played, one).goodput)
                for one in self._promised
            )
        return self.found[key]

    def most(self, at: int, clock_mhz: int) -> Setting:
        """The best goodput at one clock; of equal ones the cheapest."""
        settings = [one[at] for (clock, _), one in self.found.items() if clock == clock_mhz]
        return max(settings, key=lambda one: (one.goodput, -one.energy_j))

    def least(self, at: int, goodput: float) -> Setting:
        """The cheapest that keeps so much."""
        settings = [one[at] for one in self.found.values() if one[at].goodput >= goodput]
        return min(settings, key=lambda one: one.energy_j)
