"""What a replay says: energy, TTFT, TBT, attainment, and how the knobs were used.

Percentiles are exact: every token's gap is kept until they are taken.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import SAME_MS, EngineLimits, StepShape, chunk_pairs
from beamprof.replay.goodput import Promises, promises
from beamprof.replay.played import Floats, Played
from beamprof.replay.promised import promised_slos
from beamprof.replay.site import Site
from beamprof.traces.prefixes import prefix_reuse
from beamprof.traces.trace import Trace

J_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds: mean, exact percentiles, largest. All 0 where nothing was measured."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, values: Floats) -> "Spread":
        """The spread of ``values``, any shape."""
        if values.size == 0:
            return cls(0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return cls(float(values.mean()), p50, p90, p99, float(values.max()))


@dataclass(frozen=True, slots=True)
class Attainment:
    """Shares, 0 to 1, of what was kept of each promise; goodput is the share that kept both.

    Attributes:
        ttft: of requests whose first token came in time.
        ttft_possible: the same among the requests that any policy could have served in time:
            those whose prompt, alone on an idle engine at the best setting, is in time.
        stream: of requests for which what was promised of the other tokens was kept.
        tbt: of tokens after the first whose gap was within their SLO's time per token. It flatters:
            a request of 100 tokens is lost by one.
        impossible: requests that no policy could have served in time.
    """

    ttft: float
    ttft_possible: float
    stream: float
    tbt: float
    impossible: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """One policy on one trace.

    Attributes:
        policy: its name.
        goodput: share of requests with every promise kept, 0 to 1.
        energy_j: of all GPUs: every pass, and idling until the trace's stated duration.
        prefill_energy_j, decode_energy_j: of steps that carry prefill, and of the others.
        idle_energy_j: of GPU-time that no pass covers.
        energy_kwh: the same as energy_j.
        mean_power_w: energy over the trace's stated duration, see Played: a policy that lets its
            last answers take longer draws no less for it.
        j_per_token: per output token; j_per_request: per request.
        ttft, tbt: spreads over requests, and over tokens after the first.
        request: from a request's sending to its last token, over requests.
        tokens_per_s_user: 1 over the mean gap: how fast a reader sees an answer stream; 0 where
            no answer has a second token.
        attainment: shares kept.
        busy: share of stage-time that a pass covers.
        steps: engine steps; steps_per_s: per second of the trace.
        clock_share, chunk_share, microbatches_share, pace_share: share of the trace's time that
            steps were issued under each value of the knob (pace in ms).
        clock_changes: how often another clock was asked for.
        preemptions: requests that lost their KV blocks.
        cached_tokens: prompt tokens out of the prefix cache; cached_share: of all.
        decisions: how often the policy was asked; decision_mean_us: what one took.
        undecided: how often it found no answer, and the knobs stayed.
        wall_s: the time that the replay took.
    """

    policy: str
    goodput: float
    energy_j: float
    prefill_energy_j: float
    decode_energy_j: float
    idle_energy_j: float
    energy_kwh: float
    mean_power_w: float
    j_per_token: float
    j_per_request: float
    ttft: Spread
    tbt: Spread
    request: Spread
    tokens_per_s_user: float
    attainment: Attainment
    busy: float
    steps: int
    steps_per_s: float
    clock_share: dict[int, float]
    chunk_share: dict[int, float]
    microbatches_share: dict[int, float]
    pace_share: dict[int, float]
    clock_changes: int
    preemptions: int
    cached_tokens: int
    cached_share: float
    decisions: int
    decision_mean_us: float
    wall_s: float
    undecided: int = 0


def measure(played: Played, possible: NDArray[np.bool_]) -> Metrics:
    """All numbers of one replay.

    Args:
        played: the replay.
        possible: (R,) whether any policy could have served the request in time.
    """
    steps = played.steps
    step_j = steps["energy_j"]
    prefill = steps["prefill_tokens"] > 0
    end_s = played.end_ms / 1e3
    tokens = int(played.output_tokens.sum())
    tbt = Spread.of(played.tokens["gap_ms"])
    kept = promises(played)
    return Metrics(
        policy=played.policy,
        goodput=kept.goodput,
        energy_j=played.energy_j,
        prefill_energy_j=float(step_j[prefill].sum()),
        decode_energy_j=float(step_j[~prefill].sum()),
        idle_energy_j=played.idle_energy_j,
        energy_kwh=played.energy_j / J_PER_KWH,
        mean_power_w=played.mean_power_w,
        j_per_token=played.energy_j / tokens,
        j_per_request=played.energy_j / len(played.arrival_ms),
        ttft=Spread.of(ttft_ms(played)),
        tbt=tbt,
        request=Spread.of(played.finish_ms - played.arrival_ms),
        tokens_per_s_user=1e3 / tbt.mean_ms if tbt.mean_ms else 0.0,
        attainment=attainment(played, kept, possible),
        busy=played.busy_ms / played.pp / played.end_ms,
        steps=len(steps),
        steps_per_s=len(steps) / end_s,
        clock_share=_share_of_time(played, "clock"),
        chunk_share=_share_of_time(played, "chunk_tokens"),
        microbatches_share=_share_of_time(played, "microbatches"),
        pace_share=_share_of_time(played, "pace_ms"),
        clock_changes=played.clock_changes,
        preemptions=played.preemptions,
        cached_tokens=int(played.cached_tokens.sum()),
        cached_share=float(played.cached_tokens.sum() / played.input_tokens.sum()),
        decisions=played.decisions,
        decision_mean_us=played.decision_s / max(1, played.decisions) * 1e6,
        wall_s=played.wall_s,
        undecided=played.undecided,
    )


def ttft_ms(played: Played) -> Floats:
    """(R,) from arrival to first token."""
    return played.first_token_ms - played.arrival_ms


def attainment(played: Played, kept: Promises, possible: NDArray[np.bool_]) -> Attainment:
    """Which promises were kept, each by itself."""
    token_ms = played.promised["token_slo_ms"][played.tokens["request"]]
    late = played.tokens["gap_ms"] > token_ms + SAME_MS
    return Attainment(
        ttft=float(kept.first.mean()),
        ttft_possible=float(kept.first[possible].mean()) if possible.any() else 0.0,
        stream=float(kept.stream.mean()),
        tbt=1.0 - float(late.mean()) if len(late) else 1.0,
        impossible=int((~possible).sum()),
    )


def servable_in_time(trace: Trace, site: Site, largest_step: int) -> NDArray[np.bool_]:
    """(R,) whether a prompt alone on an idle engine could have its first token in time.

    At the fastest clock and the best chunk size up to ``largest_step``. Optimistic: what other
    requests take away in a burst is not counted, and a prompt's hit in an endless prefix cache
    costs nothing.
    """
    sizes = [int(edge) for edge in site.cost.edges_tokens if 1 <= edge < largest_step]
    chunks = (largest_step, *reversed(sizes))  # the likeliest to be in time first
    tokens = new_tokens(trace, site)
    ttft_ms = promised_slos(trace, site.slo, site.classes)["ttft_slo_ms"] - site.front_end_ms
    fits = np.zeros(trace.requests, dtype=np.bool_)
    for limit_ms in np.unique(ttft_ms).tolist():
        mine = ttft_ms == limit_ms
        # A longer prompt takes longer: look for the longest that is in time, by halving.
        in_time, too_long = 0, int(tokens[mine].max()) + 1
        while too_long - in_time > 1:
            middle = (in_time + too_long) // 2
            if any(
                _alone_in_time(middle, chunk, limit_ms + SAME_MS, site.cost, site.limits)
                for chunk in chunks
            ):
                in_time = middle
            else:
                too_long = middle
        fits[mine] = tokens[mine] <= in_time
    return fits


def new_tokens(trace: Trace, site: Site) -> NDArray[np.int64]:
    """(R,) prompt tokens that have to be computed whatever an endless prefix cache holds."""
    reuse = prefix_reuse(trace, site.limits.block_size) if site.prefix_cache else None
    return trace.input_tokens - (0 if reuse is None else reuse.cached_tokens)


def lone_gap_ms(site: Site) -> float:
    """Between two tokens of a request that is alone on the engine, at its fastest clock."""
    limits = site.limits
    pass_ms = float(site.cost.latency_ms(StepShape(decode_requests=1)).min())
    return limits.pp * (pass_ms + limits.host_gap_ms) + (limits.pp - 1) * limits.transfer_ms


def _alone_in_time(
    prompt: int, chunk: int, limit_ms: float, cost: StepCost, limits: EngineLimits
) -> bool:
    free_ms = [0.0] * limits.pp
    for computed in range(0, prompt, chunk):
        tokens = min(chunk, prompt - computed)
        step = StepShape(tokens, computed, 0, 0, chunk_pairs(tokens, computed))
        pass_ms = float(cost.latency_ms(step).min()) + limits.host_gap_ms
        ready_ms = 0.0
        for stage in range(limits.pp):
            free_ms[stage] = max(ready_ms, free_ms[stage]) + pass_ms
            ready_ms = free_ms[stage] + limits.transfer_ms
        if free_ms[-1] > limit_ms:
            return False
    return True


def _share_of_time(played: Played, column: str) -> dict[int, float]:
    """Each value holds from the issue of its step to the issue of the next."""
    if len(played.steps) == 0:
        return {}
    issued_ms = played.steps["issued_ms"]
    lasts_ms = np.diff(issued_ms, append=max(played.end_ms, issued_ms[-1]))
    lasts_ms[0] += issued_ms[0]
    values, at = np.unique(played.steps[column].round().astype(np.int64), return_inverse=True)
    shares = np.bincount(at, weights=lasts_ms) / lasts_ms.sum()
    return dict(zip(values.tolist(), shares.tolist(), strict=True))
