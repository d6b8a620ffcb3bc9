"""Rows and metadata that would make a controller act on nonsense are refused here.

Each refusal names the row or field, and what to do.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.schema import COLUMNS, KEY_COLUMNS, REQUIRED_METADATA, RowKind, rows_sha256
from beam_runtime.types import Source

# One GPU draws between an idle laptop part and a future rack part; outside this the unit is
# wrong. The usual slip is millijoules for joules or seconds for milliseconds: a factor of 1000.
_PLAUSIBLE_GPU_POWER_W = (1.0, 5_000.0)

LONGEST_TEXT = 256
_LARGEST_COUNT = 10**12
_MOST_DIGITS = 9
# Between two passes, or for a step over a link: a minute is no time of either, but another unit.
TIMES_MS = ("host_gap_ms", "stage_transfer_ms")
_LONGEST_GAP_MS = 60_000.0
# They would reach a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
REPROFILE = "profile this layout again, or ask whoever made the file"


def check_metadata(metadata: Mapping[str, str], name: str) -> None:
    """Raises TableError for required metadata that are missing, and for numbers that are none."""
    missing = [key for key in REQUIRED_METADATA if not metadata.get(key)]
    if missing:
        raise TableError(f"{name} lacks the metadata {', '.join(missing)}", hint=REPROFILE)
    several = [key for key in ("ep", "dp") if metadata.get(key)]
    for key in ("tp", "pp", "stage_layers", *several):
        value = metadata[key]
        if not (value.isdecimal() and len(value) <= _MOST_DIGITS and int(value) >= 1):
            raise TableError(
                f"{name}: metadata {key} must be a positive integer, found {value[:40]!r}",
                hint=REPROFILE,
            )
    for key in TIMES_MS:
        value = metadata.get(key) or "0"
        if not 0.0 <= _number(value) <= _LONGEST_GAP_MS:
            raise TableError(
                f"{name}: metadata {key} must be milliseconds from 0 to {_LONGEST_GAP_MS:,.0f}, "
                f"found {value[:40]!r}",
                hint="a table may leave it out; " + REPROFILE,
            )


def _number(text: str) -> float:
    """NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def check_rows(columns: Mapping[str, NDArray[Any]], tp: int, name: str) -> None:
    """Raises TableError for values that cannot be, duplicates, and energy in another unit."""
    missing = [column.name for column in COLUMNS if column.name not in columns]
    if missing:
        raise TableError(f"{name} lacks the columns {', '.join(missing)}", hint=REPROFILE)
    kinds = columns["kind"]
    if not np.any(kinds == str(RowKind.FORWARD)):
        raise TableError(
            f"{name} holds no forward rows", cause=f"{len(kinds)} rows", hint=REPROFILE
        )
    _refuse(~np.isin(kinds, [str(kind) for kind in RowKind]), columns, "kind", name)
    _refuse(~np.isin(columns["source"], [str(s) for s in Source]), columns, "source", name)
    for field in ("latency_ms", "energy_j"):
        values = columns[field]
        _refuse(~(np.isfinite(values) & (values > 0)), columns, field, name)
    for column in COLUMNS:
        values = columns[column.name]
        if column.dtype == "string":
            _refuse(~_printable(values), columns, column.name, name)
        elif column.nullable:  # NaN: not known
            _refuse(np.isinf(values), columns, column.name, name)
    for field in (*KEY_COLUMNS[1:], "passes"):
        _refuse((columns[field] < 0) | (columns[field] > _LARGEST_COUNT), columns, field, name)
    forward = kinds == str(RowKind.FORWARD)
    tokens = columns["prefill_tokens"] + columns["decode_requests"]
    _refuse(forward & (tokens == 0), columns, "prefill_tokens", name)
    _check_duplicates(columns, name)
    with np.errstate(over="ignore"):  # an infinite power is out of range too
        power_w = columns["energy_j"] / columns["latency_ms"] * 1e3 / tp
    low, high = _PLAUSIBLE_GPU_POWER_W
    implausible = np.flatnonzero((power_w < low) | (power_w > high))
    if implausible.size:
        row = int(implausible[0])
        raise TableError(
            f"{name}: row {row} means {power_w[row]:.4g} W per GPU, expected {low:g} to {high:g}",
            cause=f"energy_j = {columns['energy_j'][row]:.6g}, latency_ms = "
            f"{columns['latency_ms'][row]:.6g}, tp = {tp}",
            hint="energy is in joules and latency in milliseconds: were millijoules or seconds "
            "written?",
        )


def _printable(values: NDArray[Any]) -> NDArray[np.bool_]:
    fit = [len(text) <= LONGEST_TEXT and not CONTROL.search(text) for text in values.tolist()]
    return np.array(fit, dtype=bool)


def _refuse(
    bad: NDArray[np.bool_], columns: Mapping[str, NDArray[Any]], field: str, name: str
) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise TableError(
            f"{name}: row {row} has {field} = {columns[field][row]}",
            cause=f"{int(bad.sum())} of {bad.size} rows are like that",
            hint=REPROFILE,
        )


def _check_duplicates(columns: Mapping[str, NDArray[Any]], name: str) -> None:
    # Idle power is measured several times in a sweep; only forward rows must be unique.
    forward = np.flatnonzero(columns["kind"] == str(RowKind.FORWARD))
    keys = np.stack([columns[field][forward] for field in KEY_COLUMNS[1:]], axis=1)
    unique, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        again = int(np.flatnonzero(counts > 1)[0])
        described = ", ".join(
            f"{field} {value}"
            for field, value in zip(KEY_COLUMNS[1:], unique[again].tolist(), strict=True)
        )
        raise TableError(
            f"{name}: {int(counts[again])} rows describe the same pass, from row "
            f"{int(forward[first[again]])}",
            cause=described,
            hint="merge tables with: beam table merge A B --prefer newest",
        )


def check_checksum(
    columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], name: str
) -> None:
    """Raises TableError where the rows are not those that were written."""
    found, stated = rows_sha256(columns), metadata["rows_sha256"]
    if found != stated:
        raise TableError(
            f"{name}: the rows do not match their checksum",
            cause=f"metadata says {stated[:12]}..., the rows hash to {found[:12]}...",
            hint="the file was altered or damaged after it was written: copy it again, or "
            "profile again",
        )
