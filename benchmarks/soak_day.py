"""The day of soak.py: simulated time, and an engine whose events are lost on their way."""

import random
import time
from dataclasses import dataclass

from soak_site import LIMITS, RULES, SLO, TABLE, rss_mb

from beam_runtime.control.controller import Controller
from beam_runtime.control.orders import Orders
from beam_runtime.search.search import Search
from beam_runtime.search.stance import stance_for
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.smoothing import smoothed
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.engine import FakeEngine, FakeRequest
from beam_runtime.types import Decision, Follows, Snapshot


@dataclass
class Day:
    """What came of it; memory in MB after the first hour and at the end.

    Attributes:
        ghosts: requests thought to be there that were not, in the worst of the looks that are
            taken once a minute; their mean; how many there were at the last.
        missing: requests that were there and not thought of, likewise.
        tokens_equal: whether every request got its tokens.
    """

    hours: float = 0.0
    wall_s: float = 0.0
    requests: int = 0
    events_told: int = 0
    events_lost: int = 0
    decisions: int = 0
    falls: int = 0
    lost_requests: int = 0
    lost_steps: int = 0
    steering_share: float = 0.0
    steering_last_hour: float = 0.0
    ghosts: int = 0
    ghosts_mean: float = 0.0
    ghosts_at_end: int = 0
    missing: int = 0
    began_mb: float = 0.0
    ended_mb: float = 0.0
    locked_at_end: int = 0
    tokens_equal: bool = False


def day(hours: float, every_s: float, loss: float, seed: int) -> Day:
    """An engine whose events are lost, each by itself, and nobody who tells what is true."""
    cost = smoothed(StepCost.from_table(PerfTable.load(TABLE)))
    moments, found = random.Random(seed), Day(hours=hours)
    at_ms, requests = 0.0, []
    while at_ms < hours * 3.6e6:
        prompt, answer = moments.randrange(20, 2000), moments.randrange(2, 80)
        requests.append(FakeRequest(f"r{len(requests)}", at_ms, prompt, answer, SLO))
        at_ms += moments.expovariate(1.0 / (every_s * 1e3))
    stance = stance_for(cost, LIMITS, SLO)
    real = Search(cost, LIMITS, rules=stance.rules, policy=stance.policy)
    actuator = FakeActuator(gpus=1)
    looked_ms, ghosts = [0.0], [0]
    steered: list[bool] = []

    def mute(hook: str, request_id: str) -> bool:
        lost = moments.random() < loss
        found.events_lost += lost
        found.events_told += not lost
        return lost

    engine = FakeEngine(
        cost, LIMITS, requests, gpu_clock_mhz=lambda: actuator.locked_mhz[0], mute=mute
    )

    def search(state: Snapshot) -> Decision:
        if state.now_ms - looked_ms[-1] > 60_000.0:
            looked_ms.append(state.now_ms)
            view = engine.snapshot()
            true = {one.request_id for one in (*view.running, *view.waiting)}
            known = {one.request_id for one in (*state.running, *state.waiting)}
            found.ghosts = max(found.ghosts, len(known - true))
            found.missing = max(found.missing, len(true - known))
            found.ghosts_at_end = len(known - true)
            ghosts.append(found.ghosts_at_end)
            if state.now_ms > 3.6e6 and not found.began_mb:
                found.began_mb = rss_mb()
        return real.decide(state)

    class Counting:
        """The controller, as the engine calls it."""

        def __init__(self, beam: Controller) -> None:
            self._beam = beam

        def __getattr__(self, hook: str) -> object:
            return getattr(self._beam, hook)

        def advance(self) -> Orders:
            orders = self._beam.advance()
            steered.append(orders.steering)
            return orders

    begun_s = time.monotonic()
    with Controller(
        cost, LIMITS, actuator=actuator, slos={"default": SLO}, search=search, threads=False,
        now_ms=lambda: engine.now_ms, rules=RULES, follows=Follows.STEPS,
    ) as beam:  # fmt: skip
        ledger = engine.run(Counting(beam))  # type: ignore[arg-type]
        counts = beam.status.counts
    found.wall_s, found.requests = time.monotonic() - begun_s, len(requests)
    found.decisions, found.falls = counts.decisions, counts.falls
    found.lost_requests, found.lost_steps = counts.lost_requests, counts.lost_steps
    found.ghosts_mean = sum(ghosts) / len(ghosts)
    found.steering_share = sum(steered) / max(1, len(steered))
    last = steered[-max(1, int(len(steered) / max(1.0, hours))) :]
    found.steering_last_hour = sum(last) / len(last)
    found.ended_mb, found.locked_at_end = rss_mb(), sum(c is not None for c in actuator.locked_mhz)
    plain = FakeEngine(cost, LIMITS, requests).run()
    found.tokens_equal = ledger.outputs == plain.outputs
    return found
