"""Promises as streams are served."""

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.emulator.promises import breaks, promise, settle_times
from beam_runtime.emulator.state import REQUEST, records
from beam_runtime.search.keepable import Keepable
from beam_runtime.search.stance import stance_for
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing import FakeEngine, FakeRequest
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.types import ASSUMED_ANSWER_TOKENS, EngineLimits, Follows, Slo

LIMITS = EngineLimits(pp=1, max_num_seqs=64, max_batched_tokens=512, host_gap_ms=2.0)
DEFAULT = Slo(1000.0, 200.0)


def test_a_gap_without_hope_is_due_as_most_others_are(small_cost: StepCost) -> None:
    keepable = Keepable(small_cost, LIMITS)
    served = keepable.served(Slo(500.0, 1.0), DEFAULT)
    assert keepable.hopeless(Slo(500.0, 1.0))
    assert keepable.hopeless(Slo(500.0, 0.4)).endswith("promised are 0.4 ms")
    assert (served.tbt_ms, served.due_every_ms) == (1.0, 200.0)
    for kept in (Slo(500.0, 100.0), Slo(500.0, tpot_ms=1.0)):
        assert keepable.served(kept, DEFAULT) == kept


def test_a_tight_gap_that_is_late_is_due_as_most_others_are_from_then_on(
    small_cost: StepCost,
) -> None:
    keepable = Keepable(small_cost, LIMITS)

    def due_ms(slo: Slo, last_ms: float, now_ms: float) -> float:
        """Of its next token, at a moment, where its tokens came at 0 and at last_ms."""
        record = records(1, REQUEST)
        promise(record, keepable.served(slo, DEFAULT))
        record["generated_tokens"] = 1
        record["broken"] |= breaks(record, last_ms)
        settle_times(record, now_ms)
        return float(record["token_slo_ms"][0])

    assert due_ms(Slo(1000.0, 100.0), 90.0, 95.0) == 100.0
    assert due_ms(Slo(1000.0, 100.0), 110.0, 120.0) == 200.0
    assert due_ms(DEFAULT, 210.0, 220.0) == 200.0
    assert due_ms(Slo(1000.0, 400.0), 410.0, 420.0) == 400.0, "no longer promise gets shorter"
    assert due_ms(Slo(1000.0, 100.0, tbt_share=0.99), 110.0, 120.0) == 100.0, "it may yet be kept"


def test_a_whole_answer_is_for_as_many_tokens_as_answers_have(small_cost: StepCost) -> None:
    keepable, whole = Keepable(small_cost, LIMITS), Slo(1000.0, e2e_ms=30_000.0)
    unknown = keepable.served(whole, DEFAULT).answer_tokens
    for tokens in range(101, 201):
        keepable.answered(tokens)
    assert keepable.served(whole, DEFAULT).answer_tokens == 195
    assert unknown > 200, "until answers were seen they are taken to be long"
    told = Slo(1000.0, e2e_ms=30_000.0, answer_tokens=40)
    assert keepable.served(told, DEFAULT) == told


def test_promises_without_hope_set_no_margins(small_cost: StepCost) -> None:
    alone = stance_for(small_cost, LIMITS, DEFAULT)
    assert stance_for(small_cost, LIMITS, DEFAULT, [Slo(500.0, 1.0)]) == alone
    tight = stance_for(small_cost, LIMITS, DEFAULT, [Slo(1000.0, 80.0)])
    assert tight.floor.tbt_margin_ms < alone.floor.tbt_margin_ms
    only_classes = stance_for(small_cost, LIMITS, Slo(1000.0, 1.0), [DEFAULT])
    assert not only_classes.hopeless
    assert only_classes.floor == alone.floor


@pytest.mark.parametrize("own", [Slo(1000.0, 1.0), Slo(1000.0, 60.0), Slo(1000.0, 20.0)])
def test_a_few_requests_with_a_tight_gap_cost_the_others_nothing(
    small_cost: StepCost, own: Slo
) -> None:
    """Without hope, to be kept, or kept by some of them."""
    requests = [
        FakeRequest(f"r{n}", 150.0 * n, 600, 40, own if n % 20 == 0 else DEFAULT)
        for n in range(120)
    ]
    gpus = FakeActuator(gpus=1)
    engine = FakeEngine(small_cost, LIMITS, requests, gpu_clock_mhz=lambda: gpus.locked_mhz[0])
    with Controller(
        small_cost, LIMITS, actuator=gpus, follows=Follows.STEPS, threads=False,
        now_ms=lambda: engine.now_ms,
    ) as beam:  # fmt: skip
        ledger = engine.run(beam)
    assert ledger.late_ttft <= 2
    mine = sum(39 for request in requests if request.slo is own)
    assert ledger.late_tbt <= {1.0: 1.0, 20.0: 0.6, 60.0: 0.02}[own.stream_ms] * mine


def test_the_end_of_a_request_that_nobody_knows_says_nothing_of_answers(
    small_cost: StepCost,
) -> None:
    time_ms = 0.0
    with Controller(small_cost, LIMITS, threads=False, now_ms=lambda: time_ms) as beam:
        for number in range(4):
            time_ms = 500.0 * number
            beam.arrival(f"r{number}", 100)
            for ghost in range(20):
                beam.completion(f"g{number}-{ghost}")
            beam.advance()
        learnt = beam.status.correction
    assert learnt.arrivals_per_s == pytest.approx(2.0)
    assert learnt.decode_tokens_per_s == pytest.approx(2.0 * ASSUMED_ANSWER_TOKENS)
