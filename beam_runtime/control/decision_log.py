"""The decision log: JSON lines of what was decided, why, and what came of it.

    start        schema, table, limits
    decision     state in numbers, knobs, forecast, why, cheapest refused alternatives;
                 while BEAM observes also ``own``, the forecast of the engine's own settings;
                 ``since``, the gaps between tokens that were seen since the decision before
    first_token  predicted and actual TTFT, and its SLO; null where no forecast was in force
    steering     BEAM steers (again), has fallen back or was asked to observe, with the reason
    drift        a kind of step has left the table behind
    clock        a clock that was refused
    request      what one request was given, how late, and its joules; where an engine tells
    heartbeat    the engine is empty, as it was ten minutes ago
    stop         counts of the whole run; a second one where the engine went on after SIGTERM

Each line carries ``kind`` and ``at_ms`` (the controller's axis). A file that has grown to its
largest size becomes NAME.1 (NAME.1 becomes NAME.2, and so on to the last, which goes), and the new
one begins with ``start`` again. A full disk ends the log, never the serving.
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from beam_runtime.emulator.moment import Moment
from beam_runtime.errors import BeamError
from beam_runtime.types import Alternative, Decision, Forecast, Knobs

SCHEMA = "beam.decisions/1"
MAX_BYTES = 1 << 28
KEPT = 3
# Whatever is longer was not written by a controller: its parts are no JSON, and left out.
_LONGEST_LINE = 1 << 24
_FIRST_BYTES = b'{"kind":"'  # of every record
_LONGEST_BEGIN = 64
HEARTBEAT_MS = 600_000.0
_ALTERNATIVES = 3
_LOG = logging.getLogger("beam_runtime")
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class DecisionLog:
    """Appends records to a file, each by one system call: a signal handler may write, too.

    Args:
        path: created 0600 (it holds request ids); an existing file is continued.
        max_bytes: of one file, what is in it already included.
        kept: how many full files stay beside it.

    Attributes:
        failure: why nothing is written any more; empty while all is well.
        unwritable: records left out because what they held is nothing that JSON can say.

    Raises:
        BeamError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self.path = Path(path)
        self.failure = ""
        self.unwritable = 0
        self._max_bytes, self._kept = max_bytes, kept
        self._start: dict[str, Any] = {}
        self._early: list[tuple[str, dict[str, Any]]] = []
        self._started_ms: float | None = None
        self._turning = threading.Lock()
        self._heard_ms: float | None = None
        self._descriptor = -1
        try:
            self._descriptor = _opened(self.path)
            status = os.fstat(self._descriptor)
            _check_ours(status, self.path.parent.stat().st_uid)
            size = status.st_size  # 0 of a pipe or a terminal
            if size:
                _check_log(self.path)
                cut = _last_byte(self.path) != b"\n"  # by a crash
            _keep_to_ourselves(self._descriptor, status)
            if size and cut:
                os.write(self._descriptor, b"\n")
        except (OSError, ValueError) as error:  # ValueError: a NUL in its name
            self.close()
            raise BeamError(
                f"cannot open the decision log {self.path}",
                cause=error.strerror if isinstance(error, OSError) else str(error),
                hint="name a file of yours, in a folder that exists",
            ) from error
        self._grows = stat.S_ISREG(status.st_mode)
        self._room_bytes = max_bytes - size

    def write(self, kind: str, at_ms: float, **fields: Any) -> None:
        """Append one record; after a failure, nothing.

        What came before any time was told is written behind ``start``, which begins every run.
        """
        if isinstance(at_ms, float) and not math.isfinite(at_ms):
            if self._started_ms is None:
                self._early.append((kind, fields))
                return
            at_ms = self._started_ms
        if kind == "start":
            self._start, self._started_ms = fields, at_ms
        self._write(kind, at_ms, fields)
        if kind == "start":
            early, self._early = self._early, []
            for kind_before, fields_before in early:
                self._write(kind_before, at_ms, fields_before)

    def _write(self, kind: str, at_ms: float, fields: Mapping[str, Any]) -> None:
        if self.failure:
            return
        try:
            line = _line(kind, at_ms, fields)
        except Exception:  # whatever an engine told of a request: this record is lost, no other
            self.unwritable += 1
            _LOG.debug("a record of kind %s cannot be written", kind, exc_info=True)
            return
        try:
            if self._grows and len(line) > self._room_bytes:
                self._turn_over(at_ms)
            self._put(line)
        except OSError as error:
            self._fail(error)

    def is_idle(self, requests: int, at_ms: float) -> bool:
        """Whether nothing happens that would have to be written: a heartbeat now and then is.

        The first look at an empty engine is no idle one: it tells what the engine idles with.
        """
        heard_ms, self._heard_ms = self._heard_ms, None if requests else at_ms
        if requests or heard_ms is None:
            return False
        if at_ms - heard_ms < HEARTBEAT_MS:
            self._heard_ms = heard_ms
        else:
            self.write("heartbeat", at_ms)
        return True

    def close(self) -> None:
        """Close the file. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError as error:
                self.failure = error.strerror or str(error)

    def _put(self, line: bytes) -> None:
        if self._grows:
            self._room_bytes -= len(line)
        if os.write(self._descriptor, line) < len(line):
            raise OSError(0, "the disk is full")

    def _turn_over(self, at_ms: float) -> None:
        """Begin a new file. A signal that comes meanwhile writes to the old one."""
        if not self._turning.acquire(blocking=False):
            return
        try:
            names = [self.path, *(_numbered(self.path, n) for n in range(1, self._kept + 1))]
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
            if not self._kept:
                self.path.unlink(missing_ok=True)
            descriptor = _opened(self.path)
            os.dup2(descriptor, self._descriptor, inheritable=False)
            os.close(descriptor)
            # After the last close(): one of this process ends all its locks on a file.
            _keep_to_ourselves(self._descriptor, os.fstat(self._descriptor))
            self._room_bytes = self._max_bytes
            if self._start:
                again = {**self._start, "unix_s": time.time(), "continued": True}
                self._put(_line("start", at_ms, again))
        finally:
            self._turning.release()

    def _fail(self, error: OSError) -> None:
        self.failure = error.strerror or str(error)
        _LOG.warning("nothing more is written to the decision log %s: %s", self.path, self.failure)


def _opened(path: Path) -> int:
    """A pipe that nobody reads is not waited for. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    os.set_blocking(descriptor, True)
    return descriptor


def _check_ours(file: os.stat_result, folder_uid: int) -> None:
    """Raises PermissionError for a file in which others can write what we are taken to have.

    Whoever owns the folder could put any file there; where users are mapped (containers, NFS) what
    we make is his.
    """
    if not stat.S_ISREG(file.st_mode):
        return  # a pipe, a terminal
    if file.st_uid not in (os.geteuid(), 0, folder_uid):
        raise PermissionError(0, f"it belongs to user {file.st_uid}, expected {os.geteuid()}")
    if file.st_mode & stat.S_IWOTH:
        raise PermissionError(0, "everybody may write to it")


def _keep_to_ourselves(descriptor: int, file: os.stat_result) -> None:
    """Raises PermissionError where another process writes to it: two runs would be mixed.

    A process's lock, which a forked child does not have; where there are none, nothing is known.
    """
    if not stat.S_ISREG(file.st_mode):
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise PermissionError(0, "another process writes to it: a log for each") from error


def _check_log(path: Path) -> None:
    """Raises ValueError for a file that no controller has begun: a table, settings, a token."""
    with path.open("rb") as file:
        begin = file.read(_LONGEST_BEGIN).replace(b" ", b"")[: len(_FIRST_BYTES)]
    if not _FIRST_BYTES.startswith(begin):
        raise ValueError("it holds something else than decisions, and is not written to")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _line(kind: str, at_ms: float, fields: Mapping[str, Any]) -> bytes:
    record = {"kind": kind, "at_ms": finite(round(at_ms, 3)), **finite(fields)}
    return (_JSON.encode(record) + "\n").encode()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def read_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a log, in order; a line that was cut or damaged is left out, it alone.

    Raises:
        BeamError: no such file, or it is no decision log.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            yield from _records(file, path)
    except OSError as error:
        raise BeamError(f"cannot read the decision log {path}", cause=str(error)) from error


def _records(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """Line by line: a log may be larger than the memory."""
    first, cut = True, None
    while line := file.readline(_LONGEST_LINE):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if first:  # of a log all the same, where a run begins behind it
                cut = BeamError(f"{path}:1 is not JSON", cause=str(error))
                if not line.replace(b" ", b"").startswith(_FIRST_BYTES):
                    raise cut from error
            continue
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            record = {}
        if (first or record.get("kind") == "start") and record.get("schema") != SCHEMA:
            headless = first and record.get("kind", "start") != "start" and "at_ms" in record
            raise cut or BeamError(
                f"{path} is no decision log of this BEAM",
                cause=f"{'its first record' if first else 'a run in it'} is "
                f"{line[:80].decode(errors='replace')}",
                hint="its beginning is cut off: a log is read from a start record on"
                if headless
                else f"expected schema {SCHEMA}",
            )
        first, cut = False, None
        if record:
            yield record


def decision_fields(decision: Decision, moment: Moment, search_ms: float) -> dict[str, Any]:
    """What a decision's record holds besides ``kind`` and ``at_ms``."""
    refused = [one for one in decision.alternatives if one.request_id is not None]
    return {
        "state": state_fields(moment),
        "knobs": asdict(decision.knobs),
        "forecast": forecast_fields(decision.forecast),
        "why": decision.why,
        "refused": [alternative_fields(one) for one in refused[:_ALTERNATIVES]],
        "search_ms": round(search_ms, 4),
    }


def state_fields(moment: Moment) -> dict[str, Any]:
    """The engine in numbers."""
    requests, running = moment.state.requests[: len(moment.names)], moment.running
    waiting = requests[running:]
    pending = waiting["total_tokens"] - waiting["computed_tokens"]
    return {
        "waiting": len(waiting),
        "waiting_tokens": int(pending.sum()),
        "running": running,
        "context_tokens": int(requests["computed_tokens"][:running].sum()),
        "in_flight": int(moment.state.engine["flying"][0]),
        "clock_mhz": moment.knobs.clock_mhz,
        "correction": asdict(moment.correction),
    }


def forecast_fields(forecast: Forecast) -> dict[str, Any]:
    """A forecast, per-request TBT left out: one number says whose is worst."""
    return {
        "ttft_ms": dict(forecast.ttft_ms),
        "ttft_excess_ms": forecast.ttft_excess_ms,
        "ttft_worst": forecast.ttft_worst,
        "tbt_excess_ms": forecast.tbt_excess_ms,
        "tbt_worst": forecast.tbt_worst,
        "worst_tbt_ms": max(forecast.worst_tbt_ms.values(), default=None),
        "horizon_ms": forecast.horizon_ms,
        "active_energy_j": forecast.active_energy_j,
        "idle_energy_j": forecast.idle_energy_j,
        "energy_j": forecast.energy_j,
        "feasible": forecast.feasible,
    }


def alternative_fields(alternative: Alternative) -> dict[str, Any]:
    """One candidate that was not taken."""
    return asdict(alternative)


def knobs_of(record: Mapping[str, Any]) -> Knobs:
    """The knobs of a decision's record."""
    return Knobs(**record["knobs"])


def finite(value: Any) -> Any:
    """JSON knows no infinity: it becomes null."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):  # before Mapping, which is slow to tell
        return value
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return str(value)  # a request may have any name
