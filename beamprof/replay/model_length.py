"""Requests that no server of the table's model takes: more tokens than its context."""

from beam_runtime.table.perf_table import PerfTable
from beamprof.replay.options import ReplayOptions
from beamprof.tables.model_length import longest_request
from beamprof.traces.trace import Trace


def beyond_the_model(table: PerfTable, trace: Trace, options: ReplayOptions) -> str:
    """A line where requests are longer than the model takes; empty where none is.

    Where somebody says a length (``max_model_len``) it is theirs that counts: a context can be
    made longer.
    """
    most = longest_request(table)
    if most is None or options.max_model_len is not None:
        return ""
    longer = int((trace.input_tokens + trace.output_tokens > most).sum())
    if not longer:
        return ""
    return (
        f"{longer:,} of {trace.requests:,} requests have more than the {most:,} tokens that "
        f"{table.model} takes, and are played all the same: --max-model-len {most} "
        "--over-limit drop leaves them out"
    )
