"""What a policy sees of the plant: the engine now, never what is still to come."""

import numpy as np
from numpy.typing import NDArray

from beam_runtime.kernel.state import (
    ARRIVAL,
    CACHED,
    CHUNK_OWED,
    COMPUTED,
    FLY,
    FLY_COUNT,
    FLY_HEAD,
    FREE_BLOCKS,
    GENERATED,
    LAST,
    LAST_STEP,
    N_FLYING,
    N_PREFILL,
    N_RUNNING,
    N_WAITING,
    RUNNING,
    STAGE_FREE,
    STEPS_BACK,
    TBT_SLO,
    TOTAL,
    TTFT_SLO,
    WAIT_HEAD,
    WAITING,
    State,
)
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Slo,
    Snapshot,
    StepInFlight,
)


class View:
    """The engine at one moment. Only the plant makes and changes it.

    Attributes:
        now_ms: the moment.
        knobs: asked for last.
        limits: of the engine.
        cost: the controller's table; the plant's may be another.
        slo: what requests are promised.
        kv_blocks: KV-cache blocks of the replica.
        returned: the steps that came back since the policy was last asked; columns STEP_* of
            event_loop, the clock as an index.
        arrived_tokens: prompt tokens that have arrived so far.
    """

    def __init__(
        self, cost: StepCost, limits: EngineLimits, slo: Slo, kv_blocks: int, knobs: Knobs
    ) -> None:
        self.cost = cost
        self.limits = limits
        self.slo = slo
        self.kv_blocks = kv_blocks
        self.arrived_tokens = 0
        self.knobs = knobs
        self.now_ms = 0.0
        self.clock_since_ms = float("-inf")
        self.previous_clock_mhz: int | None = None
        self.state: State
        self.returned: NDArray[np.float64]

    @property
    def running(self) -> NDArray[np.int64]:
        """Rows of the running requests, in the engine's order."""
        return self.state.requests[RUNNING, : self.state.at[N_RUNNING]]

    @property
    def waiting(self) -> NDArray[np.int64]:
        """Rows of the requests not admitted, first come first."""
        s = self.state
        n = s.requests.shape[1]
        queue: NDArray[np.int64] = s.requests[
            WAITING, (s.at[WAIT_HEAD] + np.arange(s.at[N_WAITING])) % n
        ]
        return queue

    @property
    def prefill_waits(self) -> bool:
        """Whether any prompt token is still to be computed."""
        return bool(self.state.at[N_PREFILL] > 0 or self.state.at[N_WAITING] > 0)

    def pending_prefill_tokens(self) -> NDArray[np.int64]:
        """Prompt tokens not computed yet, of every request without its first token, FCFS."""
        r = self.state.requests
        rows = np.concatenate([self.running, self.waiting])
        pending = r[TOTAL, rows] - r[COMPUTED, rows]
        prefilling: NDArray[np.int64] = pending[(pending > 0) & ~self._decoding(rows)]
        return prefilling

    def longest_wait_ms(self) -> float:
        """How long the oldest request without all its prompt computed has been waiting."""
        rows = np.concatenate([self.running, self.waiting])
        r = self.state.requests
        rows = rows[(r[TOTAL, rows] > r[COMPUTED, rows]) & ~self._decoding(rows)]
        return float(self.now_ms - self.state.times[ARRIVAL, rows].min()) if len(rows) else 0.0

    def decodes(self) -> tuple[int, int]:
        """(requests that decode, their KV tokens together)."""
        rows = self.running[self._decoding(self.running)]
        return len(rows), int(self.state.requests[COMPUTED, rows].sum())

    def prefill_running(self) -> bool:
        """Whether some prompt is half done."""
        return bool(self.state.at[N_PREFILL] > 0)

    def _decoding(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        r = self.state.requests
        decoding: NDArray[np.bool_] = (
            (r[GENERATED, rows] > 0)
            & (r[COMPUTED, rows] > 0)
            & (r[TOTAL, rows] - r[COMPUTED, rows] <= 1)
        )
        return decoding

    def snapshot(self, correction: Correction) -> Snapshot:
        """The same moment as a controller would see it; a request's name is its row."""
        s, pp = self.state, self.limits.pp
        slots = s.requests.shape[0] - FLY
        flying = [(s.at[FLY_HEAD] + i) % slots for i in range(s.at[N_FLYING])]
        return Snapshot(
            now_ms=self.now_ms,
            limits=self.limits,
            knobs=self.knobs,
            running=self._requests(self.running),
            waiting=self._requests(self.waiting),
            in_flight=tuple(
                StepInFlight(
                    float(s.clock[STAGE_FREE + pp + slot]),
                    tuple(map(str, s.requests[FLY + slot, : s.at[FLY_COUNT + slot]].tolist())),
                )
                for slot in flying
            ),
            stage_free_ms=tuple(s.clock[STAGE_FREE : STAGE_FREE + pp].tolist()),
            free_blocks=int(s.at[FREE_BLOCKS]),
            clock_since_ms=self.clock_since_ms,
            previous_clock_mhz=self.previous_clock_mhz,
            chunk_owed=bool(s.at[CHUNK_OWED]),
            correction=correction,
        )

    def _requests(self, rows: NDArray[np.int64]) -> tuple[RequestState, ...]:
        r, times = self.state.requests, self.state.times
        fields = zip(
            rows.tolist(),
            (r[TOTAL, rows] - r[GENERATED, rows]).tolist(),
            r[COMPUTED, rows].tolist(),
            r[GENERATED, rows].tolist(),
            r[CACHED, rows].tolist(),
            np.maximum(0, r[LAST_STEP, rows] - self.state.at[STEPS_BACK]).tolist(),
            times[ARRIVAL, rows].tolist(),
            times[LAST, rows].tolist(),
            times[TTFT_SLO, rows].tolist(),
            times[TBT_SLO, rows].tolist(),
            strict=True,
        )
        slo = self.slo
        return tuple(
            RequestState(
                str(row),
                prompt,
                arrival_ms,
                slo if (ttft_ms, tbt_ms) == (slo.ttft_ms, slo.tbt_ms) else Slo(ttft_ms, tbt_ms),
                computed,
                generated,
                cached,
                None,
                last_ms if generated else None,
                ahead,
            )
            for row, prompt, computed, generated, cached, ahead, arrival_ms, last_ms, ttft_ms,
            tbt_ms in fields
        )  # fmt: skip
