"""A trace on disk: Parquet or CSV, and a JSON sidecar that says where it comes from.

    name.parquet        the rows
    name.parquet.json   {schema, source, sha256, licence, duration_s, transforms, rows_sha256, ...}

Both are written whole or not at all; a pair that does not belong together is refused. A stream
(standard output, a pipe) gets JSON lines instead, whose first states duration and block size:
what reads them imports them (see importers.own_columns).
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import OutputError, TraceError
from beamprof.files import check_writable, is_stream, read_text, written_whole
from beamprof.traces.trace import Provenance, Trace, Transform, arrange
from beamprof.unreadable import UNREADABLE, first_line

SIDECAR_SCHEMA = "beam.trace/1"
SUFFIXES = (".parquet", ".csv")


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of the trace at ``path`` lies."""
    return path.with_name(path.name + ".json")


def check_trace_writable(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse early what save_trace would refuse late.

    Raises:
        OutputError: another suffix than .parquet or .csv, or as check_writable.
    """
    if is_stream(path):
        check_writable(path, force=force)
        return
    if path.suffix not in SUFFIXES:
        raise OutputError(
            f"a trace is written as {' or '.join(SUFFIXES)}, found {path.name!r}",
            hint=f"--output {path.stem or 'trace'}.parquet",
        )
    for target in (path, sidecar_path(path)):
        check_writable(target, force=force, inputs=inputs)


def save_trace(trace: Trace, path: str | Path, *, force: bool = False) -> tuple[Path, ...]:
    """Write the trace and its sidecar; the suffix of ``path`` chooses Parquet or CSV.

    Returns:
        The paths written: two, or the stream.

    Raises:
        OutputError: the suffix is neither, a file exists without force, or cannot be written.
    """
    path = Path(path)
    check_trace_writable(path, force=force)
    if is_stream(path):
        with written_whole(path) as temporary:
            _write(temporary, _stated(trace).write_ndjson)
        return (path,)
    with written_whole(path, force=force) as temporary:
        if path.suffix == ".csv":
            _write(temporary, _flat(trace.frame).write_csv)
        else:
            _write(temporary, partial(trace.frame.write_parquet, compression="zstd"))
    sidecar = sidecar_path(path)
    with written_whole(sidecar, force=force) as temporary:
        temporary.write_text(json.dumps(describe(trace), indent=1, allow_nan=False) + "\n", "utf-8")
    return path, sidecar


def _write(path: Path, write: Callable[[BytesIO], None]) -> None:
    """By way of memory: polars has errors of its own for a disk that is full, Python an OSError."""
    content = BytesIO()
    write(content)
    path.write_bytes(content.getbuffer())


def describe(trace: Trace) -> dict[str, Any]:
    """The sidecar's content."""
    return {
        "schema": SIDECAR_SCHEMA,
        **dataclasses.asdict(trace.provenance),
        "duration_s": trace.duration_s,
        "requests": trace.requests,
        "prefix_block_tokens": trace.prefix_block_tokens,
        "rows_sha256": trace.sha256(),
    }


def load_trace(path: Path) -> Trace:
    """Read a trace that save_trace wrote.

    Raises:
        TraceError: no such file, no sidecar, damaged, of another schema, or rows and sidecar
            that do not belong together.
    """
    sidecar = _read_sidecar(path)
    try:
        frame = _read_rows(path)
        trace = Trace(
            arrange(frame),
            float(sidecar["duration_s"]),
            Provenance(
                source=sidecar["source"],
                format=sidecar["format"],
                sha256=sidecar["sha256"],
                licence=sidecar["licence"],
                transforms=tuple(Transform(**step) for step in sidecar["transforms"]),
            ),
            sidecar["prefix_block_tokens"],
        )
        expected = sidecar["rows_sha256"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TraceError(
            f"{sidecar_path(path)} is not a complete sidecar",
            cause=f"{type(error).__name__}: {error}",
            hint="import the trace again: beam trace import FILE",
        ) from None
    except UNREADABLE as error:
        raise TraceError(
            f"cannot read the trace {path}",
            cause=first_line(error),
            hint="import the trace again: beam trace import FILE",
        ) from None
    if trace.sha256() != expected:
        raise TraceError(
            f"{path.name} and its sidecar {sidecar_path(path).name} do not belong together",
            cause="the rows' SHA-256 is not the one in the sidecar",
            hint="the file was edited or half replaced; import it again: beam trace import FILE",
        )
    return trace


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TraceError(
            f"there is no trace {path}", hint="beam trace import or generate makes one"
        )
    sidecar = sidecar_path(path)
    try:
        content = json.loads(read_text(sidecar))
    except FileNotFoundError:
        raise TraceError(
            f"{path} has no sidecar {sidecar.name}",
            hint=f"make it a trace with its record: beam trace import {path}",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"cannot read {sidecar}", cause=first_line(error)) from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SIDECAR_SCHEMA:
        raise TraceError(
            f"{sidecar} is not a trace's sidecar: expected schema {SIDECAR_SCHEMA}, "
            f"found {schema!r}",
            hint="import the trace again with this version of beam",
        )
    return dict(content)


def _read_rows(path: Path) -> pl.DataFrame:
    if path.suffix != ".csv":
        return pl.read_parquet(path, glob=False)
    frame = pl.read_csv(path, infer_schema=False, glob=False)  # text: arrange() gives the types
    if "prefix_hashes" not in frame.columns:
        return frame
    hashes = pl.col("prefix_hashes").str.split(" ")
    return frame.with_columns(hashes.list.eval(pl.element().filter(pl.element() != "")))


def _stated(trace: Trace) -> pl.DataFrame:
    """Rows without ids of their own; the first states what else a trace has."""
    first = pl.int_range(pl.len()) == 0
    frame = trace.frame.drop("request_id").with_columns(
        duration_s=pl.when(first).then(pl.lit(float(trace.duration_s)))
    )
    if not trace.prefix_block_tokens:
        return frame
    size = pl.lit(trace.prefix_block_tokens)
    return frame.with_columns(prefix_block_tokens=pl.when(first).then(size))


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    # CSV has no lists: hashes are written with spaces between them.
    if "prefix_hashes" not in frame.columns:
        return frame
    words = pl.col("prefix_hashes").list.eval(pl.element().cast(pl.String)).list.join(" ")
    return frame.with_columns(words.alias("prefix_hashes"))
