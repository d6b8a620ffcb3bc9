"""A power limit: what one `nvidia-smi -pl` line does. The driver lowers the clock while GPUs draw
more than they may, and raises it again when they do not.

The driver's loop is modelled as it is seen from outside: every 100 ms it takes the highest clock at
which what ran since would have stayed within the limit, waiting included. What it does not know:
that single passes may exceed the limit for milliseconds, and how one vendor's loop differs from
another's.
"""

import numpy as np
from numpy.typing import NDArray

from beam_runtime.emulator.state import Records
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.types import Knobs, StepShape
from beamprof.replay.policies.base import CHUNK_TOKENS, Policy
from beamprof.replay.view import View

TICK_MS = 100.0
# Drivers take limits down to a quarter or a half of a board's power (A100: 100 of 400 W).
MIN_LIMIT_SHARE = 0.25
_SHAPE = ("prefill_tokens", "prefill_context_tokens", "decode_requests", "decode_context_tokens")


class PowerLimit(Policy):
    """One limit for ever, everything else as vLLM does it.

    Args:
        name: as the user writes it.
        limit_w: of each GPU.
        tp: GPUs of a stage, whose power the table gives together.
        chunk_tokens: vLLM's max_num_batched_tokens.
    """

    tick_ms = TICK_MS

    def __init__(
        self, name: str, limit_w: float, tp: int, chunk_tokens: int = CHUNK_TOKENS
    ) -> None:
        super().__init__(name)
        self.limit_w = limit_w
        self._stage_w = limit_w * tp
        self.chunk_tokens = chunk_tokens
        self.max_batched_tokens = chunk_tokens

    def start(self, view: View) -> Knobs:
        """The highest clock, until somebody draws too much."""
        return Knobs(int(view.cost.clocks_mhz[-1]), self.chunk_tokens)

    def decide(self, view: View) -> Knobs:
        """The highest clock within the limit for what ran since the last look."""
        if len(view.returned) == 0:
            running = bool(view.state.engine["flying"][0])
            return view.knobs if running else self.start(view)
        within = np.flatnonzero(stage_power_w(view.returned, view, TICK_MS) <= self._stage_w)
        at = int(within[-1]) if len(within) else 0
        return Knobs(int(view.cost.clocks_mhz[at]), self.chunk_tokens)


def stage_power_w(steps: Records, view: View, window_ms: float) -> NDArray[np.float64]:
    """(clocks,) what a stage draws at each clock, passes and waiting, if it stays as busy."""
    mean = {name: round(float(steps[name].mean())) for name in _SHAPE}
    shape = StepShape(**mean, prefill_pairs=float(steps["prefill_pairs"].mean()))
    cost = view.cost
    busy = min(1.0, float(steps["busy_ms"].sum()) / view.limits.pp / window_ms)
    pass_w = cost.energy_j(shape) / cost.latency_ms(shape) * 1e3
    power_w: NDArray[np.float64] = busy * pass_w + (1.0 - busy) * cost.idle_power_w
    return power_w


def highest_pass_w(table: PerfTable) -> float:
    """What each GPU draws in the pass that draws most, by the table's rows."""
    rows = table.rows(RowKind.FORWARD)
    power_w = rows["energy_j"] / rows["latency_ms"] * 1e3
    return float(power_w.max()) / table.tp
