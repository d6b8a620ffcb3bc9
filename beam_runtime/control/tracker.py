"""The engine as its events tell it: requests, what is computed of them, blocks, steps.

It is made to be lied to. Events may be lost, come twice, come late or carry clocks that went
backwards; a request that other evidence shows to be gone is forgotten, and the engine's own
snapshot, where an adapter can give one, replaces everything. What it cannot know: KV blocks
that a prefix cache keeps for nobody.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from beam_runtime.control.events import Arrival
from beam_runtime.emulator.moment import Moment, whole_hit_tokens
from beam_runtime.emulator.promises import breaks, promised, waited_slos
from beam_runtime.emulator.rows import Rows
from beam_runtime.emulator.state import Floats, Ints, Records
from beam_runtime.types import (
    SAME_MS,
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Slo,
    Snapshot,
    StepShape,
    chunk_pairs,
)

PLENTY_OF_BLOCKS = 1 << 30

# A decode without a token for this long, while other requests get theirs, has ended unheard of:
# fifty times a lax TBT SLO.
LOST_DECODE_MS = 10_000.0
# vLLM serves first come first served; who was overtaken this long ago is not waiting any more.
LOST_WAITING_MS = 60_000.0


@dataclass(slots=True)
class Gaps:
    """Tokens after their requests' first, over some time.

    Attributes:
        tokens: how many.
        late_tokens: how many came later after the one before than their request's SLO.
        worst_ms: the longest gap; 0 without any.
    """

    tokens: int = 0
    late_tokens: int = 0
    worst_ms: float = 0.0

    def add(self, gaps_ms: Floats, late_tokens: int) -> None:
        """Tokens that came so long after the ones before; NaN where there was none."""
        self.tokens += len(gaps_ms) - int(np.count_nonzero(np.isnan(gaps_ms)))
        self.late_tokens += late_tokens
        self.worst_ms = float(np.fmax.reduce(gaps_ms, initial=self.worst_ms))


class Tracker:
    """Applies events to a picture of the engine.

    Args:
        limits: of the engine.
        kv_blocks: KV-cache blocks of the engine; None where unknown, taken as plenty.

    Attributes:
        odd_events: events that contradict the picture: unknown, doubled, out of turn.
    """

    def __init__(self, limits: EngineLimits, kv_blocks: int | None = None) -> None:
        self._limits = limits
        self._kv_blocks = kv_blocks
        self._rows = Rows(limits)
        self._overtaken_ms: dict[str, float] = {}
        self._chunk_ms: dict[str, float] = {}  # when a chunk of a prompt was last issued
        self._rejected_ms: dict[str, float] = {}  # prompts longer than the model; since when
        self._last_step_ms = float("-inf")
        self._gaps = Gaps()
        self.odd_events = 0

    @property
    def idle(self) -> bool:
        """Whether no request is known."""
        return not self._rows.running and not self._rows.waiting

    @property
    def load(self) -> tuple[int, int]:
        """(running requests, their KV tokens together)."""
        records = self._rows.running_records()
        return len(records), int(records["computed_tokens"].sum())

    def longest_wait_slos(self, now_ms: float) -> float:
        """How long the oldest request without its first token has waited, in its TTFT SLO."""
        rows = [*self._rows.running.values(), *self._rows.waiting.values()]
        return waited_slos(self._rows.state.requests[np.array(rows, dtype=np.intp)], now_ms)

    def arrived(self, event: Arrival, slo: Slo) -> None:
        """A request waits."""
        if self._rows.find(event.request_id) is not None:
            self.odd_events += 1
            return
        if event.prompt_tokens > self._limits.max_model_len:
            self._rejected_ms[event.request_id] = event.at_ms
            return
        prompt_tokens = max(1, event.prompt_tokens)
        # The last token is always computed, for its logits.
        size = self._limits.block_size
        cached_tokens = max(0, min(event.cached_tokens, prompt_tokens - 1)) // size * size
        row = self._rows.add(event.request_id, prompt_tokens, event.at_ms, slo, cached_tokens)
        self._record(row)["shared_blocks"] = cached_tokens // size

    def ended(self, request_id: str) -> int:
        """A request completed or was aborted; how many tokens it had got."""
        row = self._rows.find(request_id)
        tokens = 0 if row is None else int(self._record(row)["generated_tokens"])
        known = self._forget(request_id)
        self.odd_events += not known and self._rejected_ms.pop(request_id, None) is None
        return tokens

    def preempted(self, request_id: str) -> None:
        """A running request lost its blocks and waits before all others."""
        if request_id not in self._rows.running:
            self.odd_events += 1
            return
        record = self._record(self._rows.preempt(request_id))
        record["computed_tokens"] = record["cached_tokens"] = record["shared_blocks"] = 0

    def issued(
        self, decodes: Iterable[str], chunks: Iterable[tuple[str, int]], at_ms: float
    ) -> StepShape:
        """A step entered the pipeline; returns what its cost depends on."""
        prefill_tokens = prefill_context = decode_context = 0
        pairs = 0.0
        tokens_for: list[int] = []
        for request_id, tokens in chunks:
            row = self._admit(request_id, at_ms)
            if row is None or tokens <= 0:
                continue
            record = self._record(row)
            computed = int(record["computed_tokens"])
            prefill_tokens += tokens
            prefill_context += computed
            pairs += chunk_pairs(tokens, computed)
            record["computed_tokens"] = computed + tokens
            record["last_step"] = self._rows.next_step
            self._chunk_ms[request_id] = at_ms
            if computed + tokens >= record["total_tokens"]:
                tokens_for.append(row)
        going = self._rows_of(decodes, at_ms)
        if len(going):
            requests = self._rows.state.requests
            computed_tokens = requests["computed_tokens"][going]
            decode_context = int(computed_tokens.sum())
            # Who decodes has its prompt computed, whichever chunk was not told of.
            computed_tokens = np.maximum(computed_tokens + 1, requests["total_tokens"][going])
            requests["computed_tokens"][going] = computed_tokens
            requests["last_step"][going] = self._rows.next_step
        brings = np.concatenate((np.array(tokens_for, np.intp), going)) if tokens_for else going
        self._rows.issue(brings)
        return StepShape(prefill_tokens, prefill_context, len(going), decode_context, pairs)

    def steps_unheard(self, decodes: Iterable[str]) -> int:
        """How many of the steps in flight must be back, as these decodes are about to be issued.

        The pipeline has room for a limited number; and a decode needs the token before it, but
        for asynchronous scheduling, which the extra place in the pipeline tells.
        """
        rows = self._rows
        flying = len(rows.flights)
        unheard = max(0, flying + 1 - self._limits.max_steps_in_flight)
        if flying > unheard and self._limits.max_steps_in_flight <= self._limits.pp:
            going = {rows.running.get(request_id, -1) for request_id in decodes} - {-1}
            for number in range(flying - 1, unheard - 1, -1):
                if not going.isdisjoint(rows.flights[number].tolist()):
                    return number + 1
        return unheard

    def finished(self, at_ms: float) -> None:
        """The oldest step is back: its requests have a token more."""
        rows = self._rows.finish()
        if rows is None:
            self.odd_events += 1
            return
        self._last_step_ms = at_ms
        requests = self._rows.state.requests
        computed_tokens = requests["computed_tokens"][rows]
        complete = computed_tokens >= requests["total_tokens"][rows]
        if np.count_nonzero(complete) < len(rows):
            # A preempted one still gets the token; one whose first token was reported before its
            # step has it already.
            preempted = computed_tokens == 0
            preempted &= requests["last_step"][rows] >= self._rows.steps_back
            rows = rows[complete | preempted]
        self._tokens(rows, at_ms)

    def first_token(self, request_id: str, at_ms: float) -> tuple[float, Slo] | None:
        """A first token is out; its TTFT in milliseconds and what was promised.

        None where the request is unknown.

        Usually the step that brought it was reported just before, or is just about to be.
        """
        row = self._rows.find(request_id)
        served = row is not None and self._record(row)["generated_tokens"] > 0
        # It waits with a token only where it was preempted with its first one in flight.
        if row is None or (request_id in self._rows.waiting and not served):
            self.odd_events += 1
            return None
        record = self._record(row)
        if not served:
            record["computed_tokens"] = max(record["computed_tokens"], record["total_tokens"])
            self._tokens(np.array([row]), at_ms)
        ttft_ms = float(record["ttft_ms"])
        if math.isnan(ttft_ms):  # its first token was before it was known here
            ttft_ms = at_ms - float(record["arrival_ms"])
        return ttft_ms, promised(record)

    def take_gaps(self) -> Gaps:
        """Gaps between tokens since this was last asked."""
        gaps, self._gaps = self._gaps, Gaps()
        return gaps

    def forget_lost(self, now_ms: float) -> tuple[str, ...]:
        """Forget requests whose end was not reported; returns them."""
        lost = self._lost(now_ms)
        gone = [
            request_id
            for request_id, since_ms in self._overtaken_ms.items()
            if now_ms - since_ms > LOST_WAITING_MS and request_id in self._rows.waiting
        ]
        for request_id, since_ms in list(self._rejected_ms.items()):
            if now_ms - since_ms > LOST_WAITING_MS:
                del self._rejected_ms[request_id]
        for request_id in (*lost, *gone):
            self._forget(request_id)
        return (*lost, *gone)

    def adopt(self, theirs: Snapshot) -> int:
        """Take the engine's own word for its requests; SLOs and times known here stay.

        Returns:
            How many requests were known here that the engine does not have.
        """
        rows = self._rows
        named = {r.request_id for r in (*theirs.running, *theirs.waiting)}
        unknown = [name for name in (*rows.running, *rows.waiting) if name not in named]
        for request_id in unknown:
            self._forget(request_id)
        waiting = [r for r in theirs.waiting if r.prompt_tokens <= self._limits.max_model_len]
        found = {r.request_id: self._adopted(r) for r in (*theirs.running, *waiting)}
        rows.running = {r.request_id: found[r.request_id] for r in theirs.running}
        rows.waiting = {r.request_id: found[r.request_id] for r in waiting}
        if self._kv_blocks is not None:
            self._kv_blocks = theirs.free_blocks + self._taken_blocks()
        return len(unknown)

    def moment(
        self,
        now_ms: float,
        knobs: Knobs,
        finishes_ms: Iterable[float],
        stage_free_ms: Sequence[float],
    ) -> Moment:
        """The picture now, to decide by.

        Args:
            now_ms: the moment.
            knobs: in force.
            finishes_ms: when each step in flight is expected back.
            stage_free_ms: when each stage is free.
        """
        state = self._rows.copy(tuple(finishes_ms), now_ms)
        state.stage_free_ms[:] = stage_free_ms
        free_blocks = PLENTY_OF_BLOCKS
        if self._kv_blocks is not None:
            free_blocks = max(0, self._kv_blocks - self._taken_blocks())
        state.engine["free_blocks"] = free_blocks
        return Moment(
            now_ms, self._limits, knobs, Correction(), state,
            [*self._rows.running, *self._rows.waiting], tuple(self._rejected_ms),
        )  # fmt: skip

    def _forget(self, request_id: str) -> bool:
        self._overtaken_ms.pop(request_id, None)
        self._chunk_ms.pop(request_id, None)
        return self._rows.remove(request_id)

    def _record(self, row: int) -> Records:
        return self._rows.state.requests[row]

    def _taken_blocks(self) -> int:
        """KV blocks that the running requests hold, shared ones once."""
        records = self._rows.running_records()
        computed = records["computed_tokens"]
        blocks = -(-computed // self._limits.block_size) - records["shared_blocks"]
        return int(np.where(computed > 0, blocks, 0).sum())

    def _admit(self, request_id: str, at_ms: float) -> int | None:
        row = self._rows.running.get(request_id)
        if row is not None:
            return row
        if request_id not in self._rows.waiting:
            self.odd_events += 1
            return None
        row = self._rows.admit(request_id)
        self._overtaken_ms.pop(request_id, None)
        record = self._record(row)
        record["computed_tokens"] = record["cached_tokens"]
        for other, its_row in self._rows.waiting.items():
            if self._record(its_row)["arrival_ms"] < record["arrival_ms"]:
                self._overtaken_ms.setdefault(other, at_ms)
        return row

    def _rows_of(self, names: Iterable[str], at_ms: float) -> Ints:
        """Rows of requests that are issued in a step; those unknown are left out."""
        names = tuple(names)
        try:  # all of them run already, as in most steps
            found = map(self._rows.running.__getitem__, names)
            return np.fromiter(found, np.intp, len(names))
        except KeyError:
            rows = (self._admit(name, at_ms) for name in names)
            return np.array([row for row in rows if row is not None], np.intp)

    def _tokens(self, rows: Ints, at_ms: float) -> None:
        """Each of these requests has a token more. For every step: field by field, in place."""
        requests = self._rows.state.requests
        generated = requests["generated_tokens"][rows]
        gaps_ms = at_ms - requests["last_token_ms"][rows]
        late = int(np.count_nonzero(gaps_ms > requests["token_slo_ms"][rows] + SAME_MS))
        first = rows[generated == 0]
        self._gaps.add(gaps_ms, late)
        if len(first) or late:  # what comes in time breaks nothing
            requests["broken"][rows] |= breaks(requests[rows], at_ms)
            requests["ttft_ms"][first] = at_ms - requests["arrival_ms"][first]
            requests["first_token_ms"][first] = at_ms
        requests["total_tokens"][rows] += 1
        requests["generated_tokens"][rows] = generated + 1
        requests["last_token_ms"][rows] = at_ms

    def _lost(self, now_ms: float) -> list[str]:
        """Running requests that got nothing for long, while others did, or are too long."""
        names, records = list(self._rows.running), self._rows.running_records()
        silent = now_ms - records["last_token_ms"] > LOST_DECODE_MS  # not for a time unknown
        for at in np.flatnonzero(records["generated_tokens"] == 0):
            if names[at] in self._chunk_ms:
                silent[at] = now_ms - self._chunk_ms[names[at]] > LOST_WAITING_MS
        if self._last_step_ms <= now_ms - LOST_DECODE_MS / 2:
            silent[:] = False
        lost = silent | (records["total_tokens"] > self._limits.max_model_len)
        return [names[at] for at in np.flatnonzero(lost)]

    def _adopted(self, theirs: RequestState) -> int:
        """The row of a request, with the engine's word for its tokens."""
        row = self._rows.find(theirs.request_id)
        if row is None:
            row = self._rows.add(
                theirs.request_id, theirs.prompt_tokens, theirs.arrival_ms, theirs.slo, 0
            )
            record = self._record(row)
            if theirs.last_token_ms is not None:
                record["last_token_ms"] = theirs.last_token_ms
            if theirs.first_token_ms is not None:
                record["first_token_ms"] = theirs.first_token_ms
                record["ttft_ms"] = theirs.first_token_ms - theirs.arrival_ms
        size = self._limits.block_size
        record = self._record(row)
        record["broken"] |= theirs.broken
        cached_tokens = whole_hit_tokens(theirs, size)
        record["total_tokens"] = theirs.prompt_tokens + theirs.generated_tokens
        record["generated_tokens"] = theirs.generated_tokens
        record["computed_tokens"] = theirs.computed_tokens
        record["cached_tokens"] = cached_tokens
        record["shared_blocks"] = max(0, cached_tokens - max(0, theirs.unheld_tokens)) // size
        record["last_step"] = 0
        return row
