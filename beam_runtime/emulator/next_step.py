"""compose for an engine's own thread: one answer, in microseconds.

An adapter writes the requests into ``state``, running ones first, and asks. That the pipeline
has room is looked at before: nothing is read then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beam_runtime.emulator.moves import composed
from beam_runtime.emulator.setup import HOLD, Setting, lasting_setting, make_setup, make_tables
from beam_runtime.emulator.state import PREFILL, READY, Records, empty_state
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, Knobs, Rules


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do now.

    Attributes:
        until_ms: for a hold, when it ends by itself; None = a step goes now.
        budget_tokens: of the step.
        left_out: rows of running requests that could go and must not.
        each_tokens: most tokens that any prompt may have of the step; 0: as many as fit.
    """

    until_ms: float | None
    budget_tokens: int = 0
    left_out: tuple[int, ...] = ()
    each_tokens: int = 0


class NextStep:
    """Asks the composer about the pipeline's entrance being free.

    Args:
        cost: step costs.
        limits: of the engine.

    Attributes:
        state: to be filled; row i is the i-th running request, the waiting ones follow.
        rows: how many requests fit.
    """

    def __init__(self, cost: StepCost, limits: EngineLimits) -> None:
        self._cost = cost
        self._limits = limits
        self._tables = make_tables(cost, limits.max_batched_tokens + limits.max_num_seqs)
        self.rows = 2 * limits.max_num_seqs
        self.state = empty_state(self.rows, limits.max_steps_in_flight, limits.pp)
        self.state.places["running"] = np.arange(self.rows)
        self._given: tuple[Knobs, Correction, Rules] | None = None
        self._setup: Records
        self._setting: Setting
        # Compiled here, so that no step ever waits for it.
        own = Knobs(int(cost.clocks_mhz[-1]), limits.max_batched_tokens)
        free_ms = (0.0,) * limits.pp
        self.ask(0, 0, 0.0, own, Correction(), Rules(), free_ms, 0)

    def ask(
        self,
        running: int,
        waiting: int,
        now_ms: float,
        knobs: Knobs,
        correction: Correction,
        rules: Rules,
        stage_free_ms: tuple[float, ...],
        free_blocks: int,
        *,
        flying: Sequence[tuple[float, Sequence[int]]] = (),
    ) -> Answer:
        """What to do with the requests in the first rows.

        Args:
            running: rows of requests that run, in the engine's order.
            waiting: rows behind them that wait, in the order of their admission.
            now_ms: the moment.
            knobs: to follow.
            correction: what calibration learnt.
            rules: which of the composer's rules hold.
            stage_free_ms: see Snapshot.
            free_blocks: see Snapshot.
            flying: steps in flight, the oldest first: when each is back, and the rows that
                get a token from it. Of interest only while there is prefill.
        """
        self._follow(knobs, correction, rules)
        state = self.state
        engine = state.engine[0]
        engine["running"], engine["waiting"], engine["waiting_head"] = running, waiting, 0
        engine["free_blocks"] = free_blocks
        engine["flying"], engine["flying_head"] = len(flying), 0
        state.places["waiting"][:waiting] = state.places["running"][running : running + waiting]
        state.stage_free_ms[:] = stage_free_ms
        for slot, (back_ms, rows) in enumerate(flying):
            state.flights[slot] = (len(rows), back_ms, np.inf)
            state.members[slot, : len(rows)] = rows
        answer, until_ms, batch, hides, budget_tokens = composed(
            state, self._setting, now_ms, self._setup, self._tables
        )
        if answer == HOLD:
            return Answer(until_ms)
        left_out: tuple[int, ...] = ()
        if hides or batch.decodes < engine["ready"]:
            left_out = self._left_out(running, batch.items, prompts=hides)
        if hides or batch.chunk_tokens:
            budget_tokens = batch.decodes + batch.chunk_tokens
        # Else never less than a chunk's budget: the head of the queue may fit by a prefix-cache
        # hit that the composer does not know of.
        return Answer(None, budget_tokens, left_out, batch.each_tokens)

    def _left_out(self, running: int, items: int, *, prompts: bool) -> tuple[int, ...]:
        """Rows of running requests that could go and were not chosen.

        In a step with all of prompts one that got nothing lost to the budget, as it will in vLLM.
        """
        kinds = self.state.requests["kind"][:running]
        could = (kinds == READY) | (kinds == PREFILL) if prompts else kinds == READY
        chosen = self.state.places["scheduled"][:items]
        could[chosen[chosen < running]] = False
        return tuple(np.flatnonzero(could).tolist())

    def _follow(self, knobs: Knobs, correction: Correction, rules: Rules) -> None:
        """Orders seldom change, so what follows from them is kept."""
        given = self._given
        if given and given[0] is knobs and given[1] is correction and given[2] is rules:
            return
        self._given = knobs, correction, rules
        self._setup = make_setup(self._limits, rules, correction)
        self._setting = lasting_setting(self._cost, knobs)
