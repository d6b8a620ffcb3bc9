"""What was promised, when a promise is broken for good, and when a token is due."""

import math

import pytest

from beam_runtime.emulator.moment import Moment, snapshot_of
from beam_runtime.emulator.promises import breaks, promise, promised
from beam_runtime.emulator.state import REQUEST, records
from beam_runtime.types import EngineLimits, Knobs, RequestState, Slo, Snapshot

SLOS = (
    Slo(), Slo(500.0, 80.0, tbt_share=0.99), Slo(tpot_ms=60.0),
    Slo(e2e_ms=9000.0, answer_tokens=100),
)  # fmt: skip


@pytest.mark.parametrize("slo", SLOS)
def test_an_slo_comes_back_from_its_columns(slo: Slo) -> None:
    record = records(1, REQUEST)[0]
    promise(record, slo)
    assert promised(record) == slo


@pytest.mark.parametrize(
    ("slo", "late_gap", "late_first"),
    [
        (Slo(1000.0, 200.0), True, True),
        (Slo(1000.0, 200.0, tbt_share=0.99), False, True),
        (Slo(1000.0, tpot_ms=200.0), False, True),
        (Slo(1000.0, e2e_ms=9000.0), False, True),
    ],
)
def test_only_what_cannot_be_made_good_is_broken(slo: Slo, late_gap: bool, late_first: bool):
    record = records(1, REQUEST)[0]
    promise(record, slo)
    assert breaks(record, 1000.1) == late_first
    assert not breaks(record, 1000.0)
    record["generated_tokens"], record["last_token_ms"] = 3, 100.0
    assert breaks(record, 301.0) == late_gap
    assert not breaks(record, 299.0)


def test_of_several_requests_each_is_judged_as_it_would_be_by_itself() -> None:
    several = records(2 * len(SLOS), REQUEST)
    for row, slo in enumerate((*SLOS, *SLOS)):
        promise(several[row], slo)
    several["generated_tokens"][len(SLOS) :] = 3
    several["last_token_ms"] = 900.0
    for token_ms in (400.0, 950.0, 1001.0, 9999.0):
        assert breaks(several, token_ms).tolist() == [bool(breaks(r, token_ms)) for r in several]
    assert breaks(several, 9999.0).tolist() == [True] * 4 + [True, False, False, False]


def test_who_waits_longer_than_promised_is_broken_by_now_and_who_does_not_is_not() -> None:
    waiting = (RequestState("late", 10, -1001.0), RequestState("in time", 10, -999.0))
    state = Snapshot(0.0, EngineLimits(pp=1), Knobs(1410, 256), (), waiting)
    seen = snapshot_of(Moment.of(state)).waiting
    assert [(r.request_id, r.broken) for r in seen] == [("late", True), ("in time", False)]


def test_what_e2e_leaves_follows_from_the_first_token() -> None:
    slo = Slo(ttft_ms=1000.0, e2e_ms=9000.0, answer_tokens=81)
    assert slo.token_ms == pytest.approx(100.0), "until it is out as if it came when promised"
    early = RequestState(
        "r", 10, -500.0, slo, computed_tokens=12, generated_tokens=2, first_token_ms=-100.0,
        last_token_ms=-10.0,
    )  # fmt: skip
    state = Snapshot(0.0, EngineLimits(pp=1), Knobs(1410, 256), (early,))
    record = Moment.of(state).state.requests[0]
    assert float(record["token_slo_ms"]) == pytest.approx((8500.0 + 100.0) / 80)


@pytest.mark.parametrize(
    "bad",
    [
        {"tbt_ms": 100.0, "tpot_ms": 100.0}, {"tpot_ms": 0.0}, {"e2e_ms": -1.0},
        {"ttft_ms": math.nan}, {"tbt_share": 0.0}, {"tbt_share": 1.1}, {"answer_tokens": 0},
    ],
)  # fmt: skip
def test_a_promise_that_is_none_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Slo(**bad)  # type: ignore[arg-type]


def test_another_kind_replaces_its_own() -> None:
    assert Slo(1000.0, 200.0).revised(tpot_ms=90.0) == Slo(1000.0, tpot_ms=90.0)
    assert Slo(tpot_ms=90.0).revised(ttft_ms=300.0) == Slo(300.0, tpot_ms=90.0)
