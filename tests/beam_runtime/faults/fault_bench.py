"""A bench for faults: one engine, served twice.

Without BEAM, and with a BEAM to which something bad happens. Two things hold at the end of
every run: the engine's tokens are the same, and no GPU is locked.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from beam_runtime.clocks.base import ClockActuator
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.control.controller import Controller
from beam_runtime.control.fallback import FallbackRules
from beam_runtime.control.orders import EngineAdapter, Orders
from beam_runtime.control.steering_rules import SteeringRules
from beam_runtime.errors import TableError
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.engine import FakeEngine, FakeRequest, Ledger
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beam_runtime.types import Decision, EngineLimits, Follows, Forecast, Knobs, Slo, Snapshot

SLO = Slo(3000.0, 400.0)
QUICK = SteeringRules(stall_ms=500.0, fallback=FallbackRules(pause_ms=400.0))

# How long a test waits for what takes milliseconds before it calls it missing.
PATIENCE_S = 20.0


def wait_for(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < deadline_s:
        time.sleep(0.002)
    assert what()


def requests(number: int = 12, every_ms: float = 150.0, tokens: int = 20) -> list[FakeRequest]:
    random = np.random.default_rng(1)
    return [
        FakeRequest(
            f"r{n}",
            n * every_ms,
            int(random.integers(20, 600)),
            int(random.integers(2, tokens)),
            SLO,
        )
        for n in range(number)
    ]


def forecast() -> Forecast:
    """One that promises nothing in particular."""
    return Forecast(
        ttft_ms={},
        worst_tbt_ms={},
        ttft_excess_ms=-1.0,
        tbt_excess_ms=-1.0,
        ttft_worst=None,
        tbt_worst=None,
        broken=0.0,
        horizon_ms=250.0,
        active_energy_j=1.0,
        idle_energy_j=1.0,
    )


def alternating(state: Snapshot) -> Decision:
    """A search that is always quick and never content: every decision turns every knob."""
    turn = int(state.now_ms / 100.0) % 2
    knobs = Knobs((735, 1185)[turn], (128, 512)[turn], 1 + turn, 20.0 * turn)
    return Decision(knobs, forecast(), "it is its turn", decided_ms=state.now_ms)


def content(state: Snapshot) -> Decision:
    """A search that has found what it wants."""
    return Decision(Knobs(960, 256), forecast(), "it is good", decided_ms=state.now_ms)


class Threaded:
    """A controller whose threads run by themselves, as FakeEngine drives one that has none."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def __getattr__(self, hook: str) -> object:
        return getattr(self._controller, hook)

    def advance(self) -> Orders:
        time.sleep(0.001)  # let the others run
        return self._controller.orders


@dataclass
class Bench:
    """One table, one engine with and without BEAM, one GPU group to look at afterwards."""

    cost: StepCost
    limits: EngineLimits
    actuator: FakeActuator | ClockActuator | None = field(
        default_factory=lambda: FakeActuator(gpus=8)
    )
    locked: Callable[[], Sequence[int | None]] | None = None
    controller: Controller | None = None

    def on_nvml(self, gpus: int = 8) -> FakeNvml:
        """Put the engine on GPUs behind a fake NVML, and return that."""
        nvml = FakeNvml(fake_gpus(gpus))
        self.actuator = NvmlGpus(range(gpus), nvml=nvml)
        self.locked = lambda: nvml.locked
        return nvml

    @property
    def locked_mhz(self) -> list[int | None]:
        """Each GPU's lock."""
        if self.locked is not None:
            return list(self.locked())
        return self.actuator.locked_mhz if isinstance(self.actuator, FakeActuator) else [None]

    def vanilla(self, served: list[FakeRequest], **engine: object) -> Ledger:
        return FakeEngine(self.cost, self.limits, served, **engine).run()  # type: ignore[arg-type]

    def run(
        self,
        served: list[FakeRequest],
        *,
        search: Callable[[Snapshot], Decision] | None = alternating,
        cost: StepCost | TableError | None = None,
        engine: dict[str, object] | None = None,
        adapter: bool | EngineAdapter = False,
        rules: SteeringRules = QUICK,
        threads: bool = False,
        lost_gpus: Sequence[int] = (),
        meanwhile: Callable[[Controller, float], None] = lambda controller, now_ms: None,
        **controller: object,
    ) -> Ledger:
        """Serve under BEAM and check the two things; returns what was served.

        ``adapter``: the engine itself, or another one in its place. ``lost_gpus`` have fallen
        off the bus: nobody can unlock them, or use them.
        """
        fake = FakeEngine(
            self.cost,
            self.limits,
            served,
            gpu_clock_mhz=lambda: self.locked_mhz[0],
            **(engine or {}),  # type: ignore[arg-type]
        )

        visited_ms = -1.0

        def now_ms() -> float:
            nonlocal visited_ms
            new = fake.now_ms > visited_ms  # once: what is called asks for the time, too
            if self.controller is not None and self.controller.is_open and new:
                visited_ms = fake.now_ms
                meanwhile(self.controller, fake.now_ms)
            return fake.now_ms

        self.controller = Controller(
            cost or self.cost,
            self.limits,
            actuator=self.actuator,
            engine=fake if adapter is True else adapter or None,
            follows=Follows.STEPS,
            search=search,
            threads=threads,
            now_ms=now_ms,
            rules=rules,
            **controller,  # type: ignore[arg-type]
        )
        with self.controller:
            ledger = fake.run(Threaded(self.controller) if threads else self.controller)
            self.after = self.controller.status
        plain = self.vanilla(
            served, **{k: v for k, v in (engine or {}).items() if k == "kv_blocks"}
        )
        assert ledger.outputs == plain.outputs, "the engine's tokens are unchanged"
        left = [clock for gpu, clock in enumerate(self.locked_mhz) if gpu not in lost_gpus]
        assert set(left) == {None}, "no GPU is locked"
        assert not self.controller.orders.steering
        return ledger
