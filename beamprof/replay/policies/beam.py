"""beam: ours. The joint search over clock, chunk, microbatches and pace at every event and half a
second after the last one, with the composer's rules, and calibration by the steps that came back.

It runs what an engine would run: ``Search.decide`` on a Snapshot, corrected by ``Calibration``,
with the stance that the runtime takes.
"""

from collections.abc import Collection
from dataclasses import replace

from beam_runtime.control.calibration import Calibration
from beam_runtime.control.steering_rules import SteeringRules
from beam_runtime.emulator.state import Records
from beam_runtime.search.keepable import Keepable
from beam_runtime.search.policy import Policy as SearchPolicy
from beam_runtime.search.search import Search
from beam_runtime.search.stance import Stance, stance_for
from beam_runtime.types import Correction, Knobs, Rules, Slo, StepShape
from beamprof.replay.policies.base import (
    CHUNK_TOKENS,
    Policy,
    Wake,
)
from beamprof.replay.view import View

# What beam may do beside choosing the clock, each of which can be left out: knobs, then rules.
PARTS = ("chunk", "microbatches", "pace", "jit", "ride", "give-way", "cut", "together")


class Beam(Policy):
    """Joint, idle-aware, paced, calibrated.

    Args:
        name: as the user writes it.
        parts: of PARTS, those that it has; all by default.
        correction: the least margins; by default the stance's.
        search: horizon, dwell, weights; by default the stance's.
    """

    rules = Rules()
    smooths = True
    wakes = Wake.ARRIVAL | Wake.FIRST_TOKEN | Wake.COMPLETION
    refresh_ms = SteeringRules().refresh_ms

    def __init__(
        self,
        name: str,
        parts: Collection[str] = PARTS,
        correction: Correction | None = None,
        search: SearchPolicy | None = None,
    ) -> None:
        super().__init__(name)
        self._parts = parts
        self._floor = correction
        self._policy = search

    def start(self, view: View) -> Knobs:
        """Compile the search; begin fast."""
        stance = stance_for(view.cost, view.limits, view.slo, view.promises)
        stance = with_parts(stance, self._parts)
        self._keepable, self._default = Keepable(view.cost, view.limits), view.slo
        self.rules = stance.rules
        self.correction = self._floor or stance.floor
        self._hopeless = bool(stance.hopeless)
        if self._hopeless:  # as the controller: the engine has its own settings
            self.rules = Rules.vanilla()
            return Knobs(int(view.cost.clocks_mhz[-1]), CHUNK_TOKENS)
        self._calibration = Calibration(view.limits.pp, self.correction, by_gap=stance.by_gap)
        self._arrivals = self._arrived_tokens = 0
        policy = self._policy or stance.policy
        self._search = Search(view.cost, view.limits, rules=self.rules, policy=policy)
        return Knobs(int(view.cost.clocks_mhz[-1]), self._search.chunks[-1])

    def served(self, slo: Slo) -> Slo:
        """As the controller would."""
        return self._keepable.served(slo, self._default)

    @property
    def serves_by(self) -> int:
        """How long answers are taken to be."""
        return self._keepable.answer_tokens

    def decide(self, view: View) -> Knobs:
        """Learn from the steps that came back and the requests that came, then search."""
        if self._hopeless:
            return view.knobs
        switched_ms = view.clock_since_ms + view.limits.clock_delay_ms
        for step in view.returned:
            self._calibration.observe_tokens(int(step["decode_requests"]))
            # A step under way when the clock changed says nothing about either clock.
            if not step["issued_ms"] < switched_ms < step["finished_ms"]:
                self._learn(step, view)
        came = view.arrived_ms[self._arrivals :].tolist()
        for arrived_ms in came:
            tokens = (view.arrived_tokens - self._arrived_tokens) / len(came)
            self._calibration.observe_arrival(arrived_ms, view.longest_wait_slos(), tokens)
        self._arrived_tokens = view.arrived_tokens
        self._arrivals = len(view.arrived_ms)
        for tokens in view.ended_tokens.tolist():
            self._keepable.answered(tokens)
            self._calibration.observe_answer(tokens, len(view.running))
        moment = self._calibration.corrected(view.moment(self.correction))
        self.correction = moment.correction
        return self._search.decide(moment).knobs

    def _learn(self, step: Records, view: View) -> None:
        shape = StepShape(
            int(step["prefill_tokens"]),
            int(step["prefill_context_tokens"]),
            int(step["decode_requests"]),
            int(step["decode_context_tokens"]),
            float(step["prefill_pairs"]),
        )
        predicted_ms = float(view.cost.latency_ms(shape)[int(step["clock"])])
        observed_ms = float(step["busy_ms"]) / view.limits.pp
        self._calibration.observe_step(shape, predicted_ms, observed_ms)


def with_parts(stance: Stance, parts: Collection[str]) -> Stance:
    """The stance without what is not among ``parts``; a knob left out is as vLLM has it."""
    rules, policy = stance.rules, stance.policy
    if "chunk" not in parts:
        policy = replace(policy, chunk_tokens=(CHUNK_TOKENS,))
    rules = replace(
        rules,
        microbatches=rules.microbatches and "microbatches" in parts,
        pace=rules.pace and "pace" in parts,
        just_in_time=rules.just_in_time and "jit" in parts,
        ride_along=rules.ride_along and "ride" in parts,
        give_way=rules.give_way and "give-way" in parts,
        late_cuts_chunk=rules.late_cuts_chunk and "cut" in parts,
        together=rules.together and "together" in parts,
    )
    return replace(stance, rules=rules, policy=policy)
