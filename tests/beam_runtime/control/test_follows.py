"""An engine that follows a part of its orders: what BEAM expects is what it then does."""

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing import FakeEngine, FakeRequest
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.engine import Ledger
from beam_runtime.types import EngineLimits, Follows, Rules, Slo

DEEP = EngineLimits(pp=4, max_num_seqs=64, max_batched_tokens=512, host_gap_ms=5.5)


def requests(slo: Slo) -> list[FakeRequest]:
    return [FakeRequest(f"r{n}", 260.0 * n, 700 + 90 * (n % 7), 60, slo) for n in range(80)]


def served(cost: StepCost, slo: Slo, told: Follows, does: Follows) -> Ledger:
    """What an engine serves that follows so much, with a controller that was told so much."""
    gpus = FakeActuator(gpus=8)
    engine = FakeEngine(
        cost, DEEP, requests(slo), gpu_clock_mhz=lambda: gpus.locked_mhz[0], follows=does
    )
    with Controller(
        cost, DEEP, actuator=gpus, slos={"default": slo}, follows=told, threads=False,
        now_ms=lambda: engine.now_ms,
    ) as beam:  # fmt: skip
        return engine.run(beam)


def late(ledger: Ledger) -> float:
    """Share of promises broken."""
    first, gaps = ledger.late_ttft / len(ledger.ttft_ms), ledger.late_tbt / len(ledger.tbt_ms)
    return first + gaps


@pytest.mark.parametrize(
    ("follows", "gap_ms"),
    # With chunks of its own, 512 tokens, an engine keeps no shorter gap at any clock.
    [(Follows.CLOCK, 200.0), (Follows.CHUNK, 120.0)],
)
def test_promises_are_kept_where_it_is_known_what_the_engine_follows(
    small_cost: StepCost, follows: Follows, gap_ms: float
) -> None:
    slo = Slo(1000.0, gap_ms)
    own = FakeEngine(small_cost, DEEP, requests(slo)).run()
    known, mistaken = (served(small_cost, slo, told, follows) for told in (follows, Follows.STEPS))
    assert late(known) <= late(own) + 0.01
    assert known.energy_j < own.energy_j
    assert late(mistaken) > late(known)


@pytest.mark.parametrize("gap_ms", [120.0, 160.0, 220.0])
def test_longer_promises_are_kept_as_well(small_cost: StepCost, gap_ms: float) -> None:
    """What short steps err by is no measure of what steps as long as a gap do."""
    slo = Slo(1000.0, gap_ms)
    assert late(served(small_cost, slo, Follows.STEPS, Follows.STEPS)) < 0.01


def test_by_default_an_engine_follows_the_chunk(small_cost: StepCost) -> None:
    with Controller(small_cost, DEEP, threads=False) as beam:
        beam.arrival("a", 100)
        assert beam.advance().rules.min_chunk_tokens == Rules().min_chunk_tokens
        assert not beam.orders.rules.pace


def test_what_is_no_part_of_orders_is_refused(small_cost: StepCost) -> None:
    with pytest.raises(ValueError, match="clock, chunk, steps; 'pace' is none of these"):
        Controller(small_cost, DEEP, follows="pace")  # type: ignore[arg-type]
