"""What a policy sees of the plant: the engine now, never what is still to come."""

import numpy as np
from numpy.typing import NDArray

from beam_runtime.emulator.moment import Moment, gathered
from beam_runtime.emulator.promises import waited_slos
from beam_runtime.emulator.state import Records, State
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, Knobs, Slo


class View:
    """The engine at one moment. Only the plant makes and changes it.

    Attributes:
        now_ms: the moment.
        knobs: asked for last.
        limits: of the engine.
        cost: the controller's table; the plant's may be another.
        slo: what requests are promised.
        promises: whatever else any of them is promised.
        kv_blocks: KV-cache blocks of the replica.
        returned: the steps that came back since the policy was last asked; of
            event_loop.STEP, the clock as an index.
        arrived_tokens: prompt tokens that have arrived so far.
        arrived_ms: when each of those requests came to the engine.
        ended_tokens: of answers that have ended since the policy was last asked.
    """

    def __init__(
        self, cost: StepCost, limits: EngineLimits, slo: Slo, kv_blocks: int, knobs: Knobs
    ) -> None:
        self.cost = cost
        self.limits = limits
        self.slo = slo
        self.promises: tuple[Slo, ...] = ()
        self.kv_blocks = kv_blocks
        self.arrived_tokens = 0
        self.arrived_ms: NDArray[np.float64] = np.zeros(0)
        self.ended_tokens: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.knobs = knobs
        self.now_ms = 0.0
        self.clock_since_ms = float("-inf")
        self.previous_clock_mhz: int | None = None
        self.state: State
        self.returned: Records

    @property
    def running(self) -> NDArray[np.int64]:
        """Rows of the running requests, in the engine's order."""
        rows: NDArray[np.int64] = self.state.places["running"][: self._engine["running"]]
        return rows

    @property
    def waiting(self) -> NDArray[np.int64]:
        """Rows of the requests not admitted, first come first."""
        numbers = self._engine["waiting_head"] + np.arange(self._engine["waiting"])
        rows: NDArray[np.int64] = self.state.places["waiting"][numbers % len(self.state.places)]
        return rows

    @property
    def prefill_waits(self) -> bool:
        """Whether any prompt token is still to be computed."""
        return bool(self._engine["prefilling"] > 0 or self._engine["waiting"] > 0)

    def pending_prefill_tokens(self) -> NDArray[np.int64]:
        """Prompt tokens not computed yet, of every request without its first token, FCFS."""
        rows = np.concatenate([self.running, self.waiting])
        pending, decoding = self._pending(rows)
        prefilling: NDArray[np.int64] = pending[(pending > 0) & ~decoding]
        return prefilling

    def longest_wait_ms(self) -> float:
        """How long the oldest request without all its prompt computed has been waiting."""
        rows = np.concatenate([self.running, self.waiting])
        pending, decoding = self._pending(rows)
        arrivals_ms = self.state.requests["arrival_ms"][rows[(pending > 0) & ~decoding]]
        return float(self.now_ms - arrivals_ms.min()) if len(arrivals_ms) else 0.0

    def longest_wait_slos(self) -> float:
        """How long the oldest request without its first token has waited, in its TTFT SLO."""
        records = self.state.requests[np.concatenate([self.running, self.waiting])]
        return waited_slos(records, self.now_ms)

    def decodes(self) -> tuple[int, int]:
        """(requests that decode, their KV tokens together)."""
        rows = self.running
        rows = rows[self._pending(rows)[1]]
        return len(rows), int(self.state.requests["computed_tokens"][rows].sum())

    def prefill_running(self) -> bool:
        """Whether some prompt is half done."""
        return bool(self._engine["prefilling"] > 0)

    def moment(self, correction: Correction) -> Moment:
        """The same moment as a controller would see it; a request's name is its row."""
        running, waiting = self.running, self.waiting
        return Moment(
            self.now_ms,
            self.limits,
            self.knobs,
            correction,
            gathered(self.state, running, waiting, self.now_ms),
            list(map(str, (*running.tolist(), *waiting.tolist()))),
            (),
            self.clock_since_ms,
            self.previous_clock_mhz,
        )

    @property
    def _engine(self) -> Records:
        return self.state.engine[0]

    def _pending(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of these requests the tokens to be computed, and whether they decode."""
        requests = self.state.requests
        computed = requests["computed_tokens"][rows]
        waits = computed == 0  # then its prefix-cache hit counts
        computed = np.where(waits, requests["cached_tokens"][rows], computed)
        pending = requests["total_tokens"][rows] - computed
        decoding = (requests["generated_tokens"][rows] > 0) & ~waits & (pending <= 1)
        return pending, decoding
