"""The owner of an engine's columns: gives out a row to each request, by its id.

A row keeps its number until its request leaves; then another may get it. Order is kept beside
the columns, as long as nobody plays on them: ``gathered`` puts a copy in order for that.
"""

import math

import numpy as np

from beam_runtime.emulator.moment import gathered
from beam_runtime.emulator.state import REQUEST, Records, State, empty_state
from beam_runtime.types import EngineLimits, Slo

_FIRST_ROWS = 64


class Rows:
    """Requests and steps in flight of one engine.

    Args:
        limits: of the engine.

    Attributes:
        state: the columns; row numbers of running and waiting requests stand in the two below.
        running: row by request id, in the engine's order.
        waiting: row by request id, first come first.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self.state = empty_state(_FIRST_ROWS, limits.max_steps_in_flight, limits.pp)
        self.running: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self._free = list(range(_FIRST_ROWS - 1, -1, -1))

    def find(self, request_id: str) -> int | None:
        """The row of a request; None where it is unknown."""
        row = self.running.get(request_id)
        return self.waiting.get(request_id) if row is None else row

    def add(
        self, request_id: str, prompt_tokens: int, arrival_ms: float, slo: Slo, cached_tokens: int
    ) -> int:
        """A new request at the end of the queue; its row."""
        if not self._free:
            self._grow()
        row = self.waiting[request_id] = self._free.pop()
        record = self.state.requests[row]
        record["total_tokens"], record["cached_tokens"] = prompt_tokens, cached_tokens
        record["arrival_ms"] = arrival_ms
        record["ttft_slo_ms"], record["tbt_slo_ms"] = slo.ttft_ms, slo.token_ms
        record["last_token_ms"] = record["ttft_ms"] = math.nan
        return row

    def remove(self, request_id: str) -> bool:
        """It is gone, whatever is in flight of it; False where it is unknown."""
        row = self.running.pop(request_id, None)
        if row is None:
            row = self.waiting.pop(request_id, None)
        if row is None:
            return False
        members = self.state.members
        members[members == row] = -1
        self.state.requests[row] = np.zeros((), REQUEST)
        self._free.append(row)
        return True

    def admit(self, request_id: str) -> int:
        """A waiting request runs; its row."""
        row = self.running[request_id] = self.waiting.pop(request_id)
        return row

    def preempt(self, request_id: str) -> int:
        """A running request waits before all others; its row."""
        row = self.running.pop(request_id)
        self.waiting = {request_id: row, **self.waiting}
        return row

    def issue(self, rows: list[int]) -> None:
        """A step is in flight that brings these a token. More than fit: the oldest is lost."""
        engine, slots = self.state.engine[0], len(self.state.flights)
        if engine["flying"] == slots - 1:
            self.finish()
        slot = (engine["flying_head"] + engine["flying"]) % slots
        self.state.flights["tokens"][slot] = len(rows)
        self.state.members[slot, : len(rows)] = rows
        engine["flying"] += 1

    def finish(self) -> list[int] | None:
        """The oldest step in flight is back: rows that it brings a token; None without one."""
        engine = self.state.engine[0]
        if not engine["flying"]:
            return None
        slot = int(engine["flying_head"])
        rows = self.state.members[slot, : self.state.flights["tokens"][slot]].tolist()
        engine["flying_head"] = (slot + 1) % len(self.state.flights)
        engine["flying"] -= 1
        engine["steps_back"] += 1
        return [row for row in rows if row >= 0]

    def members(self, number: int) -> list[int]:
        """Rows that the ``number``-th of the steps in flight brings a token."""
        slot = (int(self.state.engine["flying_head"][0]) + number) % len(self.state.flights)
        rows: list[int] = self.state.members[slot, : self.state.flights["tokens"][slot]].tolist()
        return rows

    @property
    def next_step(self) -> int:
        """The number of the step that would be issued next, as steps_back counts."""
        engine = self.state.engine[0]
        return int(engine["steps_back"] + engine["flying"]) + 1

    def running_records(self) -> Records:
        """A copy of the running requests' records, in order."""
        return self.state.requests[list(self.running.values())]

    def copy(self, finishes_ms: tuple[float, ...], now_ms: float) -> State:
        """To play on, with the times at which steps in flight are expected back."""
        engine = self.state.engine[0]
        slots = len(self.state.flights)
        for number, finish_ms in zip(range(engine["flying"]), finishes_ms, strict=False):
            self.state.flights["finish_ms"][(engine["flying_head"] + number) % slots] = finish_ms
        running = np.fromiter(self.running.values(), np.int64, len(self.running))
        waiting = np.fromiter(self.waiting.values(), np.int64, len(self.waiting))
        copy = gathered(self.state, running, waiting)
        # A token that nobody timed counts from now on.
        last_ms = copy.requests["last_token_ms"]
        last_ms[np.isnan(last_ms)] = now_ms
        return copy

    def _grow(self) -> None:
        """Twice the rows."""
        old, rows = self.state, len(self.state.requests)
        limits = self._limits
        self.state = empty_state(2 * rows, limits.max_steps_in_flight, limits.pp)
        self.state.engine[:], self.state.flights[:] = old.engine, old.flights
        self.state.requests[:rows] = old.requests
        self.state.members[:, :rows] = old.members
        self._free = list(range(2 * rows - 1, rows - 1, -1))
