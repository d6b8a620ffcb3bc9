"""Which GPUs BEAM has locked, on disk: written before a lock is set, erased after its release.

One JSON file per user, 0600 in a 0700 folder, replaced whole (write, fsync, rename) under a
file lock. It is read by the next start, by the guard and by ``beam doctor --restore``. A file
that cannot be read is an error and is left as it is: it may be the only trace of a locked GPU.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beam_runtime.clocks.owner import Owner
from beam_runtime.errors import ClockError

_VERSION = 1
# A writer needs a few milliseconds; one that is stopped must not stop the guard.
LOCK_TIMEOUT_S = 3.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Holding:
    """A replica's GPUs and who drives them.

    Attributes:
        owner: the process.
        gpus: UUIDs.
        clock_mhz: the lock in force or about to be; None where they are held, not locked.
        actuator: what sets them: nvml, zeusd, command, file.
    """

    owner: Owner
    gpus: tuple[str, ...]
    clock_mhz: int | None
    actuator: str


def state_folder() -> Path:
    """$BEAM_STATE_DIR, or beam/ in the XDG state folder ($XDG_STATE_HOME, ~/.local/state)."""
    named = os.environ.get("BEAM_STATE_DIR")
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "beam"


class StateFile:
    """The holdings of all BEAM processes of this user.

    Args:
        folder: where it lies; state_folder() by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder()
        self.path = self.folder / "clocks.json"

    def read(self) -> tuple[Holding, ...]:
        """What is held. Raises ClockError when the file cannot be understood."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(str(error)) from error
        try:
            content = json.loads(text)
            if content["version"] != _VERSION:
                raise self._unreadable(f"version {content['version']}, expected {_VERSION}")
            return tuple(_holding(entry) for entry in content["holdings"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def change(self, *, durable: bool = True) -> Iterator[list[Holding]]:
        """Yield the holdings for editing, alone; written back unless the block raises.

        Args:
            durable: flush to the disk. A lock does not outlive the machine's power, so only
                the first registration has to.

        Raises:
            ClockError: the folder or file cannot be used, or another process sits on it.
        """
        self._make_folder()
        with self._alone():
            before = self.read()
            holdings = list(before)
            yield holdings
            if tuple(holdings) != before:
                self._write(holdings, durable)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.folder.stat().st_uid
        except OSError as error:
            raise ClockError(
                f"no state folder at {self.folder}",
                cause=str(error),
                hint="name a folder of yours: BEAM_STATE_DIR=FOLDER",
            ) from error
        if owner != os.geteuid():
            raise ClockError(
                f"{self.folder} belongs to user {owner}, expected {os.geteuid()}",
                hint="name a folder of yours: BEAM_STATE_DIR=FOLDER",
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        path = self.folder / "clocks.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ClockError(f"cannot lock {path}", cause=error.strerror or str(error)) from error
        try:
            deadline_s = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise ClockError(
                            f"{self.path} is in use by another process",
                            cause=f"waited {LOCK_TIMEOUT_S:g} s for its lock",
                            hint="is a BEAM process stopped? try again",
                        ) from None
                    time.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def _write(self, holdings: list[Holding], durable: bool) -> None:
        text = json.dumps(
            {"version": _VERSION, "holdings": [asdict(holding) for holding in holdings]}, indent=2
        )
        temporary = self.folder / f".clocks.{os.getpid()}.tmp"
        try:
            # What a killed writer of the same pid left behind; never followed if it is a link.
            temporary.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(self.path)
            if durable:
                self._sync_folder()
        except OSError as error:
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

    def _unreadable(self, cause: str) -> ClockError:
        return ClockError(
            f"{self.path} cannot be read; it is left as it is",
            cause=cause,
            hint="release clocks by hand (nvidia-smi -rgc -i GPU), then move the file away",
        )


def _holding(entry: Any) -> Holding:
    owner = entry["owner"]
    clock_mhz = entry["clock_mhz"]
    return Holding(
        owner=Owner(int(owner["pid"]), int(owner["started_ticks"]), str(owner["boot_id"])),
        gpus=tuple(str(gpu) for gpu in entry["gpus"]),
        clock_mhz=None if clock_mhz is None else int(clock_mhz),
        actuator=str(entry["actuator"]),
    )
