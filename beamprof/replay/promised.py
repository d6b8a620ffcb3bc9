"""What each request of a trace was promised: the replay's SLO, its class's, or its own.

A request's class is the trace's column slo_class; what a class is promised is said beside the
replay's own SLO.
"""

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_runtime.emulator.promises import promise, promised
from beam_runtime.emulator.state import REQUEST, Records, records
from beam_runtime.types import Slo
from beamprof.errors import ReplayError
from beamprof.traces.trace import SLOS_MS, Trace

_STREAM = {"tbt_ms", "tpot_ms", "e2e_ms"}
CLASS = "slo_class"


def promised_slos(
    trace: Trace,
    slo: Slo,
    classes: Mapping[str, Slo] | None = None,
    served: Callable[[Slo], Slo] = lambda slo: slo,
) -> Records:
    """(R,) of REQUEST, its promises filled in, each as it is ``served``.

    A class's SLO stands in for the replay's. A request's own TTFT stands in for either's, and its
    own promise of the stream too, of whatever kind that is.

    Raises:
        ReplayError: a request brings two promises of its stream.
    """
    rows = records(trace.requests, REQUEST)
    promise(rows, served(slo))
    for name, own, mine in _groups(trace, classes or {}):
        one = records(1, REQUEST)
        base = slo if name is None else (classes or {})[name]
        promise(one, served(base.revised(**own)))  # type: ignore[arg-type]  # milliseconds
        rows[mine] = one[0]
    return rows


def distinct_slos(promises: Records) -> tuple[Slo, ...]:
    """Each promise once, of records as promised_slos gives them."""
    columns = ["ttft_slo_ms", "stream_slo_ms", "slo_kind"]
    _, first = np.unique(promises[columns], return_index=True)
    return tuple(promised(one) for one in promises[first])


def own_slos(trace: Trace) -> int:
    """How many requests bring a promise of their own."""
    columns = [name for name in SLOS_MS if name in trace.frame.columns]
    if not columns:
        return 0
    return int(trace.frame.select(pl.any_horizontal(pl.col(columns).is_not_null()).sum()).item())


def check_classes(trace: Trace, classes: Mapping[str, Slo]) -> None:
    """Refuse an SLO for a class that no request is of.

    Raises:
        ReplayError: the hint lists the classes that there are.
    """
    there = class_counts(trace)
    unknown = [name for name in classes if name not in there]
    if unknown:
        raise ReplayError(
            f"no request of this trace is of class {', '.join(unknown)}",
            cause=f"its column slo_class has {', '.join(there)}" if there
            else "it has no column slo_class",
            hint="--slo-class NAME=TTFT/TBT names one of the trace's classes" if there
            else "leave --slo-class out, or add the column to the trace",
        )  # fmt: skip


def class_counts(trace: Trace) -> dict[str, int]:
    """Requests of each class of the trace, by name; those of none left out."""
    if CLASS not in trace.frame.columns:
        return {}
    counted = trace.frame[CLASS].drop_nulls().value_counts().sort(CLASS)
    return {str(name): int(count) for name, count in counted.iter_rows()}


def _groups(
    trace: Trace, classes: Mapping[str, Slo]
) -> list[tuple[str | None, dict[str, float], NDArray[np.int64]]]:
    """Requests by their class, where that has an SLO, and by what they bring."""
    columns = [name for name in SLOS_MS if name in trace.frame.columns]
    known = classes and CLASS in trace.frame.columns
    if not columns and not known:
        return []
    label = pl.col(CLASS) if known else pl.lit(None, dtype=pl.String)
    # A class without an SLO of its own is promised what the replay promises.
    label = pl.when(label.is_in(list(classes))).then(label).alias(CLASS)
    numbered = trace.frame.select(label, *columns).with_row_index("row")
    found: list[tuple[str | None, dict[str, float], NDArray[np.int64]]] = []
    for (name, *values), rows in numbered.group_by(CLASS, *columns, maintain_order=True):
        own = {
            column.removeprefix("slo_"): float(value)
            for column, value in zip(columns, values, strict=True)
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
        if own or name is not None:
            found.append(
                (None if name is None else str(name), own, rows["row"].to_numpy().astype(np.int64))
            )
    return found
