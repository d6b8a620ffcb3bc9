"""compose for an engine's own thread: a state read afresh, one answer, in microseconds.

Whoever uses it writes one column per request, running ones first, and asks. It says what
emulator.composer would, which the adapter's tests hold it to. That the pipeline has room is
looked at before: nothing is read then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beam_runtime.emulator.pipeline import clock_index
from beam_runtime.kernel.composer import STEP, classify, compose
from beam_runtime.kernel.jit import brief_entry
from beam_runtime.kernel.pack import pack_engine, pack_tables
from beam_runtime.kernel.state import (
    CACHED,
    CHUNK_OWED,
    COMPUTED,
    DUE,
    FLY,
    FLY_COUNT,
    FREE_BLOCKS,
    GENERATED,
    ITEM,
    KEY,
    KIND,
    LAST,
    N_DECODING,
    N_FLYING,
    N_PREFILL,
    N_READY,
    N_RUNNING,
    N_WAITING,
    PREFILL,
    READY,
    READY_SINCE,
    ROOM,
    RUNNING,
    SHARED,
    STAGE_FREE,
    TBT_SLO,
    TOTAL,
    WAITING,
    Engine,
    Setting,
    State,
    Tables,
)
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, Knobs, Rules, Snapshot


@brief_entry
def next_step(
    s: State, k: Setting, now_ms: float, e: Engine, t: Tables
) -> tuple[bool, float, bool, int, int, int]:
    """(is a step, hold until, chunk owed, its requests, its decodes, its prompt tokens)."""
    running = s.at[N_RUNNING]
    s.at[N_READY] = 0
    s.at[N_PREFILL] = 0
    s.at[N_DECODING] = 0
    s.clock[DUE] = math.inf
    s.clock[READY_SINCE] = math.inf
    for row in range(running + s.at[N_WAITING]):
        s.requests[KIND, row] = 0
        s.requests[ROOM, row] = -s.requests[COMPUTED, row] % e.block_size
        s.requests[RUNNING, row] = row
    for at in range(s.at[N_WAITING]):
        s.requests[WAITING, at] = running + at
    classify(s, e)
    what, until_ms, batch, owed = compose(s, k, now_ms, e, t)
    return what == STEP, until_ms, owed, batch.items, batch.decodes, batch.chunk


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do now.

    Attributes:
        until_ms: for a hold, when it ends by itself; None = a step goes now.
        budget_tokens: of the step.
        left_out: columns of running requests that could go and must not.
        chunk_owed: a decode-only step that goes ahead of a chunk.
    """

    until_ms: float | None
    budget_tokens: int = 0
    left_out: tuple[int, ...] = ()
    chunk_owed: bool = False


class NextStep:
    """Asks the compiled composer about the pipeline's entrance being free.

    Args:
        cost: step costs.
        limits: of the engine.

    Attributes:
        columns: how many requests fit.
        totals: per request, tokens of prompt and answer.
        computed: tokens with a place in the KV cache.
        generated: tokens of the answer.
        cached: of one that waits, tokens of its prefix-cache hit, in whole blocks.
        shared_blocks: blocks of the hit that a request ahead of it holds, too.
        last_ms: when the latest token came; any number where none has.
        tbt_ms: TBT SLO.
    """

    def __init__(self, cost: StepCost, limits: EngineLimits) -> None:
        self._cost = cost
        self._limits = limits
        self._tables = pack_tables(cost, limits.max_batched_tokens + limits.max_num_seqs)
        self.columns = 2 * limits.max_num_seqs
        slots = limits.max_steps_in_flight + 1
        self._state = State(
            np.zeros(FLY_COUNT + slots, dtype=np.int64),
            np.zeros((FLY + slots, self.columns), dtype=np.int64),
            np.zeros((KEY + 1, self.columns)),
            np.full(STAGE_FREE + limits.pp + slots, -math.inf),
        )
        rows, times = self._state.requests, self._state.times
        self.totals, self.computed, self.generated = rows[TOTAL], rows[COMPUTED], rows[GENERATED]
        self.cached, self.shared_blocks = rows[CACHED], rows[SHARED]
        self.last_ms, self.tbt_ms = times[LAST], times[TBT_SLO]
        self._given: tuple[Knobs, Correction, Rules] | None = None
        self._engine: Engine
        self._setting: Setting
        # Compiled here, so that no step ever waits for it.
        own = Knobs(int(cost.clocks_mhz[-1]), limits.max_batched_tokens)
        free_ms = (0.0,) * limits.pp
        self.ask(0, 0, 0.0, own, Correction(), Rules(), free_ms, 0, chunk_owed=False)

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
        chunk_owed: bool,
    ) -> Answer:
        """What to do with the requests in the first columns.

        Args:
            running: columns of requests that run, in the engine's order.
            waiting: columns behind them that wait, in the order of their admission.
            now_ms: the moment.
            knobs: to follow.
            correction: what calibration learnt.
            rules: which of the composer's rules hold.
            stage_free_ms: see Snapshot.
            free_blocks: see Snapshot.
            flying: steps in flight, the oldest first: when each is back, and the columns that
                get a token from it. Of interest only while there is prefill.
            chunk_owed: see Snapshot.
        """
        self._follow(knobs, correction, rules)
        s, engine = self._state, self._engine
        s.at[N_RUNNING], s.at[N_WAITING] = running, waiting
        s.at[FREE_BLOCKS], s.at[CHUNK_OWED] = free_blocks, chunk_owed
        s.clock[STAGE_FREE : STAGE_FREE + engine.pp] = stage_free_ms
        s.at[N_FLYING] = len(flying)
        for slot, (back_ms, columns) in enumerate(flying):
            s.clock[STAGE_FREE + engine.pp + slot] = back_ms
            s.at[FLY_COUNT + slot] = len(columns)
            s.requests[FLY + slot, : len(columns)] = columns
        is_step, until_ms, owed, items, decodes, chunk = next_step(
            s, self._setting, now_ms, engine, self._tables
        )
        if not is_step:
            return Answer(until_ms)
        left_out: tuple[int, ...] = ()
        if owed or decodes < s.at[N_READY]:
            left_out = self._left_out(running, items, prompts=owed and chunk == 0)
        if owed or chunk:
            return Answer(None, decodes + chunk, left_out, owed)
        budget = self._setting.chunk
        if engine.min_chunk:
            budget = max(budget, int(s.at[N_DECODING]) + engine.min_chunk)
        return Answer(None, min(budget, engine.max_batched), left_out, owed)

    def _left_out(self, running: int, items: int, *, prompts: bool) -> tuple[int, ...]:
        """Columns of running requests that could go and were not chosen."""
        kinds = self._state.requests[KIND, :running]
        could = (kinds == READY) | (kinds == PREFILL) if prompts else kinds == READY
        chosen = self._state.requests[ITEM, :items]
        could[chosen[chosen < running]] = False
        return tuple(np.flatnonzero(could).tolist())

    def _follow(self, knobs: Knobs, correction: Correction, rules: Rules) -> None:
        """Orders seldom change, so what follows from them is kept."""
        given = self._given
        if given and given[0] is knobs and given[1] is correction and given[2] is rules:
            return
        self._given = knobs, correction, rules
        empty = Snapshot(0.0, self._limits, knobs, correction=correction)
        self._engine = pack_engine(empty, rules)
        clock = clock_index(self._cost, knobs.clock_mhz)
        self._setting = Setting(
            clock, clock, -math.inf, knobs.chunk_tokens, knobs.microbatches, float(knobs.pace_ms)
        )
