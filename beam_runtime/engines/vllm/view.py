"""What is known of vLLM's scheduler: its requests, its steps in flight, what they came to.

It knows vLLM's attributes and no vLLM module: what it reads is listed in features.py.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from beam_runtime.control.pipeline_times import PipelineTimes
from beam_runtime.engines.vllm.admission import Admission
from beam_runtime.engines.vllm.followed import Cohort, Followed
from beam_runtime.engines.vllm.hits import PrefixHits
from beam_runtime.types import EngineLimits, Slo, StepShape, chunk_pairs

# vLLM's Request.arrival_time is on another machine's or process's wall clock: trust it so far.
MAX_QUEUED_MS = 60_000.0
# A named tuple's own constructor is a function in Python.
_flying = tuple.__new__


class Flying(NamedTuple):
    """A step between schedule() and update_from_output().

    Attributes:
        output: vLLM's SchedulerOutput, by identity.
        decodes: requests that compute one token.
        chunks: prompt chunks, (request, tokens).
        token_for: requests that get a token from it.
        context_tokens: of the decodes.
        shape: what its cost depends on; None where there are only decodes in it.
        cohort: of the decodes, where there is nothing else in it.
    """

    output: Any
    decodes: tuple[str, ...]
    chunks: tuple[tuple[str, int], ...]
    token_for: tuple[str, ...]
    context_tokens: int
    shape: StepShape | None = None
    cohort: Cohort | None = None


@dataclass(slots=True, eq=False)
class SchedulerView:
    """Follows one vLLM scheduler.

    Attributes:
        scheduler: vLLM's, untouched by this class.
        limits: of the engine.
        times: when stages are free.
        followed: by request id.
        unsettled: requests whose prompt, or what a preemption lost, is not scheduled whole.
        flying: steps in flight, oldest first.
        chunk_owed: a decode-only step was sent ahead of a chunk.
        hits: looks into the prefix cache.
        admission: looks at who waits.
    """

    scheduler: Any
    limits: EngineLimits
    times: PipelineTimes
    followed: dict[str, Followed] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    flying: deque[Flying] = field(default_factory=deque)
    chunk_owed: bool = False
    hits: PrefixHits = field(init=False)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.hits = PrefixHits(self.scheduler)
        self.admission = Admission(self.scheduler)

    @property
    def asynchronous(self) -> bool:
        """Whether a request may go on before its token is back."""
        config = getattr(self.scheduler, "scheduler_config", None)
        return bool(getattr(config, "async_scheduling", False))

    @property
    def queued(self) -> bool:
        """Whether a request is there that does not run."""
        scheduler = self.scheduler
        return len(scheduler.requests) != len(scheduler.running) and bool(scheduler.waiting)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def issued(self, output: Any) -> Flying | None:
        """Note what vLLM scheduled; None for an empty step."""
        tokens: dict[str, int] = output.num_scheduled_tokens
        if not tokens:
            return None
        requests = self.scheduler.requests
        if output.total_num_scheduled_tokens == len(tokens) and self.unsettled.isdisjoint(tokens):
            step = self._decodes(output, tuple(tokens), requests)
        else:
            step = self._mixed(output, tokens, requests)
        self.flying.append(step)
        return step

    def _decodes(self, output: Any, names: tuple[str, ...], requests: dict[str, Any]) -> Flying:
        first = self.followed.get(names[0])
        cohort = None if first is None else first.cohort
        if cohort is not None and cohort.names == names:
            context = cohort.computed_tokens
            cohort.computed_tokens = context + len(names)
            return _flying(Flying, (output, names, (), names, context, None, cohort))
        # This step's tokens are in it already.
        computed = sum([requests[name].num_computed_tokens for name in names])
        known = [self.followed[name] for name in names if name in self.followed]
        cohort = Cohort(names, known, computed) if len(known) == len(names) else None
        return Flying(output, names, (), names, computed - len(names), cohort=cohort)

    def _mixed(self, output: Any, tokens: dict[str, int], requests: dict[str, Any]) -> Flying:
        decodes, chunks, token_for = [], [], []
        pairs, chunk_context, chunk_tokens, decode_context = 0.0, 0, 0, 0
        for name, count in tokens.items():
            request = requests[name]
            self.known(name).leave()
            # With async scheduling num_tokens lacks the tokens in flight, so computed may lie
            # beyond it.
            computed = request.num_computed_tokens
            complete = computed >= request.num_tokens
            if complete:
                token_for.append(name)
                self.unsettled.discard(name)
            else:
                self.unsettled.add(name)
            if complete and count == 1 and computed > request.num_prompt_tokens:
                decodes.append(name)
                decode_context += computed - 1
                continue
            chunks.append((name, count))
            before = computed - count
            pairs += chunk_pairs(count, before)
            chunk_context += before
            chunk_tokens += count
        shape = StepShape(chunk_tokens, chunk_context, len(decodes), decode_context, pairs)
        return Flying(
            output, tuple(decodes), tuple(chunks), tuple(token_for), decode_context, shape
        )

    def follow(self, request: Any, arrival_ms: float, slo: Slo) -> Followed:
        """A request came in."""
        known = Followed(
            arrival_ms, slo, request.num_tokens, prompt_tokens=request.num_prompt_tokens
        )
        self.followed[request.request_id] = known
        self.unsettled.add(request.request_id)
        return known

    def forget(self, name: str) -> bool:
        """A request is gone; whether it was known."""
        self.unsettled.discard(name)
        known = self.followed.pop(name, None)
        if known is None:
            return False
        known.leave()
        return True

    def lose(self, name: str) -> None:
        """A request was preempted: what it had computed is to be done again."""
        self.unsettled.add(name)
        self.known(name).leave()

    def known(self, name: str) -> Followed:
        """What is known of a request; of one that came before BEAM, nothing."""
        known = self.followed.get(name)
        return Followed(0.0, Slo()) if known is None else known.settled()

    def together(self) -> Cohort | None:
        """The cohort of all running requests, if that is what they are."""
        running = self.scheduler.running
        first = self.followed.get(running[0].request_id) if running else None
        cohort = None if first is None else first.cohort
        return cohort if cohort is not None and len(cohort.names) == len(running) else None

    def preempted(self, output: Any) -> Iterable[str]:
        """Requests that lost their KV blocks before this step, or, with 0.11, some time ago.

        That version does not tell. But who has more than one token to compute although its
        prompt was done has been preempted meanwhile.
        """
        if hasattr(output, "preempted_req_ids"):
            return output.preempted_req_ids or ()
        tokens: dict[str, int] = output.num_scheduled_tokens
        return [n for n, count in tokens.items() if count > 1 and n not in self.unsettled]

    def returned(self, output: Any) -> Flying | None:
        """The step this output belongs to; None where it was empty."""
        if not self.flying or self.flying[0].output is not output:
            return None
        return self.flying.popleft()


def arrival_ms(request: Any, now_ms: float, wall_s: Callable[[], float]) -> float:
    """When a request arrived, on BEAM's time axis; vLLM stamps it at the API server."""
    queued_ms = (wall_s() - float(request.arrival_time)) * 1e3
    return now_ms - min(max(0.0, queued_ms), MAX_QUEUED_MS)
