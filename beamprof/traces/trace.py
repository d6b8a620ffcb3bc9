"""The normalised trace: one row per request, and the record of where it came from.

Every importer and generator ends here and every replay starts here. A Trace that exists is
sound: sorted, non-negative, whole lengths of at least one token. What it does not know: any text;
and how long serving took, unless it comes from a log that observed it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beamprof.errors import TraceError

REQUIRED: Mapping[str, pl.DataType] = MappingProxyType(
    {
        "request_id": pl.Int64(),
        "arrival_s": pl.Float64(),
        "input_tokens": pl.Int64(),
        "output_tokens": pl.Int64(),
    }
)
OPTIONAL: Mapping[str, pl.DataType] = MappingProxyType(
    {
        "client_id": pl.String(),
        "session_id": pl.String(),
        "prefix_hashes": pl.List(pl.Int64()),
        "slo_class": pl.String(),
        "first_token_s": pl.Float64(),  # observed, on the clock of arrival_s
        "last_token_s": pl.Float64(),
        "slo_ttft_ms": pl.Float64(),  # one request's own promises, over its class's
        "slo_tbt_ms": pl.Float64(),
        "slo_tpot_ms": pl.Float64(),
        "slo_e2e_ms": pl.Float64(),
    }
)
TIMES_S = ("arrival_s", "first_token_s", "last_token_s")
SLOS_MS = tuple(name for name in OPTIONAL if name.startswith("slo_") and name.endswith("_ms"))


@dataclass(frozen=True, slots=True)
class Transform:
    """One thing that was done to the requests, with its parameters and what it counted.

    Attributes:
        name: e.g. ``import``, ``window``, ``target_tps``.
        parameters: what it was asked, JSON values.
        requests_before: how many requests it was given.
        requests_after: how many it left.
        counts: everything it dropped or changed, by reason.
    """

    name: str
    parameters: Mapping[str, Any]
    requests_before: int
    requests_after: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace comes from.

    Attributes:
        source: a file's or pool's name, or the generator's words.
        format: the importer or generator that read or made it.
        sha256: of the source's bytes; None where there is no source file.
        licence: the source's, as far as it is known.
        transforms: everything done since, in order.
    """

    source: str
    format: str
    sha256: str | None
    licence: str
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival.

    Attributes:
        frame: REQUIRED columns and any of OPTIONAL, in that order and with those types.
            ``request_id`` is unique and survives every transform.
        duration_s: how long the trace lasts, at least its last arrival; energy is counted
            until then, idle time included.
        provenance: source, licence and transforms.
        prefix_block_tokens: tokens that one entry of ``prefix_hashes`` stands for.

    Raises:
        TraceError: no requests, a wrong column, or a row that breaks an invariant.
    """

    frame: pl.DataFrame
    duration_s: float
    provenance: Provenance
    prefix_block_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_columns(self.frame)
        if self.frame.is_empty():
            raise TraceError(
                f"the trace of {self.provenance.source} has no requests",
                cause=_last_words(self.provenance),
                hint="widen the window or the limits, or look at the source file",
            )
        _check_rows(self.frame, self.duration_s)
        if "prefix_hashes" in self.frame.columns and not self.prefix_block_tokens:
            raise TraceError(
                "prefix_hashes need to know how many tokens a block holds",
                hint="give prefix_block_tokens (Mooncake: 512)",
            )

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return self.frame.height

    @property
    def arrival_s(self) -> NDArray[np.float64]:
        """Arrivals in seconds from the trace's start, ascending, shape (requests,)."""
        return self.frame["arrival_s"].to_numpy()

    @property
    def input_tokens(self) -> NDArray[np.int64]:
        """Prompt tokens, shape (requests,)."""
        return self.frame["input_tokens"].to_numpy()

    @property
    def output_tokens(self) -> NDArray[np.int64]:
        """Generated tokens, shape (requests,)."""
        return self.frame["output_tokens"].to_numpy()

    def transformed(
        self,
        frame: pl.DataFrame,
        name: str,
        parameters: Mapping[str, Any],
        counts: Mapping[str, int],
        *,
        duration_s: float | None = None,
    ) -> "Trace":
        """The trace with ``frame`` for its rows and the transform written into its record."""
        step = Transform(name, dict(parameters), self.frame.height, frame.height, dict(counts))
        return Trace(
            frame,
            self.duration_s if duration_s is None else duration_s,
            replace(self.provenance, transforms=(*self.provenance.transforms, step)),
            self.prefix_block_tokens,
        )

    def sha256(self) -> str:
        """SHA-256 of rows and duration, whatever file they lie in: 64 hexadecimal digits."""
        digest = hashlib.sha256(f"duration_s:{float(self.duration_s)!r}\n".encode())
        for name in self.frame.columns:
            column = self.frame[name]
            digest.update(name.encode() + b"\n")
            if isinstance(column.dtype, pl.List):
                lengths = column.list.len().fill_null(0)
                digest.update(_little_endian(lengths.cast(pl.Int64)))
                digest.update(_little_endian(column.explode().drop_nulls()))
            elif column.dtype == pl.String:
                words = column.fill_null("\1").to_list()
                digest.update("\0".join(words).encode())
            elif name in OPTIONAL:  # an empty cell has no bits of its own
                digest.update(column.is_null().to_numpy().tobytes())
                digest.update(_little_endian(column.fill_null(0.0)))
            else:
                digest.update(_little_endian(column))
        return digest.hexdigest()


def arrange(frame: pl.DataFrame) -> pl.DataFrame:
    """The known columns of ``frame`` in their order and types.

    Raises:
        TraceError: a required column is missing.
    """
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise TraceError(
            f"a trace needs the columns {', '.join(REQUIRED)}; {', '.join(missing)} is missing",
            cause=f"found {', '.join(frame.columns)}",
        )
    known = {**REQUIRED, **OPTIONAL}
    return frame.select(
        pl.col(name).cast(dtype) for name, dtype in known.items() if name in frame.columns
    )


def _check_columns(frame: pl.DataFrame) -> None:
    known = {**REQUIRED, **OPTIONAL}
    expected = {name: dtype for name, dtype in known.items() if name in frame.columns}
    missing = [name for name in REQUIRED if name not in expected]
    if missing or dict(frame.schema) != expected:
        found = ", ".join(f"{name}: {dtype}" for name, dtype in frame.schema.items())
        raise TraceError(
            "a trace holds request_id, arrival_s, input_tokens and output_tokens (and, if known, "
            f"{', '.join(OPTIONAL)}), each with its type",
            cause=f"found {found}",
            hint="bring a foreign file in with: beam trace import FILE",
        )


def _check_rows(frame: pl.DataFrame, duration_s: float) -> None:
    nulls = [name for name in REQUIRED if frame[name].null_count()]
    if nulls:
        raise TraceError(f"a trace has no gaps, but {', '.join(nulls)} has empty cells")
    arrival_s = frame["arrival_s"].to_numpy()
    if not np.isfinite(arrival_s).all() or arrival_s.min() < 0:
        raise TraceError("arrival_s must be finite and 0 or more in every row")
    backwards = np.flatnonzero(np.diff(arrival_s) < 0)
    if backwards.size:
        row = int(backwards[0]) + 1
        raise TraceError(
            f"arrivals must ascend, but row {row} lies before its predecessor",
            cause=f"{arrival_s[row]:g} s after {arrival_s[row - 1]:g} s",
            hint="sort while importing: beam trace import FILE --sort",
        )
    for name in ("input_tokens", "output_tokens"):
        least = frame[name].min()
        if not isinstance(least, int) or least < 1:
            raise TraceError(f"{name} must be 1 or more in every row, found {least!r}")
    _check_observed(frame)
    for name in SLOS_MS:
        if name in frame.columns and not (frame[name].drop_nulls() > 0).all():
            raise TraceError(f"{name} must be above 0 where a request has one of its own")
    if frame["request_id"].n_unique() != frame.height:
        raise TraceError("request_id must be unique")
    if not np.isfinite(duration_s) or duration_s <= 0 or duration_s < arrival_s[-1]:
        raise TraceError(
            f"a trace lasts at least until its last arrival at {arrival_s[-1]:g} s, "
            f"but duration_s is {duration_s:g}",
            hint="leave --duration out, or give a longer one",
        )


def _check_observed(frame: pl.DataFrame) -> None:
    for earlier, later in pairwise(TIMES_S):
        if later not in frame.columns or earlier not in frame.columns:
            continue
        known = frame.filter(pl.col(later).is_not_null() & pl.col(earlier).is_not_null())
        finite = known[later].is_finite().all()
        if not finite or (known[later] < known[earlier]).any():
            raise TraceError(f"{later} must be finite and not before {earlier} in every row")


def _last_words(provenance: Provenance) -> str:
    if not provenance.transforms:
        return "nothing was read or drawn"
    last = provenance.transforms[-1]
    counts = ", ".join(f"{reason} {count}" for reason, count in last.counts.items() if count)
    return f"{last.name} left none of {last.requests_before} requests" + (
        f" ({counts})" if counts else ""
    )


def _little_endian(column: pl.Series) -> bytes:
    values = column.to_numpy()
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
