"""beam: ours. The joint search over clock, chunk, microbatches and pace at every event, with
the composer's rules, and calibration by the steps that came back.

It runs what an engine would run: ``Search.decide`` on a Snapshot, corrected by ``Calibration``,
with the stance that the runtime takes.
"""

from beam_runtime.calibration import Calibration, StepKind
from beam_runtime.search import Policy as SearchPolicy
from beam_runtime.search import Search
from beam_runtime.stance import stance_for
from beam_runtime.types import Correction, Knobs, Rules, StepShape
from beamprof.replay import event_loop as loop
from beamprof.replay.policies.base import Policy, Wake
from beamprof.replay.view import View


class Beam(Policy):
    """Joint, idle-aware, paced, calibrated.

    Args:
        name: as the user writes it.
        rules: of the composer; all four by default.
        correction: the least margins; by default the stance's.
        search: horizon, dwell, weights; by default the stance's.
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
        self._rules = rules
        self._floor = correction
        self._policy = search

    def start(self, view: View) -> Knobs:
        """Compile the search; begin fast."""
        stance = stance_for(view.cost, view.limits, view.slo, self._rules)
        self.rules = stance.rules
        self.correction = self._floor or stance.floor
        self._calibration = Calibration(view.limits.pp, self.correction)
        policy = self._policy or stance.policy
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
        return self._search.decide(view.snapshot(self.correction)).knobs

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
