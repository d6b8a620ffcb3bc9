"""A whole controller over an engine that more comes to than streams leave room for."""

from beam_runtime.control.controller import Controller
from beam_runtime.control.orders import Orders
from beam_runtime.control.patience import HURRIED_SLOS
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing import FakeEngine, FakeRequest
from beam_runtime.types import PATIENT_SLOS, EngineLimits, Follows, Slo

TIGHT = Slo(ttft_ms=400.0, tbt_ms=60.0)


class Watched(FakeEngine):
    """Notes when it is told to be how patient."""

    def apply(self, orders: Orders) -> None:
        self.told_ms = getattr(self, "told_ms", {})
        self.told_ms.setdefault(orders.correction.patience_slos, []).append(self.now_ms)
        super().apply(orders)


def arrivals(count: int, every_ms: float, begin_ms: float = 0.0) -> list[FakeRequest]:
    """Requests of 400 prompt tokens and six answered ones."""
    return [
        FakeRequest(f"{begin_ms:.0f}+{n}", begin_ms + every_ms * n, 400, 6, TIGHT)
        for n in range(count)
    ]


def test_an_overload_that_lasts_is_served_as_vllm_would_until_it_is_over(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    rush, quiet = arrivals(1200, every_ms=20.0), arrivals(650, 300.0, begin_ms=200_000.0)
    engine = Watched(small_cost, limits, [*rush, *quiet])
    with Controller(
        small_cost,
        limits,
        follows=Follows.STEPS,
        threads=False,
        now_ms=lambda: engine.now_ms,
        slos={"default": TIGHT},
    ) as beam:
        ledger = engine.run(beam)
        assert not beam.status.reason
    assert set(engine.told_ms) == {PATIENT_SLOS, HURRIED_SLOS}
    hurried_ms = engine.told_ms[HURRIED_SLOS]
    assert rush[750].arrival_ms < min(hurried_ms) < rush[-1].arrival_ms, "not for a short one"
    assert quiet[0].arrival_ms < max(hurried_ms) < quiet[-1].arrival_ms
    assert engine.told_ms[PATIENT_SLOS][-1] > max(hurried_ms), "streams are protected again"
    before = [ledger.ttft_ms[r.request_id] for r in rush[600:700]]
    after = [ledger.ttft_ms[r.request_id] for r in quiet[:100]]
    assert min(before) > TIGHT.ttft_ms > max(after)
    assert all(len(tokens) == 6 for tokens in ledger.outputs.values())
