"""A copy of EngineCore's loop around vLLM's real scheduler and BEAM's hooks and gate.

Orders come from a stand-in for the controller; passes take a simulated time. The scheduler is a
rig's (conftest.py), and nothing here imports vLLM.
"""

import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from beam_runtime.control.orders import Orders
from beam_runtime.engines.vllm import gate as vllm_gate
from beam_runtime.types import Correction, Knobs, Rules

BATCHED_TOKENS = 512
NOTHING = SimpleNamespace(ttft_ms={})


class Director:
    """Stands in for the controller: gives orders, keeps what it is told.

    Args:
        knobs: of the next orders.
        predicted: a seed, where gaps are to be forecast.
        learnt: what calibration would have found of the next orders' steps.
    """

    def __init__(
        self,
        knobs: Callable[[], Knobs],
        *,
        predicted: int | None = None,
        learnt: Callable[[], Correction] = lambda: Correction(ttft_margin_ms=0, tbt_margin_ms=0),
    ) -> None:
        self.events: list[tuple[str, Any]] = []
        self._knobs, self._learnt = knobs, learnt
        self._rng = None if predicted is None else random.Random(predicted)
        self.reorder()

    def reorder(self) -> None:
        self.orders = Orders(
            self._knobs(), Rules(), True, "a test's", self._learnt(), expected=self._forecast()
        )

    def _forecast(self) -> Any:
        """Of some requests, a gap of theirs; where any are to be predicted."""
        if self._rng is None:
            return None
        some = [f"r{number}" for number in range(60) if self._rng.random() < 0.7]
        worst_ms = {n: self._rng.random() for n in some}
        return SimpleNamespace(ttft_ms={}, worst_tbt_ms=worst_ms, horizon_ms=50.0)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.events.append((name, args))

    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.events)


class Core:
    """EngineCore's two step functions, over passes that take a simulated time."""

    def __init__(self, rig: Any, clock: "Clock", pp: int) -> None:
        self.rig = rig
        self.scheduler = rig.scheduler
        self.clock = clock
        self.pp = pp
        self.batch_queue_size = pp + rig.scheduler.scheduler_config.async_scheduling
        self.batch_queue: deque | None = deque() if self.batch_queue_size > 1 else None
        self.free_ms = [0.0] * pp
        self.batches: list[dict[str, int]] = []
        self.deepest = 0

    def execute(self, output: Any) -> float:
        """When it will be back."""
        tokens = output.total_num_scheduled_tokens
        ready_ms = self.clock.now_ms
        if tokens:
            for stage in range(self.pp):
                self.free_ms[stage] = max(ready_ms, self.free_ms[stage]) + 2 + 0.03 * tokens
                ready_ms = self.free_ms[stage]
        else:
            ready_ms = max(ready_ms, self.free_ms[-1])
        return ready_ms

    def scheduled(self) -> Any:
        output, sampled = self.rig.schedule()
        if output.num_scheduled_tokens:
            self.batches.append(dict(output.num_scheduled_tokens))
        return output, sampled

    def step(self) -> tuple[Any, bool]:
        if not self.scheduler.has_requests():
            return {}, False
        output, sampled = self.scheduled()
        self.clock.now_ms = self.execute(output)
        self.rig.update(output, sampled)
        return {}, output.total_num_scheduled_tokens > 0

    def step_with_batch_queue(self) -> tuple[Any, bool]:
        queue = self.batch_queue
        assert queue is not None
        assert len(queue) < self.batch_queue_size
        executed = False
        if self.scheduler.has_requests():
            output, sampled = self.scheduled()
            executed = output.total_num_scheduled_tokens > 0
            queue.appendleft((Future(), output, sampled, self.execute(output)))
            self.deepest = max(self.deepest, sum(1 for one in queue if one[1].num_scheduled_tokens))
            if len(queue) < self.batch_queue_size and (executed or self.scheduler.has_requests()):
                return None, executed
        elif not queue:
            return None, False
        _, output, sampled, back_ms = queue.pop()
        self.clock.now_ms = max(self.clock.now_ms, back_ms)
        self.rig.update(output, sampled)
        return {}, executed


class Clock:
    """Simulated time; naps of the gate let it pass."""

    def __init__(self) -> None:
        self.now_ms = 1_000.0


def drive(
    rig: Any,
    clock: Clock,
    director: Director | None,
    seed: int,
    pp: int,
    *,
    aborts: bool = False,
    equal: int = 0,
    composer: bool = True,
) -> tuple[Core, dict[str, int]]:
    """Serve a workload to the end; returns the core and each request's wanted tokens.

    It is random, or ``equal`` requests that come at once. BEAM plans from the first step, or, at
    ``composer`` False, without waiting until it can.
    """
    rng = random.Random(seed)
    core_class = type("GatedCore", (Core,), dict(vars(Core)))
    vllm_gate.install(core_class)
    core = core_class(rig, clock, pp)
    if director is not None:
        beam = rig.scheduler.beam
        wait_for(lambda: not composer or beam._planner._compiled is not None)
        # The controller made at construction goes; from here on the test gives the orders.
        rig.scheduler.beam.controller.close()
        rig.scheduler.beam.connect(director)
    wanted: dict[str, int] = {}
    arrivals: deque[tuple[float, str, int, int]] = deque()
    at_ms = clock.now_ms
    for number in range(equal or rng.randint(6, 24)):
        at_ms += 0.0 if equal else rng.choice((0.0, 0.0, 3.0, 20.0, 90.0))
        prompt, outputs = (20, 30) if equal else (rng.randint(1, 400), rng.randint(1, 40))
        arrivals.append((at_ms, f"r{number}", prompt, outputs))
    step = core.step if core.batch_queue is None else core.step_with_batch_queue
    turns = 0
    while arrivals or rig.scheduler.has_requests() or core.batch_queue:
        turns += 1
        assert turns < 60_000, "the workload does not end"
        while arrivals and arrivals[0][0] <= clock.now_ms:
            _, name, prompt, outputs = arrivals.popleft()
            rig.add(name, [1] * prompt, outputs)
            wanted[name] = outputs
        if aborts and rng.random() < 0.02 and rig.scheduler.requests:
            gone = rng.choice(sorted(rig.scheduler.requests))
            rig.abort(gone)
            wanted.pop(gone)
        if director is not None and rng.random() < 0.3:
            director.reorder()
        before_ms = clock.now_ms
        step()
        if clock.now_ms == before_ms:
            clock.now_ms += 0.2  # EngineCore's own round
    return core, wanted


def any_knobs(rng: random.Random, pp: int) -> Callable[[], Knobs]:
    return lambda: Knobs(
        rng.choice((600, 900, 1200)),
        rng.choice((32, 64, 100, 256, 512)),
        rng.randint(1, pp),
        rng.choice((0.0, 0.0, 10.0, 60.0)),
    )


def any_lesson(rng: random.Random) -> Callable[[], Correction]:
    """What calibration could have learnt: factors by kind and by size, and a TBT margin."""
    return lambda: Correction(
        prefill_scale=rng.uniform(0.8, 1.2),
        decode_scale=rng.uniform(0.8, 1.2),
        ttft_margin_ms=0.0,
        tbt_margin_ms=rng.choice((0.0, 0.4, 2.0)),
        prefill_by_size=tuple(rng.uniform(0.9, 1.1) for _ in range(rng.randrange(9))),
        decode_by_size=tuple(rng.uniform(0.9, 1.1) for _ in range(rng.randrange(9))),
    )


def wait_for(what: Callable[[], bool]) -> None:
    # Milliseconds; a minute where the search is compiled first.
    deadline_s = time.monotonic() + 180.0
    while not what() and time.monotonic() < deadline_s:
        time.sleep(0.002)
    assert what()


def with_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of the model that has 1,024 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text())
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(1024)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
