"""Which GPUs BEAM has locked, on disk: written before a lock is set, erased after its release.

One JSON file, replaced whole (write, fsync, rename) under a file lock: of the machine where an
administrator made /var/lib/beam (docs/operations.md), else of the user, 0600 in a 0700 folder. It
is read by the next start, by the guard and by ``beam doctor --restore``. A file that cannot be
read is an error and is left as it is: it may be the only trace of a locked GPU.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from beam_runtime.clocks.file_lock import file_lock
from beam_runtime.clocks.holding import Holding, parse_holding, whole_number
from beam_runtime.errors import ClockError

__all__ = ["Holding", "Record", "StateFile", "state_folder"]

_VERSION = 2
_READABLE_VERSIONS = (1, 2)  # 1 had neither generations nor namespaces
# A writer needs a few milliseconds; one that is stopped must not stop everybody.
LOCK_TIMEOUT_S = 3.0
# A machine has some dozen GPUs, and each takes a few hundred bytes.
_LARGEST_BYTES = 1 << 20
_MOST_HOLDINGS = 4096
SYSTEM_FOLDER = Path("/var/lib/beam")
_HINT = "name a folder of yours: BEAM_STATE_DIR=FOLDER"


class Record(list[Holding]):
    """The holdings, open for editing.

    Attributes:
        generation: the largest number that a lease on record has had.
    """

    def __init__(self, holdings: Iterable[Holding] = (), generation: int = 0) -> None:
        super().__init__(holdings)
        self.generation = max((generation, *(one.generation for one in self)))


def state_folder() -> Path:
    """$BEAM_STATE_DIR, /var/lib/beam where this user may write there, or one of the user's own.

    That is beam/ in the XDG state folder ($XDG_STATE_HOME, ~/.local/state).

    Raises:
        ClockError: this user has no home, and nothing else is named.
    """
    named = os.environ.get("BEAM_STATE_DIR")
    if named:
        return Path(named)
    if os.access(SYSTEM_FOLDER, os.R_OK | os.W_OK | os.X_OK):
        return SYSTEM_FOLDER
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "beam"
    except RuntimeError as error:  # a user whom nobody has told the system of, as in containers
        raise ClockError(
            "there is no folder to keep a record of locks in",
            cause="this user has no home",
            hint="name a folder of yours: BEAM_STATE_DIR=FOLDER",
        ) from error


class StateFile:
    """The holdings of all BEAM processes of this machine, or of this user.

    Args:
        folder: where it lies; state_folder() by default.
        patience_s: how long to wait for another writer; LOCK_TIMEOUT_S by default.

    Raises:
        ClockError: see state_folder(); or it is relative to a folder that is gone.
    """

    def __init__(self, folder: Path | None = None, *, patience_s: float | None = None) -> None:
        folder = folder or state_folder()
        try:
            self.folder = folder.absolute()  # an engine may go elsewhere; the record may not
        except OSError as error:
            raise ClockError(f"no state folder at {folder}", cause=str(error)) from error
        self.path = self.folder / "clocks.json"
        self._patience_s = patience_s

    def read(self) -> tuple[Holding, ...]:
        """What is held. Raises ClockError when the file cannot be understood."""
        return tuple(self._read())

    @contextmanager
    def change(self, *, durable: bool = True) -> Iterator[Record]:
        """Yield the holdings for editing, alone; written back unless the block raises.

        Args:
            durable: flush to the disk. A lock does not outlive the machine's power, so only
                the first registration has to.

        Raises:
            ClockError: the folder or file cannot be used, or another process sits on it.
        """
        mode = self.prepare()
        patience_s = LOCK_TIMEOUT_S if self._patience_s is None else self._patience_s
        with file_lock(self.folder / "clocks.lock", timeout_s=patience_s, mode=mode):
            record = self._read()
            before = (tuple(record), record.generation)
            yield record
            if (tuple(record), record.generation) != before:
                self._write(record, durable, mode)

    def prepare(self) -> int:
        """Make the folder, see that nobody else writes there; the mode of files in it.

        Raises:
            ClockError: it cannot be made, or is not ours alone.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        except OSError as error:
            raise self._unusable(str(error)) from error
        return self._mode(found)

    def check(self) -> None:
        """See whether a lock could be put on record here, as far as that shows without a change.

        Raises:
            ClockError: as prepare() and read().
        """
        place = self.folder
        try:
            while not os.path.lexists(place) and place != place.parent:
                place = place.parent
            if place == self.folder:
                self._mode(place.stat())
            elif not place.is_dir():
                raise self._unusable(f"{place} is no folder")
            if not os.access(place, os.W_OK | os.X_OK):
                raise self._unusable(f"{place} cannot be written to")
        except OSError as error:
            raise self._unusable(str(error)) from error
        self.read()

    def _mode(self, found: os.stat_result) -> int:
        if not stat.S_ISDIR(found.st_mode):
            raise self._unusable("it is no folder")
        if found.st_mode & stat.S_IWOTH:
            raise ClockError(
                f"everybody may write to {self.folder}",
                cause="a record that anybody can change says nothing",
                hint=f"chmod o-w {self.folder}, or {_HINT}",
            )
        shared = found.st_uid == 0 and bool(found.st_mode & stat.S_IWGRP)
        if found.st_uid != os.geteuid() and not shared:
            raise ClockError(
                f"{self.folder} belongs to user {found.st_uid}, expected {os.geteuid()}", hint=_HINT
            )
        if found.st_mode & stat.S_IWGRP and not shared:
            raise ClockError(
                f"a group may write to {self.folder}, which is not root's",
                hint=f"chmod g-w {self.folder}, or {_HINT}",
            )
        return 0o660 if shared else 0o600

    def presence(self, generation: int) -> Path:
        """The file by which a lease's owner shows that it lives (presence.py)."""
        return self.folder / f"lease-{generation}.lock"

    def _read(self) -> Record:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise self._unreadable(str(error)) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._unreadable("it is no file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(_LARGEST_BYTES + 1)
        except OSError as error:
            raise self._unreadable(str(error)) from error
        finally:
            os.close(descriptor)
        try:
            return _parsed(data)
        except (ValueError, RecursionError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error}") from error

    def _write(self, record: Record, durable: bool, mode: int) -> None:
        generation = max((record.generation, *(one.generation for one in record)))
        content = {
            "version": _VERSION,
            "generation": generation,
            "holdings": [asdict(holding) for holding in record],
        }
        text = json.dumps(content, indent=2)
        try:  # what nobody could read again would keep everybody from locking, for good
            _parsed(text.encode())
        except ValueError as error:
            raise ClockError(f"not fit to be on record in {self.path}", cause=str(error)) from error
        temporary = self.folder / f".clocks.{os.getpid()}.tmp"
        try:
            # What a killed writer of the same pid left behind; never followed if it is a link.
            temporary.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, mode), "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(self.path)
            if durable:
                self._sync_folder()
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise ClockError(
                f"cannot write {self.path}",
                cause=error.strerror or str(error),
                hint="no clock is locked that is not on record: free some space",
            ) from error

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _unusable(self, cause: str) -> ClockError:
        return ClockError(f"no state folder at {self.folder}", cause=cause, hint=_HINT)

    def _unreadable(self, cause: str) -> ClockError:
        return ClockError(
            f"{self.path} cannot be read; it is left as it is",
            cause=cause[:500],
            hint="release clocks by hand (nvidia-smi -rgc -i GPU), then move the file away",
        )


def _parsed(data: bytes) -> Record:
    """Raises ValueError for whatever it is not; RecursionError where it is nested without end."""
    if len(data) > _LARGEST_BYTES:
        raise ValueError(f"it is larger than {_LARGEST_BYTES} bytes")
    content = json.loads(data.decode("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - one error for what was read
    version = content.get("version")
    if version not in _READABLE_VERSIONS or isinstance(version, bool):
        raise ValueError(f"version {str(version)[:40]}, expected {_VERSION}")
    holdings = content.get("holdings")
    if not isinstance(holdings, list) or len(holdings) > _MOST_HOLDINGS:
        raise ValueError(f"holdings: expected a list of at most {_MOST_HOLDINGS}")
    generation = whole_number(content.get("generation", 0), "generation")
    return Record([parse_holding(entry) for entry in holdings], generation)
