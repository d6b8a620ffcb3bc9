"""Calls of every hook with anything, between sound ones, with the compiled search behind them."""

import random
from collections.abc import Callable
from pathlib import Path

from fuzzing.damage import ODD
from fuzzing.promise import must_not_raise
from fuzzing.tables import sample_table

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.types import EngineLimits, Slo

_RENEWED_AFTER = 2000  # calls
_LIMITS = EngineLimits(pp=4, max_num_seqs=64, max_model_len=8192)


class Engine:
    """An engine that tells a controller whatever comes to its mind.

    Args:
        folder: for its table and log.
        odd: of all its calls; 0 = it is a sound one, but for the order of its events.
    """

    def __init__(self, folder: Path, odd: float = 0.5) -> None:
        path = folder / "good.parquet"
        path.write_bytes(sample_table(folder))
        self.log = folder / "hooks.jsonl"
        self.now_ms = 0.0
        self._odd = odd
        self._cost = StepCost.from_table(PerfTable.load(path))
        self._calls = 0
        self._open()

    def call(self, moments: random.Random) -> None:
        """One hook, and now and then the controller's turn."""
        self._calls += 1
        if self._calls % _RENEWED_AFTER == 0:
            self.close()
            self._open()
        self.now_ms += moments.choice((0.1, 1.0, 3.0, 20.0, 300.0))
        hooks = self._odd_ones(moments) if moments.random() < self._odd else self._sound(moments)
        moments.choice(hooks)()
        if moments.random() < 0.3:
            self.beam.advance()

    def close(self) -> None:
        """End the controller. Raises AssertionError where a GPU stays locked."""
        self.beam.close()
        if set(self._actuator.locked_mhz) != {None}:
            raise AssertionError(f"locked at the end: {self._actuator.locked_mhz}")

    def _open(self) -> None:
        self._actuator = FakeActuator(gpus=8)
        log = DecisionLog(self.log, max_bytes=1 << 20, kept=0)
        self.beam = Controller(
            self._cost, _LIMITS, actuator=self._actuator, threads=False, log=log,
            now_ms=lambda: self.now_ms,
        )  # fmt: skip
        self.beam.__enter__()

    def _sound(self, moments: random.Random) -> list[Callable[[], object]]:
        beam, name = self.beam, f"r{moments.randrange(40)}"
        other, tokens = f"r{moments.randrange(40)}", moments.randrange(1, 3000)
        return [
            lambda: beam.arrival(name, tokens),
            lambda: beam.step_issued([name], [(other, 256)]),
            beam.step_finished,
            lambda: beam.first_token(name),
            lambda: beam.completion(name),
            lambda: beam.abort(name),
            lambda: beam.preemption(name),
        ]

    def _odd_ones(self, moments: random.Random) -> list[Callable[[], object]]:
        beam, odd = self.beam, moments.choice(ODD)
        name = moments.choice((f"r{moments.randrange(40)}", odd))
        at_ms = moments.choice((None, None, odd, self.now_ms))
        return [
            lambda: beam.arrival(
                name, moments.choice((100, odd)), slo=moments.choice((None, odd, Slo(500.0, 50.0))),
                cached_tokens=moments.choice((0, odd)), at_ms=at_ms,
            ),
            lambda: beam.first_token(name, at_ms=at_ms),
            lambda: beam.completion(
                name, at_ms=at_ms, told=moments.choice((None, odd, {"a": odd}))
            ),
            lambda: beam.abort(name, at_ms=at_ms),
            lambda: beam.preemption(name, at_ms=at_ms),
            lambda: (beam.passed_over(name, odd, at_ms=at_ms), beam.resume()),
            lambda: beam.step_issued(
                moments.choice(([name], odd)), moments.choice(([(name, 100)], odd)), at_ms=at_ms
            ),
            lambda: beam.step_finished(at_ms=at_ms),
        ]  # fmt: skip


def hooks(folder: Path) -> Callable[[random.Random], object]:
    """Nothing may raise, and no GPU may be locked in the end."""
    engine = Engine(folder)
    return lambda moments: must_not_raise(lambda: engine.call(moments))


def written_log(folder: Path) -> Path:
    """The decision log of some hundred sound calls."""
    engine = Engine(folder, odd=0.0)
    for number in range(300):
        engine.call(random.Random(number))
    engine.close()
    return engine.log
