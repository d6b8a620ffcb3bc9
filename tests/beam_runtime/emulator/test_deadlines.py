"""When tokens are due by a mean, and what a long queue costs those who are still to come."""

import math

import numba
import pytest

from beam_runtime.emulator.deadlines import KEPT_TOKENS, LEAD_STEP, LEAD_TOKENS
from beam_runtime.emulator.deadlines import due_ms as _due_ms
from beam_runtime.emulator.deadlines import joining_due_ms as _joining_due_ms
from beam_runtime.emulator.deadlines import queue_risk as _queue_risk
from beam_runtime.emulator.deadlines import stream_risk as _stream_risk
from beam_runtime.emulator.moment import Moment
from beam_runtime.emulator.setup import make_setup
from beam_runtime.emulator.state import Records
from beam_runtime.types import Correction, EngineLimits, Knobs, RequestState, Rules, Slo, Snapshot

LIMITS = EngineLimits(pp=1)


# What is compiled to be called by compiled code is called by such.
@numba.njit
def due_ms(requests: Records) -> float:
    return _due_ms(requests[0])


@numba.njit
def joining_due_ms(requests: Records) -> float:
    return _joining_due_ms(requests[0])


@numba.njit
def queue_risk(queue_ms: float, first_token_ms: float, next_ms: float, setup: Records) -> float:
    return _queue_risk(queue_ms, first_token_ms, next_ms, setup[0])


@numba.njit
def stream_risk(requests: Records, excess_ms: float, margin_ms: float, fastest_ms: float) -> float:
    return _stream_risk(requests[0], excess_ms, margin_ms, fastest_ms)


def stream(slo: Slo, tokens: int) -> Records:
    """A request with its first token at 1,000 ms and its latest at 1,500."""
    one = RequestState(
        "r", 10, 0.0, slo, computed_tokens=9 + tokens, generated_tokens=tokens,
        first_token_ms=1000.0, last_token_ms=1500.0,
    )  # fmt: skip
    moment = Moment.of(Snapshot(1500.0, LIMITS, Knobs(1410, 256), (one,)))
    return moment.state.requests


def test_a_mean_is_brought_ahead_from_token_to_token_and_no_further_than_its_lead() -> None:
    slo = Slo(tpot_ms=100.0)
    ahead_ms = [1000.0 + n * 100.0 - due_ms(stream(slo, n)) for n in range(1, 60)]
    assert ahead_ms[0] == pytest.approx(100.0 * LEAD_STEP), "the second token can be in time"
    assert ahead_ms == sorted(ahead_ms)
    assert ahead_ms[-1] == pytest.approx(100.0 * LEAD_TOKENS)


def test_to_go_on_with_others_a_mean_gives_up_lead_and_a_gap_nothing() -> None:
    mean, gap = stream(Slo(tpot_ms=100.0), 50), stream(Slo(tbt_ms=100.0), 50)
    given_up_ms = 100.0 * (LEAD_TOKENS - KEPT_TOKENS)
    assert joining_due_ms(mean) - due_ms(mean) == pytest.approx(given_up_ms)
    assert joining_due_ms(gap) == due_ms(gap) == 1600.0


@pytest.mark.parametrize(
    ("queue_ms", "next_ms", "per_s", "lost"),
    [
        (800.0, 0.0, 3.0, 0.0), (1500.0, 0.0, 0.0, 0.0), (1500.0, 0.0, 2.0, 1.2),
        (900.0, 0.0, 10.0, 0.0), (500.0, 300.0, 2.0, 0.0), (800.0, 300.0, 2.0, 0.4),
        (500.0, 2000.0, 2.0, 1.0),  # in time behind nobody: no more are lost than come meanwhile
    ],
)  # fmt: skip
def test_who_comes_behind_a_queue_longer_than_the_slo_is_lost(
    queue_ms: float, next_ms: float, per_s: float, lost: float
) -> None:
    learnt = Correction(ttft_margin_ms=100.0, arrivals_per_s=per_s)
    setup = make_setup(LIMITS, Rules(), learnt)
    assert queue_risk(queue_ms, 1000.0, next_ms, setup) == pytest.approx(lost)
    assert queue_risk(queue_ms, math.inf, next_ms, setup) == 0.0, (
        "nobody was promised a first token"
    )


def test_a_mean_far_behind_is_not_given_up_and_a_long_answer_makes_more_good() -> None:
    """20 ms of each token make good what it is behind: 1 s is 50 tokens, 10 s are 500."""
    of_256, of_1024 = (
        stream(Slo(tpot_ms=100.0, answer_tokens=tokens), 50) for tokens in (256, 1024)
    )
    assert stream_risk(of_256, 0.0, 5.0, 80.0) == 0.0
    assert stream_risk(of_256, 1e3, 5.0, 80.0) == pytest.approx(1.0 - math.exp(-50 / 256))
    assert stream_risk(of_1024, 1e3, 5.0, 80.0) == pytest.approx(1.0 - math.exp(-50 / 1024))
    late, later = stream_risk(of_256, 1e4, 5.0, 80.0), stream_risk(of_256, 1.1e4, 5.0, 80.0)
    assert late < later < 1.0, "whoever is far behind is worth a faster clock all the same"


def test_a_gap_is_lost_a_margin_beyond_its_slo() -> None:
    gap = stream(Slo(tbt_ms=100.0), 50)
    assert stream_risk(gap, 5.0, 5.0, 80.0) == pytest.approx(0.5)
    assert stream_risk(gap, 50.0, 5.0, 80.0) == 1.0
