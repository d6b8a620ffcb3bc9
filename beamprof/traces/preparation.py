"""From requests to the trace that a replay takes: window, limit, load, in that order; then store.

These are the public functions behind `beam trace import`, `generate` and `stats`.
"""

from dataclasses import dataclass
from pathlib import Path

from beamprof.traces.policies import OverLimit
from beamprof.traces.statistics import TraceStatistics, trace_statistics
from beamprof.traces.trace import Trace
from beamprof.traces.trace_file import save_trace
from beamprof.traces.transforms import cap_total_tokens, thin_to_tokens_per_s, window


@dataclass(frozen=True, slots=True)
class Preparation:
    """What to do to a trace; None leaves a step out.

    Attributes:
        window_s: start and end, in seconds of the trace; an end of None is the trace's.
        max_total_tokens: the most input + output tokens of one request.
        over_limit: what happens to longer ones.
        target_tps: mean input + output tokens per second to thin down to.
        seed: of the thinning.
    """

    window_s: tuple[float, float | None] | None = None
    max_total_tokens: int | None = None
    over_limit: OverLimit = OverLimit.ERROR
    target_tps: float | None = None
    seed: int = 0

    def apply(self, trace: Trace) -> Trace:
        """The trace after every step asked for.

        Raises:
            TraceError: as the transforms.
        """
        if self.window_s is not None:
            start_s, end_s = self.window_s
            trace = window(trace, start_s, trace.duration_s if end_s is None else end_s)
        if self.max_total_tokens is not None:
            trace = cap_total_tokens(trace, self.max_total_tokens, self.over_limit)
        if self.target_tps is not None:
            trace = thin_to_tokens_per_s(trace, self.target_tps, self.seed)
        return trace


@dataclass(frozen=True, slots=True)
class TraceReport:
    """A trace and its numbers; ``paths`` are the files written, if any."""

    trace: Trace
    statistics: TraceStatistics
    paths: tuple[Path, ...] = ()


def report_trace(trace: Trace) -> TraceReport:
    """The numbers of a trace."""
    return TraceReport(trace, trace_statistics(trace))


def store_trace(trace: Trace, path: Path, *, force: bool = False) -> TraceReport:
    """Write a trace with its sidecar, and give its numbers.

    Raises:
        OutputError: as save_trace.
    """
    return TraceReport(trace, trace_statistics(trace), save_trace(trace, path, force=force))
