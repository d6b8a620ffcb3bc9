"""The composer, in vanilla mode, against vLLM's own Scheduler class: every step equal.

vLLM's scheduler runs without a model (design/vllm.md), inside a copy of EngineCore's step loop
(step at pp 1, step_with_batch_queue above). The composer plays its own engine beside it with the
emulator's moves; it is told only what it cannot know: which requests arrive,
end or are aborted, how long a prefix-cache hit is and how much of it nobody holds, and who is
left with the blocks that a request shared when it ends.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

import numpy as np  # noqa: E402

from beam_runtime.emulator.moves import composed, finished, issued  # noqa: E402
from beam_runtime.emulator.setup import ATTENTION, HOLD, Setting, Tables, make_setup  # noqa: E402
from beam_runtime.emulator.state import empty_state, records  # noqa: E402
from beam_runtime.engines.vllm.hits import PrefixHits  # noqa: E402
from beam_runtime.types import Correction, EngineLimits, Rules  # noqa: E402

Rig = Callable[..., Any]
MODEL_LEN = 1024
BATCHED_TOKENS = 512
ROWS = 64  # more requests than any workload has
PLENTY = 4_000  # KV blocks: more than all requests of a workload can hold


@dataclass(frozen=True)
class Batch:
    """What one step holds, in vLLM's words."""

    tokens: dict[str, int]
    preempted: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """One random run; everything follows from the seed."""

    seed: int
    pp: int = 1
    max_num_seqs: int = 16
    num_blocks: int = PLENTY
    prefix_caching: bool = False
    changing_budget: bool = False
    aborts: bool = False
    threshold: int = 0
    adaptive: bool = False


class Composed:
    """The same engine as BEAM plays it."""

    def __init__(self, load: Workload, free_blocks: int) -> None:
        self.every_block = free_blocks
        self.limits = EngineLimits(
            pp=load.pp,
            max_num_seqs=load.max_num_seqs,
            max_batched_tokens=BATCHED_TOKENS,
            max_model_len=MODEL_LEN,
            long_prefill_token_threshold=load.threshold,
            long_prefill_token_threshold_adaptive=load.adaptive,
        )
        self.size = self.limits.block_size
        self.state = empty_state(ROWS, load.pp, load.pp, free_blocks)
        self.setup = make_setup(self.limits, Rules.vanilla(), Correction())
        self.tables = Tables(
            np.zeros((2, BATCHED_TOKENS + 1, 1)), records(2, ATTENTION).reshape(2, 1), np.zeros(1)
        )
        self.names: list[str] = []
        self.now_ms = 0.0

    @property
    def engine(self) -> Any:
        return self.state.engine[0]

    @property
    def free_blocks(self) -> int:
        return int(self.engine["free_blocks"])

    @property
    def running(self) -> list[int]:
        return self.state.places["running"][: self.engine["running"]].tolist()  # type: ignore[no-any-return]

    @property
    def waiting(self) -> list[int]:
        numbers = self.engine["waiting_head"] + np.arange(self.engine["waiting"])
        return self.state.places["waiting"][numbers % ROWS].tolist()  # type: ignore[no-any-return]

    def add(self, name: str, prompt_tokens: int) -> None:
        row = len(self.names)
        self.names.append(name)
        self.state.requests["total_tokens"][row] = prompt_tokens
        self._queue([*self.waiting, row])

    def hit(self, hits: dict[str, tuple[int, int]]) -> None:
        for row in self.waiting:
            record = self.state.requests[row]
            cached, unheld = hits[self.names[row]]
            cached = max(0, min(cached, record["total_tokens"] - 1)) // self.size * self.size
            record["cached_tokens"] = cached
            record["shared_blocks"] = max(0, cached - unheld) // self.size

    def remove(self, names: set[str], shared: dict[str, int]) -> None:
        state, gone = self.state, {self.names.index(name) for name in names}
        running = [row for row in self.running if row not in gone]
        self._queue([row for row in self.waiting if row not in gone])
        state.places["running"][: len(running)] = running
        self.engine["running"] = len(running)
        for slot in range(len(state.flights)):
            tokens = state.flights["tokens"][slot]
            rows = [row for row in state.members[slot, :tokens].tolist() if row not in gone]
            state.members[slot, : len(rows)] = rows
            state.flights["tokens"][slot] = len(rows)
        held = 0
        for row in running:
            record = state.requests[row]
            record["shared_blocks"] = shared[self.names[row]] // self.size
            blocks = -(-record["computed_tokens"] // self.size) - record["shared_blocks"]
            held += int(blocks) if record["computed_tokens"] else 0
        self.engine["free_blocks"] = self.every_block - held

    def shared_tokens(self) -> dict[str, int]:
        blocks = self.state.requests["shared_blocks"]
        return {self.names[row]: int(blocks[row]) * self.size for row in self.running}

    def step(self, budget: int) -> Batch:
        self.now_ms += 1.0
        state, setting = self.state, Setting(0, 0, -np.inf, budget, 1, 0.0)
        answer, _, batch, _, _ = composed(state, setting, self.now_ms, self.setup, self.tables)
        if answer == HOLD:
            return Batch({}, ())
        lost = self.running[len(self.running) - batch.preempted :]
        items = state.places[["scheduled", "scheduled_tokens"]][: batch.items].tolist()
        issued(state, batch, self.now_ms, setting, self.setup, self.tables)
        tokens = {self.names[row]: count for row, count in items}
        return Batch(tokens, tuple(self.names[row] for row in lost))

    def receive(self) -> None:
        finished(self.state, self.now_ms, self.setup)

    def _queue(self, rows: list[int]) -> None:
        self.engine["waiting"], self.engine["waiting_head"] = len(rows), 0
        self.state.places["waiting"][: len(rows)] = rows


@dataclass
class Seen:
    """What a workload made happen: a test that never preempts proves nothing about it."""

    steps: int = 0
    preemptions: int = 0
    hits: int = 0
    unheld: int = 0  # hits on blocks that nobody held
    shared: int = 0  # hits on blocks that others held
    looks: int = 0  # at hits of requests that go on waiting, as an adapter finds them
    answers: int = 0  # hits beyond the prompt, after a preemption
    aborts: int = 0
    mixed: int = 0
    passed_over: int = 0  # preempted requests with output in flight, at a step


def hits(
    oracle: Any, before: set[str], tokens: dict[str, int], shared: dict[str, int], seen: Seen
) -> dict[str, tuple[int, int]]:
    """The prefix-cache hit of all who waited before a step: (tokens, of them held by nobody)."""
    found = {}
    looks = PrefixHits(oracle.scheduler)
    for name, request in oracle.scheduler.requests.items():
        if name in before:
            continue
        if name not in tokens:
            found[name] = oracle.hit(name)
            assert looks.find(request) == found[name], name
            seen.looks += found[name][0] > 0
            continue
        cached = request.num_computed_tokens - tokens[name]
        found[name] = cached, cached - shared[name]
        seen.hits += cached > 0
        seen.unheld += shared[name] < cached
        seen.shared += shared[name] > 0
        seen.answers += cached > request.num_prompt_tokens
    return found


def run(rig: Rig, load: Workload) -> Seen:
    """Both engines side by side until all requests are gone; raises on the first difference."""
    rng = random.Random(load.seed)
    oracle = rig(
        pp=load.pp,
        max_num_seqs=load.max_num_seqs,
        num_blocks=load.num_blocks,
        prefix_caching=load.prefix_caching,
        long_prefill_token_threshold=load.threshold,
        long_prefill_token_threshold_adaptive=load.adaptive,
    )
    paper = Composed(load, oracle.free_blocks)
    longest = min(MODEL_LEN, (load.num_blocks - 1) * oracle.block_size) - 1
    families = [[rng.randrange(1000) for _ in range(400)] for _ in range(3)]
    arrivals: deque[tuple[int, str, list[int], int]] = deque()
    at = 0
    for number in range(rng.randint(4, 30)):
        at += rng.choice((0, 0, 1, 2, 8))
        outputs = rng.randint(1, 60) if load.num_blocks == PLENTY else rng.randint(20, 160)
        length = rng.randint(1, min(rng.choice((20, 200, 700)), longest - outputs))
        prompt = [rng.randrange(1000) for _ in range(length)]
        if load.prefix_caching and rng.random() < 0.7:
            shared = rng.randint(0, length)
            prompt[:shared] = rng.choice(families)[:shared]
        arrivals.append((at, f"r{number}", prompt[:length], outputs))

    seen = Seen()
    queue: deque = deque()
    budget = BATCHED_TOKENS
    while arrivals or oracle.scheduler.has_requests() or queue:
        while arrivals and arrivals[0][0] <= seen.steps:
            _, name, prompt, outputs = arrivals.popleft()
            oracle.add(name, prompt, outputs)
            paper.add(name, len(prompt))
        if load.aborts and oracle.scheduler.requests and rng.random() < 0.06:
            name = rng.choice(sorted(oracle.scheduler.requests))
            oracle.abort(name)
            paper.remove({name}, oracle.shared_tokens())
            seen.aborts += 1
        if load.changing_budget:
            budget = rng.choice((load.max_num_seqs, 32, 64, 100, 256, 512))
        seen.steps += 1
        assert seen.steps < 20_000, "the workload does not end"
        if oracle.scheduler.has_requests():
            before = {r.request_id for r in oracle.scheduler.running}
            output, sampled = oracle.schedule(budget)
            tokens = dict(output.num_scheduled_tokens)
            shared = oracle.shared_tokens()
            paper.hit(hits(oracle, before, tokens, shared, seen))
            seen.passed_over += len(oracle.stale)
            batch = paper.step(budget)
            where = f"{load}, step {seen.steps}"
            assert batch.tokens == tokens, where
            assert set(batch.preempted) == set(output.preempted_req_ids or ()), where
            assert paper.free_blocks == oracle.free_blocks, where
            assert paper.shared_tokens() == shared, where
            seen.preemptions += len(batch.preempted)
            seen.mixed += max(tokens.values(), default=0) > 1 and min(tokens.values()) == 1
            queue.appendleft((output, sampled))
            if load.pp > 1 and len(queue) < load.pp and (tokens or oracle.scheduler.has_requests()):
                continue
        if not queue:
            continue
        output, sampled = queue.pop()
        ended = oracle.update(output, sampled)
        if output.num_scheduled_tokens:
            paper.receive()
        paper.remove(ended, oracle.shared_tokens())
    return seen


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_every_step_equals_vllm_s(rig: Rig, pp: int) -> None:
    seen = [run(rig, Workload(seed, pp)) for seed in range(25)]
    assert sum(one.mixed for one in seen) > 100


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_with_a_budget_that_changes_every_step(rig: Rig, pp: int) -> None:
    for seed in range(25):
        run(rig, Workload(1000 + seed, pp, changing_budget=True))


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_preemption_when_kv_blocks_are_few(rig: Rig, pp: int) -> None:
    seen = [
        run(
            rig,
            Workload(
                2000 + seed, pp, num_blocks=(45, 60, 80)[seed % 3], changing_budget=seed % 2 == 0
            ),
        )
        for seed in range(25)
    ]
    assert sum(one.preemptions for one in seen) > 50
    assert sum(one.passed_over for one in seen) > 50 or pp == 1


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_prefix_cache_hits(rig: Rig, pp: int) -> None:
    seen = [run(rig, Workload(3000 + seed, pp, prefix_caching=True)) for seed in range(25)]
    assert sum(one.hits for one in seen) > 50


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_prefix_cache_hits_when_kv_blocks_are_few(rig: Rig, pp: int) -> None:
    seen = [
        run(
            rig,
            Workload(
                6000 + seed, pp, num_blocks=(45, 60, 80, 120)[seed % 4], prefix_caching=True,
                changing_budget=seed % 2 == 0, aborts=seed % 3 == 0,
            ),
        )
        for seed in range(100)
    ]  # fmt: skip
    assert sum(one.preemptions for one in seen) > 50
    assert sum(one.unheld for one in seen) > 50
    assert sum(one.shared for one in seen) > 50
    assert sum(one.answers for one in seen) > 50
    assert sum(one.looks for one in seen) > 50


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("threshold", [1, 40, 300])
def test_no_more_of_a_prompt_than_a_threshold(
    rig: Rig, pp: int, threshold: int, adaptive: bool
) -> None:
    for seed in range(10):
        run(
            rig,
            Workload(
                7000 + seed, pp, num_blocks=(60, PLENTY)[seed % 2], threshold=threshold,
                adaptive=adaptive, changing_budget=seed % 2 == 0,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_aborts_at_any_moment(rig: Rig, pp: int) -> None:
    seen = [
        run(rig, Workload(4000 + seed, pp, aborts=True, changing_budget=seed % 2 == 0))
        for seed in range(25)
    ]
    assert sum(one.aborts for one in seen) > 50


def test_everything_at_once(rig: Rig) -> None:
    rng = random.Random(0)
    for seed in range(60):
        run(
            rig,
            Workload(
                5000 + seed,
                pp=rng.choice((1, 2, 4)),
                max_num_seqs=rng.choice((1, 4, 16, 32)),
                num_blocks=rng.choice((45, 70, 120, PLENTY)),
                prefix_caching=rng.random() < 0.5,
                changing_budget=True,
                aborts=True,
            ),
        )
