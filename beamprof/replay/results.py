"""A replay's rows as Parquet: one line per request, one line per step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from beam_runtime.types import SAME_MS
from beamprof.atomic_file import check_writable, written_whole
from beamprof.replay import event_loop as loop
from beamprof.replay.played import Played

STEP_COLUMNS = (
    "issued_ms", "finished_ms", "clock_mhz", "prefill_tokens", "decode_requests",
    "prefill_context_tokens", "decode_context_tokens", "prefill_pairs", "busy_ms", "energy_j",
    "running_requests", "waiting_requests", "chunk_tokens", "microbatches", "pace_ms",
)  # fmt: skip
_WHOLE = (
    "clock_mhz", "prefill_tokens", "decode_requests", "prefill_context_tokens",
    "decode_context_tokens", "running_requests", "waiting_requests", "chunk_tokens",
    "microbatches",
)  # fmt: skip


def request_frame(played: Played, request_id: pl.Series) -> pl.DataFrame:
    """One line per request: lengths, times, its worst gap, tokens that came late."""
    n = len(played.arrival_ms)
    owner = played.tokens[:, loop.TOKEN_REQUEST].astype(np.int64)
    gaps_ms = played.tokens[:, loop.TOKEN_GAP_MS]
    worst_ms = np.zeros(n)
    np.maximum.at(worst_ms, owner, gaps_ms)
    gaps = np.bincount(owner, None, n)
    late = gaps_ms > played.slo.tbt_ms + SAME_MS
    return pl.DataFrame(
        {
            "policy": [played.policy] * n,
            "request_id": request_id,
            "arrival_ms": played.arrival_ms,
            "input_tokens": played.input_tokens,
            "output_tokens": played.output_tokens,
            "ttft_ms": played.first_token_ms - played.arrival_ms,
            "finish_ms": played.finish_ms,
            "tbt_mean_ms": np.bincount(owner, gaps_ms, n) / np.maximum(1, gaps),
            "tbt_max_ms": worst_ms,
            "late_tokens": np.bincount(owner[late], None, n),
        }
    )  # fmt: skip


def step_frame(played: Played) -> pl.DataFrame:
    """One line per engine step, all stages together."""
    frame = pl.DataFrame(played.steps, schema=list(STEP_COLUMNS), orient="row")
    return frame.select(
        pl.lit(played.policy).alias("policy"),
        pl.all().exclude(_WHOLE),
        pl.col(_WHOLE).cast(pl.Int32),
    )


def write_frames(
    frames: Mapping[str, Sequence[pl.DataFrame]], folder: Path, *, force: bool
) -> tuple[Path, ...]:
    """Write ``<name>.parquet``, all policies' rows below each other, into ``folder``.

    Raises:
        OutputError: a file exists without force, or cannot be written.
    """
    paths = []
    for name, parts in frames.items():
        path = folder / f"{name}.parquet"
        with written_whole(path, force=force) as temporary:
            pl.concat(parts).write_parquet(temporary, compression="zstd")
        paths.append(path)
    return tuple(paths)


def check_frames_writable(names: Sequence[str], folder: Path, *, force: bool) -> None:
    """Refuse early what write_frames would refuse after the replay.

    Raises:
        OutputError: as write_frames.
    """
    for name in names:
        check_writable(folder / f"{name}.parquet", force=force)
