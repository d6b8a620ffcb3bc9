"""What may be done to a trace before it is replayed; each is counted in its record."""

import numpy as np
import polars as pl

from beamprof.errors import TraceError
from beamprof.traces.arrivals import seeded
from beamprof.traces.policies import OverLimit
from beamprof.traces.trace import TIMES_S, Trace


def window(trace: Trace, start_s: float, end_s: float) -> Trace:
    """The requests in [start_s, end_s), timed from ``start_s``; lasts ``end_s - start_s``.

    A window that reaches the trace's end includes an arrival at that very moment.

    Raises:
        TraceError: the window is empty, or leaves the trace, or holds no requests.
    """
    if not 0 <= start_s < end_s <= trace.duration_s:
        raise TraceError(
            f"a window lies inside the trace's {trace.duration_s:g} s and ends after it starts",
            cause=f"asked for {start_s:g} s to {end_s:g} s",
            hint=f"for example --window 0s:{trace.duration_s:g}s",
        )
    arrival = pl.col("arrival_s")
    before_end = arrival <= end_s if end_s >= trace.duration_s else arrival < end_s
    times = [name for name in TIMES_S if name in trace.frame.columns]
    inside = trace.frame.filter((arrival >= start_s) & before_end).with_columns(
        pl.col(times) - start_s
    )
    # By rounding, the last difference can lie a bit above the difference of the ends.
    duration_s = max([end_s - start_s, *inside["arrival_s"].tail(1)])
    return trace.transformed(
        inside,
        "window",
        {"start_s": start_s, "end_s": end_s},
        {"outside_window": trace.requests - inside.height},
        duration_s=duration_s,
    )


def cap_total_tokens(
    trace: Trace, max_total_tokens: int, policy: OverLimit, flag: str = "--max-total-tokens"
) -> Trace:
    """Hold input + output of every request to ``max_total_tokens``.

    ``truncate`` shortens the prompt, as a client does that trims its history, and the output
    only where one prompt token is not enough; prefix hashes lose the blocks that are gone.
    ``flag`` is what the limit was asked for with, for the hint.

    Raises:
        TraceError: a limit under 2; a longer request with policy ``error``; none left.
    """
    if max_total_tokens < 2:
        raise TraceError(
            f"a request has 1 prompt and 1 output token or more: a limit of {max_total_tokens} "
            "holds none"
        )
    total = pl.col("input_tokens") + pl.col("output_tokens")
    over = trace.frame.filter(total > max_total_tokens)
    parameters = {"max_total_tokens": max_total_tokens, "policy": str(policy)}
    if policy is OverLimit.ERROR and not over.is_empty():
        row = over.row(0, named=True)
        raise TraceError(
            f"{over.height} of {trace.requests} requests exceed {max_total_tokens} tokens",
            cause=f"request {row['request_id']}: {row['input_tokens']} input + "
            f"{row['output_tokens']} output",
            hint=f"--over-limit drop or truncate, or another {flag}",
        )
    if policy is OverLimit.TRUNCATE:
        cut = _truncated(trace, max_total_tokens)
        lost = {
            f"truncated_{name}": int((trace.frame[name] - cut[name]).sum())
            for name in ("input_tokens", "output_tokens")
        }
        counts = {"truncated_requests": over.height, **lost}
        return trace.transformed(cut, "max_total_tokens", parameters, counts)
    kept = trace.frame.filter(total <= max_total_tokens)
    counts = {"over_max_total_tokens": over.height}
    return trace.transformed(kept, "max_total_tokens", parameters, counts)


def _truncated(trace: Trace, limit: int) -> pl.DataFrame:
    over = pl.col("input_tokens") + pl.col("output_tokens") > limit
    observed = [name for name in TIMES_S if name in trace.frame.columns and name != "arrival_s"]
    frame = (
        trace.frame.with_columns(pl.when(~over).then(pl.col(observed))) if observed else trace.frame
    )
    frame = frame.with_columns(pl.col("output_tokens").clip(upper_bound=limit - 1))
    room = limit - pl.col("output_tokens")
    frame = frame.with_columns(pl.min_horizontal("input_tokens", room).alias("input_tokens"))
    if "prefix_hashes" not in frame.columns or not trace.prefix_block_tokens:
        return frame
    blocks = (pl.col("input_tokens") / trace.prefix_block_tokens).ceil().cast(pl.Int64)
    return frame.with_columns(pl.col("prefix_hashes").list.head(blocks))


def thin_to_tokens_per_s(trace: Trace, target_tps: float, seed: int) -> Trace:
    """Keep a random part of the requests that carries ``target_tps``, in + out tokens per second.

    Every request draws a mark; those with the smallest marks stay, as many as come nearest to
    the target. So a lower target keeps a subset of a higher one's requests, and bursts stay
    bursts. Bursts of one client lose as much as all others.

    Raises:
        TraceError: a target that is not above 0, or above what the trace carries.
    """
    tokens = trace.input_tokens + trace.output_tokens
    carried_tps = float(tokens.sum()) / trace.duration_s
    if not 0 < target_tps <= carried_tps:
        raise TraceError(
            f"--target-tps {target_tps:g}: thinning can only lower the {carried_tps:.1f} tokens/s "
            "that the trace carries",
            hint=f"give a target between 0 and {carried_tps:.0f}, or generate a denser trace",
        )
    order = np.argsort(seeded(seed).random(trace.requests), kind="stable")
    carried = np.cumsum(tokens[order])
    kept = int(np.argmin(np.abs(carried - target_tps * trace.duration_s))) + 1
    chosen = np.zeros(trace.requests, dtype=bool)
    chosen[order[:kept]] = True
    return trace.transformed(
        trace.frame.filter(pl.Series(chosen)),
        "target_tps",
        {"target_tps": target_tps, "seed": seed},
        {"thinned_out": trace.requests - kept},
    )
