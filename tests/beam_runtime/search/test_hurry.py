"""The price of milliseconds that those who come lose to a low clock."""

from beam_runtime.search.hurry import Hurry
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits


def test_who_has_time_has_nothing_to_make_good(small_cost: StepCost) -> None:
    limits = EngineLimits(pp=4, host_gap_ms=2.0)

    def price_j(prompt_tokens: float, first_token_ms: float) -> float:
        learnt = Correction(prompt_tokens=prompt_tokens)
        return Hurry(small_cost, limits, 512, first_token_ms).gaps_j_per_ms(learnt)

    unknown = price_j(0.0, 1000.0)
    assert unknown > 0.0
    assert price_j(100_000.0, 1000.0) == unknown, "longer than the SLO at the cheapest clock"
    prices = [price_j(tokens, 5000.0) for tokens in (50.0, 500.0, 5000.0)]
    assert prices == sorted(prices)
    assert prices[0] < 0.1 * unknown
    assert price_j(500.0, 50_000.0) < price_j(500.0, 500.0) <= unknown
