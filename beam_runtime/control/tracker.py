"""The engine as its events tell it: requests, what is computed of them, blocks, steps.

It is made to be lied to. Events may be lost, come twice, come late or carry clocks that went
backwards; a request that other evidence shows to be gone is forgotten, and the engine's own
snapshot, where an adapter can give one, replaces everything. What it cannot know: KV blocks
that a prefix cache keeps for nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from beam_runtime.control.events import Arrival
from beam_runtime.emulator.schedule import blocks, cached_tokens
from beam_runtime.types import (
    SAME_MS,
    EngineLimits,
    RequestState,
    Slo,
    Snapshot,
    StepInFlight,
    StepShape,
    chunk_pairs,
)

PLENTY_OF_BLOCKS = 1 << 30

# A decode without a token for this long, while other requests get theirs, has ended unheard of:
# fifty times a lax TBT SLO.
LOST_DECODE_MS = 10_000.0
# vLLM serves first come first served; who was overtaken this long ago is not waiting any more.
LOST_WAITING_MS = 60_000.0


@dataclass(slots=True, eq=False)
class _Request:
    request_id: str
    prompt_tokens: int
    arrival_ms: float
    slo: Slo
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    overtaken_ms: float | None = None
    unheld_tokens: int = 0
    last_step: int = 0  # number of the latest step that held anything of it

    @property
    def complete(self) -> bool:
        """Whether everything it has is computed or being computed: its next token is on the way."""
        return self.computed_tokens >= self.prompt_tokens + self.generated_tokens

    def state(self, steps_back: int) -> RequestState:
        return RequestState(
            self.request_id,
            self.prompt_tokens,
            self.arrival_ms,
            self.slo,
            self.computed_tokens,
            self.generated_tokens,
            self.cached_tokens,
            self.first_token_ms,
            self.last_token_ms,
            max(0, self.last_step - steps_back),
            self.unheld_tokens,
        )


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


@dataclass(frozen=True, slots=True)
class EngineView:
    """The tracker's picture, ready for a Snapshot."""

    running: tuple[RequestState, ...]
    waiting: tuple[RequestState, ...]
    in_flight: tuple[StepInFlight, ...]
    free_blocks: int


class Tracker:
    """Applies events to a picture of the engine.

    Args:
        limits: of the engine.
        kv_blocks: KV-cache blocks of the engine; None where unknown, taken as plenty.
    """

    def __init__(self, limits: EngineLimits, kv_blocks: int | None = None) -> None:
        self._limits = limits
        self._kv_blocks = kv_blocks
        self._running: dict[str, _Request] = {}
        self._waiting: dict[str, _Request] = {}
        self._steps_back = 0
        self._tokens_ahead: list[tuple[str, ...]] = []  # whose tokens each step in flight brings
        self._last_step_ms = float("-inf")
        self._gaps = Gaps()
        self.odd_events = 0  # events that contradict the picture: unknown, doubled, out of turn

    @property
    def idle(self) -> bool:
        """Whether no request is known."""
        return not self._running and not self._waiting

    @property
    def load(self) -> tuple[int, int]:
        """(running requests, their KV tokens together)."""
        return len(self._running), sum(r.computed_tokens for r in self._running.values())

    def arrived(self, event: Arrival, slo: Slo) -> None:
        """A request waits."""
        if event.request_id in self._running or event.request_id in self._waiting:
            self.odd_events += 1
            return
        self._waiting[event.request_id] = _Request(
            event.request_id,
            max(1, event.prompt_tokens),
            event.at_ms,
            slo,
            max(0, event.cached_tokens),
        )

    def ended(self, request_id: str) -> None:
        """A request completed or was aborted."""
        known = self._running.pop(request_id, None) or self._waiting.pop(request_id, None)
        self.odd_events += known is None

    def preempted(self, request_id: str) -> None:
        """A running request lost its blocks and waits before all others."""
        request = self._running.pop(request_id, None)
        if request is None:
            self.odd_events += 1
            return
        request.computed_tokens = request.cached_tokens = request.unheld_tokens = 0
        self._waiting = {request_id: request, **self._waiting}

    def issued(
        self, decodes: Iterable[str], chunks: Iterable[tuple[str, int]], at_ms: float
    ) -> StepShape:
        """A step entered the pipeline; returns what its cost depends on."""
        prefill_tokens = prefill_context = decode_context = 0
        pairs = 0.0
        tokens_for = []
        number = self._steps_back + len(self._tokens_ahead) + 1
        for request_id, tokens in chunks:
            request = self._admit(request_id, at_ms)
            if request is None or tokens <= 0:
                continue
            prefill_tokens += tokens
            prefill_context += request.computed_tokens
            pairs += chunk_pairs(tokens, request.computed_tokens)
            request.computed_tokens += tokens
            request.last_step = number
            if request.complete:
                tokens_for.append(request_id)
        prompts = len(tokens_for)
        for request_id in decodes:
            request = self._admit(request_id, at_ms)
            if request is None:
                continue
            decode_context += request.computed_tokens
            request.computed_tokens += 1
            request.last_step = number
            tokens_for.append(request_id)
        self._tokens_ahead.append(tuple(tokens_for))
        return StepShape(
            prefill_tokens, prefill_context, len(tokens_for) - prompts, decode_context, pairs
        )

    def finished(self, at_ms: float) -> None:
        """The oldest step is back: its requests have a token more."""
        if not self._tokens_ahead:
            self.odd_events += 1
            return
        self._last_step_ms = at_ms
        self._steps_back += 1
        for request_id in self._tokens_ahead.pop(0):
            request = self._running.get(request_id)
            preempted = self._waiting.get(request_id)
            # Ended meanwhile, or its first token was reported before its step.
            if request is not None and request.complete:
                self._token(request, at_ms)
            elif preempted is not None and preempted.last_step >= self._steps_back:
                self._token(preempted, at_ms)

    def first_token(self, request_id: str, at_ms: float) -> tuple[float, Slo] | None:
        """A first token is out; its TTFT in milliseconds and what was promised.

        None where the request is unknown.

        Usually the step that brought it was reported just before, or is just about to be.
        """
        request = self._running.get(request_id)
        if request is None:
            self.odd_events += 1
            return None
        if request.generated_tokens == 0:
            request.computed_tokens = max(request.computed_tokens, request.prompt_tokens)
            self._token(request, at_ms)
        first_ms = at_ms if request.first_token_ms is None else request.first_token_ms
        return first_ms - request.arrival_ms, request.slo

    def take_gaps(self) -> Gaps:
        """Gaps between tokens since this was last asked."""
        gaps, self._gaps = self._gaps, Gaps()
        return gaps

    def forget_lost(self, now_ms: float) -> tuple[str, ...]:
        """Forget requests whose end was not reported; returns them."""
        lost = [name for name, request in self._running.items() if self._is_lost(request, now_ms)]
        for name in lost:
            del self._running[name]
        gone = [
            name
            for name, request in self._waiting.items()
            if request.overtaken_ms is not None and now_ms - request.overtaken_ms > LOST_WAITING_MS
        ]
        for name in gone:
            del self._waiting[name]
        return (*lost, *gone)

    def adopt(self, theirs: Snapshot) -> int:
        """Take the engine's own word for its requests; SLOs and times known here stay.

        Returns:
            How many requests were known here that the engine does not have.
        """
        known = self._running | self._waiting
        self._running = {r.request_id: self._adopted(r, known) for r in theirs.running}
        self._waiting = {r.request_id: self._adopted(r, known) for r in theirs.waiting}
        if self._kv_blocks is not None:
            self._kv_blocks = theirs.free_blocks + self._taken_blocks(theirs.running)
        return len(known.keys() - self._running.keys() - self._waiting.keys())

    def view(self, finishes_ms: Iterable[float]) -> EngineView:
        """The picture now.

        Args:
            finishes_ms: when each step in flight is expected back.
        """
        back = self._steps_back
        running = tuple(request.state(back) for request in self._running.values())
        free_blocks = PLENTY_OF_BLOCKS
        if self._kv_blocks is not None:
            free_blocks = max(0, self._kv_blocks - self._taken_blocks(running))
        return EngineView(
            running=running,
            waiting=tuple(request.state(back) for request in self._waiting.values()),
            in_flight=tuple(
                StepInFlight(finish_ms, tokens_for)
                for tokens_for, finish_ms in zip(self._tokens_ahead, finishes_ms, strict=False)
            ),
            free_blocks=free_blocks,
        )

    def _taken_blocks(self, running: Iterable[RequestState]) -> int:
        size = self._limits.block_size
        return sum(blocks(request.computed_tokens, request, size) for request in running)

    def _admit(self, request_id: str, at_ms: float) -> _Request | None:
        request = self._running.get(request_id)
        if request is not None:
            return request
        request = self._waiting.pop(request_id, None)
        if request is None:
            self.odd_events += 1
            return None
        state = request.state(self._steps_back)
        request.cached_tokens = cached_tokens(state, self._limits.block_size)
        request.computed_tokens = request.cached_tokens
        self._running[request_id] = request
        for other in self._waiting.values():
            if other.arrival_ms < request.arrival_ms and other.overtaken_ms is None:
                other.overtaken_ms = at_ms
        return request

    def _token(self, request: _Request, at_ms: float) -> None:
        if request.last_token_ms is not None:
            gap_ms = at_ms - request.last_token_ms
            self._gaps.tokens += 1
            self._gaps.late_tokens += gap_ms > request.slo.tbt_ms + SAME_MS
            self._gaps.worst_ms = max(self._gaps.worst_ms, gap_ms)
        request.generated_tokens += 1
        request.last_token_ms = at_ms
        if request.first_token_ms is None:
            request.first_token_ms = at_ms

    def _is_lost(self, request: _Request, now_ms: float) -> bool:
        if request.prompt_tokens + request.generated_tokens > self._limits.max_model_len:
            return True
        last_ms = request.last_token_ms
        silent = last_ms is not None and now_ms - last_ms > LOST_DECODE_MS
        return silent and self._last_step_ms > now_ms - LOST_DECODE_MS / 2

    def _adopted(self, theirs: RequestState, known: dict[str, _Request]) -> _Request:
        ours = known.get(theirs.request_id)
        return _Request(
            theirs.request_id,
            theirs.prompt_tokens,
            ours.arrival_ms if ours else theirs.arrival_ms,
            ours.slo if ours else theirs.slo,
            theirs.cached_tokens,
            theirs.computed_tokens,
            theirs.generated_tokens,
            ours.first_token_ms if ours else theirs.first_token_ms,
            ours.last_token_ms if ours else theirs.last_token_ms,
            unheld_tokens=theirs.unheld_tokens,
        )
