"""What each request of a trace was promised: the replay's SLO, or its own where it brings one."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_runtime.emulator.promises import promise
from beam_runtime.emulator.state import REQUEST, Records, records
from beam_runtime.types import Slo
from beamprof.errors import ReplayError
from beamprof.traces.trace import SLOS_MS, Trace

_STREAM = {"tbt_ms", "tpot_ms", "e2e_ms"}


def promised_slos(trace: Trace, slo: Slo) -> Records:
    """(R,) of REQUEST, its promises filled in.

    A request's own TTFT stands in for the replay's, and its own promise of the stream for the
    replay's, of whatever kind that is.

    Raises:
        ReplayError: a request brings two promises of its stream.
    """
    rows = records(trace.requests, REQUEST)
    promise(rows, slo)
    for own, mine in _groups(trace):
        one = records(1, REQUEST)
        promise(one, slo.revised(**own))  # type: ignore[arg-type]  # milliseconds, all of them
        rows[mine] = one[0]
    return rows


def own_slos(trace: Trace) -> int:
    """How many requests bring a promise of their own."""
    columns = [name for name in SLOS_MS if name in trace.frame.columns]
    if not columns:
        return 0
    return int(trace.frame.select(pl.any_horizontal(pl.col(columns).is_not_null()).sum()).item())


def _groups(trace: Trace) -> list[tuple[dict[str, float], NDArray[np.int64]]]:
    """Requests by what they bring."""
    columns = [name for name in SLOS_MS if name in trace.frame.columns]
    if not columns:
        return []
    numbered = trace.frame.select(columns).with_row_index("row")
    found = []
    for key, rows in numbered.group_by(columns, maintain_order=True):
        own = {
            name.removeprefix("slo_"): float(value)
            for name, value in zip(columns, key, strict=True)
            if value is not None
        }
        if len(_STREAM & own.keys()) > 1:
            first = int(rows["row"][0])
            raise ReplayError(
                "a request is promised one thing of its stream",
                cause=f"request {trace.frame['request_id'][first]} brings "
                f"{' and '.join(f'slo_{name}' for name in sorted(_STREAM & own.keys()))}",
                hint="leave one of slo_tbt_ms, slo_tpot_ms and slo_e2e_ms empty in each row",
            )
        if own:
            found.append((own, rows["row"].to_numpy().astype(np.int64)))
    return found
