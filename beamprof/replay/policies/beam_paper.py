"""beam-paper: the published controller, literally (design/control.md).

With prefill waiting, every chunk x clock is judged by closed formulas

    TBT  = (t + o) pp
    TTFT = (floor(n / (chunk - D div pp)) + pp - 1)(t + o) + t(rest) + longest wait
    E    = e pp for each chunk

n all waiting prompt tokens, D running requests, t and e at the next profiled size, o 12 ms.
Without prefill every microbatch count x clock, b = ceil(D / m):

    TBT = (t(b, context / m) + 3 ms pp) pp        E = e(b) m

Least E that keeps both SLOs. The decode clock is applied after five decode-only steps; the
chunk moves one step at a time while a prefill runs. Where nothing is in time: the highest clock,
with chunk 256 if it is TTFT that cannot be kept, 128 if it is TBT.
"""

import numpy as np
from numpy.typing import NDArray

from beam_runtime.types import Knobs, StepShape
from beamprof.replay.policies.base import Policy, Wake
from beamprof.replay.view import View

CHUNKS = (128, 256, 320, 384, 448, 512)
LOWEST_MHZ = 500
PREFILL_OVERHEAD_MS = 12.0
DECODE_OVERHEAD_MS = 3.0  # per stage
DECODE_STEPS = 5
TTFT_CHUNK, TBT_CHUNK = 256, 128

Floats = NDArray[np.float64]


class BeamPaper(Policy):
    """BEAM as its authors describe it."""

    wakes = Wake.ARRIVAL | Wake.COMPLETION | Wake.STEP
    one_step_per_microbatch = True
    max_batched_tokens = CHUNKS[-1]

    def start(self, view: View) -> Knobs:
        """Begin as vLLM would."""
        self._usable = np.flatnonzero(view.cost.clocks_mhz >= LOWEST_MHZ)
        self._decode_steps = 0
        self._requests = -1
        self._decode: tuple[int, int] | None = None
        return Knobs(int(view.cost.clocks_mhz[-1]), TTFT_CHUNK, view.limits.pp)

    def decide(self, view: View) -> Knobs:
        """Prefill or decode, by what waits."""
        if view.prefill_waits:
            self._decode_steps, self._decode, self._requests = 0, None, -1
            return self._prefill(view, int(view.pending_prefill_tokens().sum()))
        steps = view.returned["prefill_tokens"]
        self._decode_steps = self._decode_steps + len(steps) if not steps.any() else 0
        requests, context = view.decodes()
        if requests == 0:
            return view.knobs
        if requests != self._requests:
            self._requests = requests
            self._decode = self._best_decode(view, requests, context)
        if self._decode is None:
            return view.knobs
        clock_mhz, microbatches = self._decode
        ripe = self._decode_steps >= DECODE_STEPS
        return Knobs(
            clock_mhz if ripe else view.knobs.clock_mhz, view.knobs.chunk_tokens, microbatches
        )

    def _prefill(self, view: View, tokens: int) -> Knobs:
        pp, slo = view.limits.pp, view.slo
        requests, context = view.decodes()
        riding, riding_context = requests // pp, context // pp
        waited_ms = view.longest_wait_ms()
        best: tuple[float, int, int] | None = None
        clock: int
        tbt_kept = False
        for chunk in CHUNKS:
            room = chunk - riding
            if room <= 0:
                continue
            pass_ms, pass_j = self._at(view, chunk, riding, riding_context)
            chunks, rest = divmod(tokens, room)
            rest_ms, rest_j = self._at(view, rest + riding, riding, riding_context)
            tbt_ms = (pass_ms + PREFILL_OVERHEAD_MS) * pp
            ttft_ms = (chunks + pp - 1) * (pass_ms + PREFILL_OVERHEAD_MS) + rest_ms + waited_ms
            energy_j = pp * (chunks * pass_j + rest_j)
            in_time = tbt_ms <= slo.token_ms
            tbt_kept = tbt_kept or bool(in_time.any())
            for clock in np.flatnonzero(in_time & (ttft_ms <= slo.ttft_ms)).tolist():
                if best is None or energy_j[clock] < best[0]:
                    best = (float(energy_j[clock]), int(self._usable[clock]), chunk)
        if best is None:
            chunk = TTFT_CHUNK if tbt_kept else TBT_CHUNK
            return Knobs(int(view.cost.clocks_mhz[-1]), self._towards(chunk, view), pp)
        return Knobs(int(view.cost.clocks_mhz[best[1]]), self._towards(best[2], view), pp)

    def _best_decode(self, view: View, requests: int, context: int) -> tuple[int, int]:
        pp = view.limits.pp
        best: tuple[float, int, int] | None = None
        for microbatches in range(1, pp + 1):
            size = -(-requests // microbatches)
            pass_ms, pass_j = self._at(view, size, size, context // microbatches)
            tbt_ms = (pass_ms + DECODE_OVERHEAD_MS * pp) * pp
            energy_j = pass_j * microbatches
            for clock in np.flatnonzero(tbt_ms <= view.slo.token_ms).tolist():
                if best is None or energy_j[clock] < best[0]:
                    best = (float(energy_j[clock]), int(self._usable[clock]), microbatches)
        at = len(view.cost.clocks_mhz) - 1 if best is None else best[1]
        return int(view.cost.clocks_mhz[at]), pp if best is None else best[2]

    def _at(self, view: View, tokens: int, decodes: int, context: int) -> tuple[Floats, Floats]:
        """(latency, energy) at the usable clocks and the next profiled size."""
        if tokens == 0:
            return np.zeros(len(self._usable)), np.zeros(len(self._usable))
        edges = view.cost.edges_tokens
        size = int(edges[min(int(np.searchsorted(edges, tokens)), len(edges) - 2)])
        alone = tokens == decodes
        step = (
            StepShape(decode_requests=size, decode_context_tokens=context)
            if alone
            else StepShape(max(1, size - decodes), 0, decodes, context)
        )
        return view.cost.latency_ms(step)[self._usable], view.cost.energy_j(step)[self._usable]

    def _towards(self, chunk: int, view: View) -> int:
        """One place along CHUNKS at a time while a prompt is half done."""
        now = view.knobs.chunk_tokens
        if not view.prefill_running() or now not in CHUNKS:
            return chunk
        at, to = CHUNKS.index(now), CHUNKS.index(chunk)
        return CHUNKS[at + (to > at) - (to < at)]
