"""The owner of an engine's columns: gives out a row to each request, by its id.

A row keeps its number until its request leaves; then another may get it. Order and steps in flight
are kept beside the columns, as long as nobody plays on them: ``copy`` puts them in for that.
"""

import math
from collections import deque

import numpy as np

from beam_runtime.emulator.moment import gathered
from beam_runtime.emulator.promises import promise
from beam_runtime.emulator.state import REQUEST, Ints, Records, State, empty_state
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
        flights: rows that each step in flight brings a token, oldest first.
        steps_back: that have come back so far.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self.state = empty_state(_FIRST_ROWS, limits.max_steps_in_flight, limits.pp)
        self.running: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.flights: deque[Ints] = deque()
        self.steps_back = 0
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
        promise(record, slo)
        record["first_token_ms"] = record["last_token_ms"] = record["ttft_ms"] = math.nan
        return row

    def remove(self, request_id: str) -> bool:
        """It is gone, whatever is in flight of it; False where it is unknown."""
        row = self.running.pop(request_id, None)
        if row is None:
            row = self.waiting.pop(request_id, None)
        if row is None:
            return False
        self.flights = deque(rows[rows != row] for rows in self.flights)
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

    def issue(self, rows: Ints) -> None:
        """A step is in flight that brings these a token. More than fit: the oldest is lost."""
        if len(self.flights) == len(self.state.flights) - 1:
            self.finish()
        if len(rows) > len(self.running):  # some were named more than once
            rows = np.unique(rows)
        self.flights.append(rows)

    def finish(self) -> Ints | None:
        """The oldest step in flight is back: rows that it brings a token; None without one."""
        if not self.flights:
            return None
        self.steps_back += 1
        return self.flights.popleft()

    @property
    def next_step(self) -> int:
        """The number of the step that would be issued next, as steps_back counts."""
        return self.steps_back + len(self.flights) + 1

    def running_records(self) -> Records:
        """A copy of the running requests' records, in order."""
        return self.state.requests[list(self.running.values())]

    def copy(self, finishes_ms: tuple[float, ...], now_ms: float) -> State:
        """To play on, with the times at which steps in flight are expected back."""
        state, engine = self.state, self.state.engine[0]
        engine["flying"], engine["steps_back"] = len(self.flights), self.steps_back
        times_ms = (*finishes_ms, *[now_ms] * len(self.flights))
        for number, rows in enumerate(self.flights):
            state.flights[number] = (len(rows), times_ms[number], math.inf)
            state.members[number, : len(rows)] = rows
        running = np.fromiter(self.running.values(), np.int64, len(self.running))
        waiting = np.fromiter(self.waiting.values(), np.int64, len(self.waiting))
        return gathered(state, running, waiting, now_ms)

    def _grow(self) -> None:
        """Twice the rows."""
        old, rows = self.state, len(self.state.requests)
        limits = self._limits
        self.state = empty_state(2 * rows, limits.max_steps_in_flight, limits.pp)
        self.state.engine[:] = old.engine
        self.state.requests[:rows] = old.requests
        self._free = list(range(2 * rows - 1, rows - 1, -1))
