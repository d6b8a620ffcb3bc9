"""The journal of a sweep: every finished trial is one JSON line, on disk before the next begins.

    {"beam_journal": 1, "sweep": {...}, "sweep_sha256": "..."}      what defines the sweep
    {"id": "...", "number": 0, "cell": {...}, "measurement": {...}, "check": "..."}   one trial
    ...

A trial's id hashes the cell and everything that defines the sweep, environment included; check
hashes the rest of the line. A last
line that was cut (kill -9, power) is dropped and measured again; damage anywhere else is an
error, for what else it took is unknown.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.errors import JournalError, OutputError
from beamprof.profiler.plan import Trial

JOURNAL_VERSION = 1
_MOST_BYTES = 1 << 28  # half a million trials
_MEASUREMENT = tuple(field.name for field in dataclasses.fields(Measurement))
_CELL = tuple(field.name for field in dataclasses.fields(Cell))


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished trial."""

    trial: Trial
    measurement: Measurement


def journal_path(output: Path) -> Path:
    """Where the journal of ``output`` lies: beside it."""
    return output.with_name(f"{output.name}.journal.jsonl")


class Journal:
    """An open journal. One process at a time; close it, or use it as a context manager.

    Attributes:
        path: the file.
        entries: finished trials by (cell, number), those of earlier runs included.
        notes: what was found and repaired on opening, for people.
    """

    def __init__(self, path: Path, descriptor: int, sweep: Mapping[str, str]) -> None:
        self.path = path
        self.entries: dict[Trial, Measurement] = {}
        self.notes: list[str] = []
        self._descriptor = descriptor
        self._sweep_sha256 = sweep_sha256(sweep)

    @classmethod
    def open(cls, path: Path, sweep: Mapping[str, str], *, fresh: bool = False) -> Self:
        """Begin a journal, or continue the one at ``path``.

        Args:
            path: the journal file.
            sweep: everything that defines the sweep and its environment, as text.
            fresh: forget what is there.

        Raises:
            JournalError: of another sweep, damaged, or in use by another process.
            OutputError: the file cannot be opened or written.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise OutputError(
                f"cannot open the journal {path}",
                cause=error.strerror,
                hint="choose another place: --output FILE",
            ) from None
        journal = cls(path, descriptor, sweep)
        try:
            journal._lock()
            if fresh:
                os.ftruncate(descriptor, 0)
            journal._begin(sweep)
        except BaseException:
            journal.close()
            raise
        return journal

    def append(self, trial: Trial, measurement: Measurement) -> None:
        """Put one finished trial on disk; when this returns, it is there.

        Raises:
            OutputError: it could not be written whole (disk full); the journal is as before.
        """
        line: dict[str, Any] = {
            "id": trial_id(trial, self._sweep_sha256),
            "number": trial.number,
            "cell": dataclasses.asdict(trial.cell),
            "measurement": dataclasses.asdict(measurement),
        }
        self._write({**line, "check": _check(line)})
        self.entries[trial] = measurement

    def close(self) -> None:
        """Release the file. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(
                f"another process writes {self.path}",
                cause="it holds the file's lock: a beam profile with the same output is running",
                hint="wait for it, or choose another --output",
            ) from None

    def _begin(self, sweep: Mapping[str, str]) -> None:
        size = os.fstat(self._descriptor).st_size
        if size > _MOST_BYTES:
            raise JournalError(
                f"{self.path} is no journal of BEAM", cause=f"it has {size} bytes",
                hint="choose another --output, or start over with --fresh",
            )  # fmt: skip
        text = os.pread(self._descriptor, size, 0)
        lines = text.split(b"\n")
        tail = lines.pop()
        if tail and _parsed(tail) is not None:
            # Cut exactly before its newline: the line is whole.
            self._put(b"\n")
            lines.append(tail)
        elif tail:
            os.ftruncate(self._descriptor, size - len(tail))
            self.notes.append(f"{self.path.name}: the last line was cut and is measured again")
        if not lines:
            self._write(
                {
                    "beam_journal": JOURNAL_VERSION,
                    "sweep_sha256": self._sweep_sha256,
                    "sweep": dict(sweep),
                }
            )
            return
        self._check_header(lines[0], sweep)
        for number, line in enumerate(lines[1:], start=2):
            entry = self._entry(line)
            if entry is None:
                raise JournalError(
                    f"{self.path} is damaged in line {number}",
                    cause=f"found {line[:60].decode(errors='replace')!r}",
                    hint="delete that line to measure its cell again, or start over with --fresh",
                )
            self.entries[entry.trial] = entry.measurement

    def _check_header(self, line: bytes, sweep: Mapping[str, str]) -> None:
        header = _parsed(line)
        if header is None or "beam_journal" not in header:
            raise JournalError(
                f"{self.path} is no journal of BEAM",
                cause=f"its first line is {line[:60].decode(errors='replace')!r}",
                hint="choose another --output, or start over with --fresh",
            )
        if header["beam_journal"] != JOURNAL_VERSION:
            raise JournalError(
                f"{self.path} has journal version {header['beam_journal']}, this BEAM writes "
                f"{JOURNAL_VERSION}",
                hint="start over with --fresh",
            )
        if header.get("sweep_sha256") != self._sweep_sha256:
            there = header.get("sweep")
            there = there if isinstance(there, dict) else {}
            changed = [key for key in {**there, **sweep} if there.get(key) != sweep.get(key)]
            raise JournalError(
                f"{self.path} belongs to another sweep",
                cause="; ".join(_difference(k, there.get(k), sweep.get(k)) for k in changed[:4])
                or "its first line is damaged",
                hint="run that sweep again to go on with it, choose another --output, or start "
                "over with --fresh",
            )

    def _entry(self, line: bytes) -> Entry | None:
        written = _parsed(line)
        if written is None or written.pop("check", None) != _check(written):
            return None
        try:
            cell, measured = written["cell"], written["measurement"]
            if set(cell) != set(_CELL) or set(measured) != set(_MEASUREMENT):
                return None
            trial = Trial(Cell(**{**cell, "kind": RowKind(cell["kind"])}), int(written["number"]))
            measurement = Measurement(**{**measured, "source": Source(measured["source"])})
        except (KeyError, TypeError, ValueError):
            return None
        genuine = written.get("id") == trial_id(trial, self._sweep_sha256)
        return Entry(trial, measurement) if genuine else None

    def _write(self, value: Mapping[str, Any]) -> None:
        self._put(json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n")

    def _put(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            # Take back a half-written line, so that the journal ends as it was.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise OutputError(
                f"cannot write to the journal {self.path}",
                cause=error.strerror or str(error),
                hint="free some space and run the same command again: finished cells are kept",
            ) from None


def peek(path: Path) -> tuple[dict[str, str], int]:
    """What a journal says it belongs to, and how many lines of trials it holds; unchecked.

    Nothing is locked or repaired: this is for a dry run. ({}, 0) where there is no journal.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).split(b"\n")
    except OSError:
        return {}, 0
    header = _parsed(lines[0]) or {}
    sweep = header.get("sweep")
    finished = sum(_parsed(line) is not None for line in lines[1:])
    return (sweep, finished) if isinstance(sweep, dict) else ({}, 0)


def sweep_sha256(sweep: Mapping[str, str]) -> str:
    """Hash of what defines a sweep and its environment."""
    return hashlib.sha256(json.dumps(dict(sweep), sort_keys=True).encode()).hexdigest()


def trial_id(trial: Trial, sweep_hash: str) -> str:
    """Hash of a trial: its cell, its number, and the sweep's own hash."""
    fields = [sweep_hash, trial.number, *(str(getattr(trial.cell, name)) for name in _CELL)]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]


def _check(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:12]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _difference(key: str, there: object, here: object) -> str:
    """In words; of JSON objects, which a model's shape is, the first field that differs."""
    theirs, ours = _fields(there), _fields(here)
    if theirs and ours:
        field = next((k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)), None)
        if field is not None:
            return _difference(f"{key}.{field}", theirs.get(field), ours.get(field))

    def short(value: object) -> str:
        text = "nothing" if value is None else str(value)
        return text if len(text) <= 40 else f"{text[:37]}..."

    return f"{key} is {short(there)} there, {short(here)} here"


def _fields(value: object) -> dict[str, object]:
    """Of an object, or of the text of one; none of anything else."""
    if isinstance(value, str) and value.startswith("{"):
        value = _parsed(value.encode())
    return value if isinstance(value, dict) else {}
