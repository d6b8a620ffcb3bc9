"""GPUs that are a JSON file: clocks that several processes can see, without a GPU.

For tests of what happens when processes die, and for rehearsals of an installation:
whatever is locked stays locked in the file until somebody releases it, as on a real board.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from beam_runtime.clocks.base import ClockReading, check_supported
from beam_runtime.errors import ClockUnavailableError

MODEL = "NVIDIA A100-SXM4-80GB"
_CLOCKS_MHZ = tuple(range(210, 1411, 15))


class FileGpus:
    """An actuator over a file made by create().

    Args:
        path: the file.
        gpus: which of its GPUs; all by default.

    Raises:
        ClockUnavailableError: no such file or GPU.
    """

    def __init__(self, path: str | Path, gpus: Sequence[str | int] = ()) -> None:
        self._path = Path(path)
        try:
            there = tuple(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ClockUnavailableError(f"no GPUs in {path}", cause=str(error)) from error
        named = tuple(there[gpu] if isinstance(gpu, int) else gpu for gpu in gpus)
        unknown = set(named) - set(there)
        if unknown:
            raise ClockUnavailableError(f"no GPU {min(unknown)} in {path}")
        self._gpus = named or there
        self._touched = False

    @staticmethod
    def create(path: Path, gpus: int = 1) -> None:
        """Write a file with so many free GPUs."""
        path.write_text(json.dumps({f"GPU-file-{n}": None for n in range(gpus)}), encoding="utf-8")

    @staticmethod
    def locked(path: Path) -> dict[str, int]:
        """The GPUs that are locked, and where."""
        clocks = json.loads(path.read_text(encoding="utf-8"))
        return {gpu: clock for gpu, clock in clocks.items() if clock is not None}

    @property
    def gpus(self) -> tuple[str, ...]:
        """Their names."""
        return self._gpus

    def models(self) -> tuple[str, ...]:
        """What they pass for."""
        return (MODEL,) * len(self._gpus)

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """An A100's list."""
        return _CLOCKS_MHZ

    def set(self, clock_mhz: int) -> None:
        """Lock all of them."""
        check_supported(clock_mhz, _CLOCKS_MHZ)
        self._touched = True
        self._write(clock_mhz)

    def read_back(self) -> tuple[ClockReading, ...]:
        """The locks; the highest clock where there is none."""
        with self._alone() as clocks:
            return tuple(ClockReading(gpu, clocks[gpu] or _CLOCKS_MHZ[-1]) for gpu in self._gpus)

    def release(self, *, orphans: bool = False) -> None:
        """Free all of them, if they were locked here or ``orphans`` are meant."""
        if self._touched or orphans:
            self._write(None)
            self._touched = False

    def _write(self, clock_mhz: int | None) -> None:
        with self._alone() as clocks:
            clocks.update(dict.fromkeys(self._gpus, clock_mhz))
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(clocks), encoding="utf-8")
            temporary.replace(self._path)

    @contextmanager
    def _alone(self) -> Iterator[dict[str, int | None]]:
        with self._path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield json.loads(self._path.read_text(encoding="utf-8"))
