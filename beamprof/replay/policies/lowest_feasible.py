"""lowest-feasible: at every event the lowest clock whose predicted latency keeps the SLO.

Clock only, chunk 256, plain vLLM scheduling. Latency falls with the clock, so the lowest that
is in time is found by halving; the prediction is the emulator's.
"""

from beam_runtime.search.search import Search
from beam_runtime.types import Correction, Knobs
from beamprof.replay.policies.base import CHUNK_TOKENS, Policy, Wake
from beamprof.replay.view import View


class LowestFeasible(Policy):
    """Slow down as far as the SLO allows, whatever that costs in energy."""

    wakes = Wake.ARRIVAL | Wake.COMPLETION
    max_batched_tokens = CHUNK_TOKENS
    correction = Correction()

    def start(self, view: View) -> Knobs:
        """Make the emulator ready."""
        self._search = Search(view.cost, view.limits, rules=self.rules)
        self._clocks: list[int] = view.cost.clocks_mhz.tolist()
        return Knobs(self._clocks[-1], CHUNK_TOKENS)

    def decide(self, view: View) -> Knobs:
        """Halve the clocks until the lowest in time is left; none: the highest."""
        state = view.moment(self.correction)
        low, high = 0, len(self._clocks) - 1
        while low < high:
            middle = (low + high) // 2
            knobs = Knobs(self._clocks[middle], CHUNK_TOKENS)
            if self._search.forecast(state, knobs).feasible:
                high = middle
            else:
                low = middle + 1
        return Knobs(self._clocks[low], CHUNK_TOKENS)
