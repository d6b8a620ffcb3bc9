"""beam: ours. The joint search over clock, chunk, microbatches and pace at every event, with
the composer's rules, and calibration by the steps that came back.

It runs what an engine would run: ``Search.decide`` on a Snapshot, corrected by ``Calibration``.

Its settings were found on the headline hour (benchmarks/energy.py shows what they give elsewhere):
a TTFT margin that leaves room for prompts not yet arrived, a TBT margin that only noise needs to
be wider, and chunks just above the half of the largest step, where a prompt's chunk still fits
beside all the decodes that ride in it.
"""

from dataclasses import replace

from beam_runtime.calibration import Calibration, StepKind
from beam_runtime.search import Policy as SearchPolicy
from beam_runtime.search import Search
from beam_runtime.types import Correction, Knobs, Rules, StepShape
from beamprof.replay import event_loop as loop
from beamprof.replay.policies.base import Policy, Wake
from beamprof.replay.view import View

TTFT_MARGIN, TBT_MARGIN = 0.15, 0.025  # shares of the SLO; calibration may widen them
SEATS = 0.75  # share of max_num_seqs above which nothing is paced
# In 32nds of the largest step.
CHUNKS_32 = (8, 12, 16, 17, 18, 19, 20, 21, 22, 23, 24, 28, 32)


class Beam(Policy):
    """Joint, idle-aware, paced, calibrated.

    Args:
        name: as the user writes it.
        rules: of the composer; all four by default.
        correction: the least margins; by default shares of the SLO.
        search: horizon, dwell, weights; by default the library's, with CHUNKS_32.
    """

    rules = Rules()
    wakes = Wake.ARRIVAL | Wake.FIRST_TOKEN | Wake.COMPLETION

    def __init__(
        self,
        name: str,
        rules: Rules | None = None,
        correction: Correction | None = None,
        search: SearchPolicy | None = None,
    ) -> None:
        super().__init__(name)
        self._rules = rules or Rules()
        self._floor = correction
        self._policy = search

    def start(self, view: View) -> Knobs:
        """Compile the search; begin fast."""
        slo, largest = view.slo, view.limits.max_batched_tokens
        self.correction = self._floor or Correction(
            ttft_margin_ms=TTFT_MARGIN * slo.ttft_ms, tbt_margin_ms=TBT_MARGIN * slo.tbt_ms
        )
        chunks = tuple(share * largest // 32 for share in CHUNKS_32)
        self.rules = self._rules
        if not self._half_fits(view):
            # Decodes that ride in any chunk worth its weights are late. To send them ahead of
            # each would halve the prompts' pace and still be late: keep to one chunk size.
            chunks = (largest // 2,)
            self.rules = replace(self._rules, decode_first_when_late=False)
        policy = self._policy or SearchPolicy(chunk_tokens=chunks)
        self._calibration = Calibration(view.limits.pp, self.correction)
        self._search = Search(view.cost, view.limits, rules=self.rules, policy=policy)
        return Knobs(int(view.cost.clocks_mhz[-1]), self._search.chunks[-1])

    def decide(self, view: View) -> Knobs:
        """Learn from the steps that came back, then search."""
        switched_ms = view.clock_since_ms + view.limits.clock_delay_ms
        for step in view.returned:
            # A step under way when the clock changed says nothing about either clock.
            if not step[loop.ISSUED_MS] < switched_ms < step[loop.FINISHED_MS]:
                self._learn(step, view)
        self.correction = self._calibration.correction
        knobs = self._search.decide(view.snapshot(self.correction)).knobs
        # Paced requests stay longer, so more of them run at one time (Little's law); the search
        # does not know who will come, so seats are kept free for them here.
        crowded = len(view.running) > SEATS * view.limits.max_num_seqs
        return replace(knobs, pace_ms=0.0) if crowded else knobs

    def _half_fits(self, view: View) -> bool:
        """Whether a token that rides in a chunk of half the largest step can be in time."""
        step = StepShape(view.limits.max_batched_tokens // 2)
        pass_ms = float(view.cost.latency_ms(step).min()) + view.limits.host_gap_ms
        return view.limits.pp * pass_ms + self.correction.tbt_margin_ms <= view.slo.tbt_ms

    def _learn(self, step: "loop.Floats", view: View) -> None:
        shape = StepShape(
            int(step[loop.STEP_CHUNK]),
            int(step[loop.STEP_CONTEXT]),
            int(step[loop.STEP_DECODES]),
            int(step[loop.STEP_DECODE_CONTEXT]),
            float(step[loop.STEP_PAIRS]),
        )
        kind = StepKind.PREFILL if shape.prefill_tokens else StepKind.DECODE
        predicted_ms = float(view.cost.latency_ms(shape)[int(step[loop.STEP_CLOCK])])
        self._calibration.observe_step(
            kind, predicted_ms, float(step[loop.STEP_BUSY_MS]) / view.limits.pp
        )
