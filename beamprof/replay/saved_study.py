"""A study read back from the Parquet file that `beam study` wrote."""

import json
from pathlib import Path

import polars as pl

from beamprof.errors import ReportError
from beamprof.replay.saved import parquet_schema
from beamprof.replay.study import METADATA_KEY, RELATIVE, SCHEMA
from beamprof.replay.study_cells import PROVENANCE, RESULTS
from beamprof.unreadable import UNREADABLE, first_line

_AGAIN = "write it again with this BEAM: beam study ..., the same grid and --force"


def load_study(path: Path) -> pl.DataFrame:
    """One row for each cell: PROVENANCE, RESULTS and RELATIVE columns.

    Raises:
        ReportError: another file, another schema, or no rows.
    """
    columns, metadata = parquet_schema(path)
    wanted = {**PROVENANCE, **RESULTS, **RELATIVE}
    missing = [name for name in wanted if name not in columns]
    if missing or _schema(metadata.get(METADATA_KEY, "")) != SCHEMA:
        raise ReportError(
            f"{path} is no study of this BEAM",
            cause=f"it lacks the columns {', '.join(missing)}" if missing
            else f"its metadata does not say {SCHEMA}",
            hint=_AGAIN,
        )  # fmt: skip
    try:
        frame = pl.read_parquet(path).select(
            pl.col(name).cast(dtype) for name, dtype in wanted.items()
        )
    except UNREADABLE as error:
        raise ReportError(f"{path} is damaged", cause=first_line(error), hint=_AGAIN) from None
    if frame.is_empty():
        raise ReportError(f"{path} holds no cells", hint=_AGAIN)
    return frame


def _schema(text: str) -> object:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content.get("schema") if isinstance(content, dict) else None
