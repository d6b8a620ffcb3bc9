"""A backend that is a formula, and requests for a small sweep on it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.errors import BackendError
from beamprof.profiler.choose_backend import Choice
from beamprof.profiler.plan import ClockChoice
from beamprof.profiler.profile import ProfileRequest
from beamprof.profiler.spec import resolve_spec

FLAGS = {"model": "llama3-8b", "clocks": "510,1410", "max_tokens": 256, "trials": 2,
         "window": "1s", "budget": "1h"}  # fmt: skip


class FakeBackend:
    """Numbers from a formula, a log of every call, and a pause in each trial."""

    name = "fake"

    def __init__(self, log: Path | None = None, pause_s: float = 0.0) -> None:
        self.log = log
        self.pause_s = pause_s
        self.ran: list[Cell] = []
        self.closed = 0
        self.refuses: Callable[[Cell], bool] = lambda cell: False

    def open(self) -> Mapping[str, str]:
        self._say("open")
        return {"device": "fake", "energy_source": "nvml counter", "driver": "1.0",
                "engine": "fake", "engine_version": "1", "gpu_name": "Fake"}  # fmt: skip

    def run(self, cell: Cell) -> Measurement:
        if self.refuses(cell):
            raise BackendError(f"{cell.decode_requests} requests do not fit into memory")
        self._say(f"begin {cell}")
        self.ran.append(cell)
        time.sleep(self.pause_s)
        # Two trials of a cell differ by 2 % around the formula.
        wobble = 1.0 + (0.01 if Counter(self.ran)[cell] % 2 else -0.01)
        if cell.kind is RowKind.IDLE:
            return Measurement(1000.0, 80.0 * wobble, Source.MEASURED, clock_reached_mhz=1410.0)
        latency_ms = (1.0 + cell.shape.tokens / 50) * 1410 / (cell.clock_mhz or 1410) * wobble
        self._say(f"end {cell}")
        return Measurement(
            latency_ms,
            latency_ms * 0.3,
            Source.MEASURED,
            latency_ci_ms=0.001,
            clock_reached_mhz=float(cell.clock_mhz or 1395),
            passes=10,
        )

    def estimate_s(self, cell: Cell) -> float:
        del cell
        return self.pause_s

    def close(self) -> None:
        self.closed += 1
        self._say("close")

    def _say(self, text: str) -> None:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(text + "\n")


def offer(backend: FakeBackend, device: str = "fake") -> Choice:
    clocks = ClockChoice(device, tuple(range(210, 1411, 15)))
    return Choice("fake", "fake, as this is a test", clocks, None, lambda plan: backend)


def request(
    output: Path, *, force: bool = False, fresh: bool = False, **flags: object
) -> ProfileRequest:
    return ProfileRequest(resolve_spec({**FLAGS, **flags}), output, force=force, fresh=fresh)
