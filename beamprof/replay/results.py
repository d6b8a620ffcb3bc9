"""A replay's rows as Parquet: requests, steps, and how long tokens kept their reader waiting.

    requests.parquet   one line per request
    steps.parquet      one line per engine step
    gaps.parquet       how many tokens came how long after the one before, to 0.1 ms

Each file carries the whole answer and its record as metadata: none can lose where it comes from.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from beam_runtime.types import SAME_MS
from beamprof.errors import OutputError
from beamprof.files import check_writable, written_whole
from beamprof.replay.played import Played

SCHEMA = "beam.replay/1"
METADATA_KEY = "beam.replay"
FILES = ("requests", "steps", "gaps")
GAP_MS = 0.1

_EXACT = ("issued_ms", "finished_ms", "prefill_pairs", "busy_ms", "energy_j", "pace_ms")
_WHOLE = (
    "clock_mhz", "prefill_tokens", "decode_requests", "prefill_context_tokens",
    "decode_context_tokens", "running_requests", "waiting_requests", "chunk_tokens",
    "microbatches",
)  # fmt: skip


def request_frame(played: Played, request_id: pl.Series) -> pl.DataFrame:
    """One line per request: lengths, times, its worst gap, tokens that came late."""
    n = len(played.arrival_ms)
    owner = played.tokens["request"]
    gaps_ms = played.tokens["gap_ms"]
    worst_ms = np.zeros(n)
    np.maximum.at(worst_ms, owner, gaps_ms)
    gaps = np.bincount(owner, None, n)
    late = gaps_ms > played.promised["token_slo_ms"][owner] + SAME_MS
    return pl.DataFrame(
        {
            "policy": [played.policy] * n,
            "request_id": request_id,
            "arrival_ms": played.arrival_ms,
            "input_tokens": played.input_tokens,
            "output_tokens": played.output_tokens,
            "cached_tokens": played.cached_tokens,
            "ttft_ms": played.first_token_ms - played.arrival_ms,
            "finish_ms": played.finish_ms,
            "tbt_mean_ms": np.bincount(owner, gaps_ms, n) / np.maximum(1, gaps),
            "tbt_max_ms": worst_ms,
            "late_tokens": np.bincount(owner[late], None, n),
        }
    )  # fmt: skip


def step_frame(played: Played) -> pl.DataFrame:
    """One line per engine step, all stages together."""
    steps = played.steps
    frame = pl.DataFrame({name: steps[name] for name in steps.dtype.names})
    return frame.rename({"clock": "clock_mhz"}).select(
        pl.lit(played.policy).alias("policy"),
        pl.col(_EXACT),
        pl.col(_WHOLE).cast(pl.Int32),
    )


def gap_frame(played: Played) -> pl.DataFrame:
    """How many tokens came ``gap_ms`` after the one before; gaps are rounded up to GAP_MS.

    Up, so that no token that was late looks as if it had been in time.
    """
    tenths = np.ceil((played.tokens["gap_ms"] - SAME_MS) / GAP_MS)
    values, tokens = np.unique(tenths.astype(np.int64), return_counts=True)
    return pl.DataFrame(
        {
            "policy": [played.policy] * len(values),
            "gap_ms": np.round(values * GAP_MS, 1),
            "tokens": tokens.astype(np.int64),
        },
        schema={"policy": pl.String, "gap_ms": pl.Float64, "tokens": pl.Int64},
    )


def frames_of(played: Played, request_id: pl.Series) -> dict[str, pl.DataFrame]:
    """One frame for each of FILES."""
    return {
        "requests": request_frame(played, request_id),
        "steps": step_frame(played),
        "gaps": gap_frame(played),
    }


def write_frames(
    policies: Sequence[Mapping[str, pl.DataFrame]],
    metadata: Mapping[str, Any],
    folder: Path,
    *,
    force: bool,
) -> tuple[Path, ...]:
    """Write FILES into ``folder``, made if need be, all policies' rows below each other.

    Args:
        policies: frames_of each.
        metadata: JSON's own types, kept under METADATA_KEY.
        folder: where to.
        force: replace files that exist.

    Raises:
        OutputError: a file exists without force, or cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, **metadata}, allow_nan=False)
    check_frames_writable(folder, force=force)
    folder.mkdir(exist_ok=True)
    paths = []
    for name in FILES:
        table = pl.concat([frames[name] for frames in policies]).to_arrow()
        table = table.replace_schema_metadata({METADATA_KEY: text})
        path = folder / f"{name}.parquet"
        with written_whole(path, force=force) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        paths.append(path)
    return tuple(paths)


def check_frames_writable(folder: Path, *, force: bool) -> None:
    """Refuse early what write_frames would refuse after the replay.

    Raises:
        OutputError: as write_frames.
    """
    if not folder.exists():
        check_writable(folder, force=force)
        return
    if not folder.is_dir():
        raise OutputError(
            f"{folder} is a file", hint="name a folder, new or there: --output FOLDER"
        )
    for name in FILES:
        check_writable(folder / f"{name}.parquet", force=force)
