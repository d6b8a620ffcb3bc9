"""From a sweep's trials to a table's columns and metadata."""

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.schema import COLUMNS
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.models.shape import ModelShape, StageShape
from beamprof.profiler.plan import Plan, Trial
from beamprof.profiler.spec import SweepSpec
from beamprof.profiler.trial import merge_trials, pooled_scatter


def table_columns(
    entries: Mapping[Trial, Measurement], *, running_mhz: int
) -> dict[str, NDArray[Any]]:
    """One row per cell from all its trials; see trial.merge_trials for how they combine.

    Cells measured at the clock as it was (0) carry the highest clock that any of them reached,
    what the device runs at unless power or heat hold it back; ``running_mhz`` if none says.

    Returns:
        Every column of schema.COLUMNS, 1-d, of equal length; missing numbers are NaN.
    """
    ordered = sorted(entries, key=lambda trial: (trial.cell, trial.number))
    cells = {
        cell: [entries[trial] for trial in trials]
        for cell, trials in groupby(ordered, key=lambda trial: trial.cell)
    }
    scatter = pooled_scatter(cells.values())
    reached = [measurement.clock_reached_mhz or 0.0 for measurement in entries.values()]
    current_mhz = round(max(reached, default=0.0)) or running_mhz
    rows = [
        _row(cell, merge_trials(trials, scatter), current_mhz) for cell, trials in cells.items()
    ]
    return {
        column.name: np.array(
            [row[column.name] for row in rows],
            dtype=str if column.dtype == "string" else column.dtype,
        )
        for column in COLUMNS
    }


def table_metadata(
    model: ModelShape,
    stage: StageShape,
    spec: SweepSpec,
    plan: Plan,
    environment: Mapping[str, str],
) -> dict[str, str]:
    """File metadata (schema.METADATA_KEYS); ``environment`` is what the backend said on opening."""
    sweep = {
        "clocks_mhz": plan.clocks_mhz,
        "cells_per_clock": len(plan.steps),
        "max_tokens": spec.max_tokens,
        "max_decodes": spec.max_decodes,
        "trials": plan.rounds,
        "window_s": plan.window_s,
        "seed": plan.seed,
    }
    return {
        "model": model.name,
        "model_shape": model.to_json(),
        **stage.metadata,
        "dtype": model.dtype,
        "precision": str(model.precision),
        "sweep": json.dumps(sweep),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment,
    }


def _row(cell: Cell, measurement: Measurement, current_mhz: int) -> dict[str, Any]:
    row = {**dataclasses.asdict(cell), **dataclasses.asdict(measurement)}
    row["clock_mhz"] = cell.clock_mhz or current_mhz
    row["kind"], row["source"] = str(cell.kind), str(measurement.source)
    return {key: np.nan if value is None else value for key, value in row.items()}
