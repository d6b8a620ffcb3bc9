"""How far apart two tables are: table A judged at the rows of table B.

Where A holds the very row, the two are compared as they stand; elsewhere A's StepCost answers,
between A's clocks and token counts. B's rows that lie outside A are skipped and counted.

    error = A / B - 1;  MAPE = mean |error|;  bias = mean error, positive where A says more
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import CoverageError, TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import StepShape
from beamprof.errors import AnswerIsNo
from beamprof.tables.grid import forward_steps
from beamprof.tables.leave_one_out import RelativeError

# What of a model's shape a stage's pass depends on: llama3-70b and llama3.3-70b are one here.
SHAPE_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "qkv_bias",
    "qk_norm",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A against B.

    Attributes:
        overall: over every row that could be compared.
        shared: over rows that both tables hold; None where there are none.
        interpolated: over rows that A's StepCost answered; None where there are none.
        skipped_rows: rows of B outside A.
        by_tokens: new tokens of the step -> error, ascending.
        by_clock: MHz -> error, ascending.
        differences: what else differs between the tables, in words.
    """

    overall: RelativeError
    shared: RelativeError | None
    interpolated: RelativeError | None
    skipped_rows: int
    by_tokens: dict[int, RelativeError]
    by_clock: dict[int, RelativeError]
    differences: tuple[str, ...]


def compare_tables(
    a: PerfTable | str | Path, b: PerfTable | str | Path, *, force: bool = False
) -> Comparison:
    """Judge A at B's rows.

    Args:
        a: the table in question, e.g. modelled.
        b: the reference, e.g. measured.
        force: compare tables of different models or layouts all the same.

    Raises:
        TableError: the tables are of different model shapes, tp or pp.
        AnswerIsNo: nothing of B lies inside A.
    """
    a, b = PerfTable.of(a), PerfTable.of(b)
    differences = _differences(a, b)
    if differences and not force:
        raise TableError(
            f"the tables are of different things: {', '.join(differences)}",
            cause=f"{a.model} tp{a.tp} pp{a.pp} against {b.model} tp{b.tp} pp{b.pp}",
            hint="compare tables of one layout, or insist with --force",
        )
    if a.device != b.device:
        differences.append(f"device {a.device} against {b.device}")
    rows = b.rows(RowKind.FORWARD)
    steps = list(forward_steps(rows))
    clocks = rows["clock_mhz"]
    forecast, shared = _answers(a, steps, clocks)
    latency = forecast[:, 0] / rows["latency_ms"] - 1
    energy = forecast[:, 1] / rows["energy_j"] - 1
    tokens = np.array([step.tokens for step in steps])

    def over(mask: NDArray[np.bool_]) -> RelativeError | None:
        return RelativeError.of(latency[mask], energy[mask])

    everything = over(np.ones(len(steps), dtype=bool))
    if everything is None:
        raise AnswerIsNo(
            f"nothing to compare: none of the {len(steps)} rows lies inside the first table",
            cause=f"it covers {a.clocks_mhz[0]} to {a.clocks_mhz[-1]} MHz",
            hint="profile the same clocks and token counts, or swap the tables",
        )
    return Comparison(
        overall=everything,
        shared=over(shared),
        interpolated=over(~shared),
        skipped_rows=len(steps) - everything.rows,
        by_tokens=_split(tokens, over),
        by_clock=_split(clocks, over),
        differences=tuple(differences),
    )


def _answers(
    a: PerfTable, steps: list[StepShape], clocks_mhz: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(rows, 2) latency and energy of A for each row, NaN outside A; (rows,) which A holds."""
    own = _rows_by_key(a)
    answers = np.full((len(steps), 2), np.nan)
    shared = np.zeros(len(steps), dtype=bool)
    low, high = a.clocks_mhz[0], a.clocks_mhz[-1]
    inside = [int(clock) for clock in np.unique(clocks_mhz) if low <= clock <= high]
    try:
        cost = StepCost.from_table(a, inside) if inside else None
    except TableError:  # too small to interpolate: only rows that both hold can be compared
        cost = None
    for row, (step, clock) in enumerate(zip(steps, clocks_mhz.tolist(), strict=True)):
        if (step, clock) in own:
            answers[row], shared[row] = own[step, clock], True
        elif cost is not None and clock in inside:
            try:
                forecast = cost.predict(step, extrapolate=False)
            except CoverageError:
                continue
            at = int(np.searchsorted(forecast.clocks_mhz, clock))
            answers[row] = forecast.latency_ms[at], forecast.energy_j[at]
    return answers, shared


def _rows_by_key(table: PerfTable) -> dict[tuple[StepShape, int], tuple[float, float]]:
    rows = table.rows(RowKind.FORWARD)
    keys = zip(forward_steps(rows), rows["clock_mhz"].tolist(), strict=True)
    values = zip(rows["latency_ms"].tolist(), rows["energy_j"].tolist(), strict=True)
    return dict(zip(keys, values, strict=True))


def _split(
    labels: NDArray[np.int64], over: Callable[[NDArray[np.bool_]], RelativeError | None]
) -> dict[int, RelativeError]:
    found = {int(label): over(labels == label) for label in np.unique(labels)}
    return {label: error for label, error in found.items() if error is not None}


def _differences(a: PerfTable, b: PerfTable) -> list[str]:
    found = [
        f"{field} {a.metadata.get(field, '1')} against {b.metadata.get(field, '1')}"
        for field in ("tp", "pp", "ep", "dp", "stage_layers")
        if a.metadata.get(field) != b.metadata.get(field)
    ]
    mine, other = a.model_shape, b.model_shape
    if mine and other:
        found += [
            f"{field} {mine.get(field)} against {other.get(field)}"
            for field in SHAPE_FIELDS
            if mine.get(field) != other.get(field)
        ]
    elif a.model != b.model:
        found.append(f"model {a.model} against {b.model}")
    if a.metadata.get("dtype") and b.metadata.get("dtype"):
        dtypes = a.metadata["dtype"], b.metadata["dtype"]
        if dtypes[0] != dtypes[1]:
            found.append(f"dtype {dtypes[0]} against {dtypes[1]}")
    return found
