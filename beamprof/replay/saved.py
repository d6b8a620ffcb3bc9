"""A replay read back from the folder that `beam replay --output` wrote."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from beamprof.errors import ReportError
from beamprof.files import there_is
from beamprof.replay.ladder import ReplayReport
from beamprof.replay.record import Record
from beamprof.replay.results import FILES, METADATA_KEY, SCHEMA
from beamprof.unreadable import UNREADABLE, first_line

_COLUMNS = {
    "requests": ("policy", "arrival_ms", "input_tokens", "output_tokens", "ttft_ms"),
    "steps": (
        "policy", "issued_ms", "finished_ms", "clock_mhz", "chunk_tokens", "microbatches",
        "pace_ms", "prefill_tokens", "decode_requests", "energy_j", "waiting_requests",
        "running_requests",
    ),
    "gaps": ("policy", "gap_ms", "tokens"),
}  # fmt: skip
_AGAIN = "replay again with this BEAM: beam replay --table T --trace X --output FOLDER"


@dataclass(frozen=True, slots=True)
class SavedReplay:
    """What a replay said, how it was made, and its rows.

    Attributes:
        folder: where it lies.
        report: the answer.
        record: how it was made.
        requests, gaps: all rows.
        steps: rows, read from the file when they are asked for.
    """

    folder: Path
    report: ReplayReport
    record: Record
    requests: pl.DataFrame
    gaps: pl.DataFrame
    steps: pl.LazyFrame

    def ttft_ms(self, policy: str) -> NDArray[np.float64]:
        """(requests,) of one policy."""
        return self.requests.filter(policy=policy)["ttft_ms"].to_numpy()

    def gap_counts(self, policy: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(gaps in ms, ascending; how many tokens had each) of one policy."""
        rows = self.gaps.filter(policy=policy).sort("gap_ms")
        return rows["gap_ms"].to_numpy(), rows["tokens"].to_numpy()

    def steps_between(self, policy: str, from_ms: float, to_ms: float) -> pl.DataFrame:
        """Steps of one policy that were issued in [from, to), and the last one before."""
        mine = self.steps.filter(pl.col("policy") == policy, pl.col("issued_ms") < to_ms)
        inside = pl.col("issued_ms") >= from_ms
        before = mine.filter(~inside).tail(1)
        with _readable(self.folder):
            return pl.concat([before, mine.filter(inside)]).collect()


def load_replay(folder: str | Path) -> SavedReplay:
    """Read a replay's folder.

    Raises:
        ReportError: a file is missing, is no Parquet file, is none of a replay's, or was written
            by another replay than the others.
    """
    folder = Path(folder)
    found = {name: folder / f"{name}.parquet" for name in FILES}
    missing = [path.name for path in found.values() if not there_is(path)]
    if missing:
        raise ReportError(
            f"{folder} holds no replay: {', '.join(missing)} is missing",
            hint="beam replay --table T --trace X --output FOLDER writes one",
        )
    texts = {_checked(path, _COLUMNS[name]) for name, path in found.items()}
    if len(texts) > 1:
        raise ReportError(f"the files in {folder} come from different replays", hint=_AGAIN)
    text = texts.pop()
    try:
        content = json.loads(text)
        report = TypeAdapter(ReplayReport).validate_python(content["report"])
        record = TypeAdapter(Record).validate_python(content["record"])
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise ReportError(
            f"the replay in {folder} was written by another version of BEAM",
            cause=str(error).splitlines()[0],
            hint=_AGAIN,
        ) from None
    with _readable(folder):
        saved = SavedReplay(
            folder,
            report,
            record,
            pl.read_parquet(found["requests"]),
            pl.read_parquet(found["gaps"]),
            pl.scan_parquet(found["steps"]),
        )
        _check_rows(saved)
    return saved


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise ReportError(
            f"the replay in {folder} is damaged", cause=first_line(error), hint=_AGAIN
        ) from None


def parquet_schema(path: Path) -> tuple[list[str], dict[str, str]]:
    """Columns and metadata of any Parquet file.

    Raises:
        ReportError: it cannot be read as one.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: no file's name
        raise ReportError(
            f"{path} cannot be read as a Parquet file",
            cause=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="beam report takes what beam replay --output or beam study wrote, or a decision "
            "log (.jsonl)",
        ) from None
    found = (schema.metadata or {}).items()
    metadata = {key.decode("utf-8", "replace"): text.decode("utf-8", "replace")
                for key, text in found}  # fmt: skip
    return list(schema.names), metadata


def _checked(path: Path, columns: tuple[str, ...]) -> str:
    names, metadata = parquet_schema(path)
    text = metadata.get(METADATA_KEY, "")
    missing = [name for name in columns if name not in names]
    if missing or f'"schema": "{SCHEMA}"' not in text[:100]:
        raise ReportError(
            f"{path} is no file of a replay by this BEAM",
            cause=f"it lacks the columns {', '.join(missing)}" if missing
            else f"its metadata does not say {SCHEMA}",
            hint=_AGAIN,
        )  # fmt: skip
    return text


def _check_rows(saved: SavedReplay) -> None:
    wanted = {rung.metrics.policy for rung in saved.report.rungs}
    for name, rows in (
        ("requests", saved.requests.lazy()), ("gaps", saved.gaps.lazy()), ("steps", saved.steps),
    ):  # fmt: skip
        missing = wanted - set(rows.select("policy").unique().collect()["policy"])
        # A trace of one-token answers has no gaps at all.
        if missing and not (name == "gaps" and not saved.gaps.height):
            raise ReportError(
                f"{saved.folder / name}.parquet has no rows of {', '.join(sorted(missing))}",
                cause="the replay's own answer names these policies",
                hint=_AGAIN,
            )
