"""Calibration follows a plant that is not the table, and noise never loosens a promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_runtime.control.calibration import Calibration, CalibrationRules, Drift, StepKind
from beam_runtime.types import Correction

PP = 4
KINDS = st.sampled_from(list(StepKind))
RULES = CalibrationRules()


def scale_of(calibration: Calibration, kind: StepKind) -> float:
    correction = calibration.correction
    return correction.prefill_scale if kind is StepKind.PREFILL else correction.decode_scale


def feed(
    calibration: Calibration, kind: StepKind, ratio: float, steps: int, noise: float = 0.0
) -> list[Drift]:
    """Steps of 5 to 40 ms that take ``ratio`` times what the table says."""
    random = np.random.default_rng(7)
    drifts = []
    for _ in range(steps):
        predicted_ms = random.uniform(5.0, 40.0)
        observed_ms = ratio * predicted_ms * random.lognormal(-(noise**2) / 2, noise)
        drift = calibration.observe_step(kind, predicted_ms, observed_ms)
        drifts += [drift] if drift else []
    return drifts


def test_without_steps_it_says_what_it_was_told() -> None:
    floor = Correction(1.1, 0.9, 30.0, 12.0)
    assert Calibration(PP, floor).correction == floor


@pytest.mark.parametrize("kind", list(StepKind))
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_it_converges_on_a_plant_15_percent_slower(kind: StepKind, noise: float) -> None:
    calibration = Calibration(PP)
    feed(calibration, kind, 1.15, 400, noise)
    assert scale_of(calibration, kind) == pytest.approx(1.15, rel=0.005 if noise == 0 else 0.04)
    (other,) = set(StepKind) - {kind}
    assert scale_of(calibration, other) == 1.0
    assert calibration.trusted


def test_margins_widen_at_first_and_come_back() -> None:
    calibration = Calibration(PP)
    feed(calibration, StepKind.DECODE, 1.0, 600)
    assert calibration.correction.tbt_margin_ms == Correction().tbt_margin_ms
    feed(calibration, StepKind.DECODE, 1.3, 20)
    assert calibration.correction.tbt_margin_ms > 1.2 * Correction().tbt_margin_ms
    feed(calibration, StepKind.DECODE, 1.3, 1200)
    assert calibration.correction.tbt_margin_ms == Correction().tbt_margin_ms
    assert calibration.correction.decode_scale == pytest.approx(1.3, rel=0.01)


STEPS = st.lists(
    st.tuples(KINDS, st.floats(1.0, 100.0), st.floats(0.0, 3.9)), min_size=1, max_size=700
)


@settings(max_examples=60)
@given(STEPS)
def test_noise_never_loosens_an_slo(steps: list[tuple[StepKind, float, float]]) -> None:
    """However the noise falls, 99 % of the latest steps keep what is promised through it."""
    calibration = Calibration(PP)
    for kind, predicted_ms, ratio in steps:
        calibration.observe_step(kind, predicted_ms, ratio * predicted_ms)
    correction = calibration.correction
    assert correction.tbt_margin_ms >= Correction().tbt_margin_ms
    assert correction.ttft_margin_ms >= Correction().ttft_margin_ms
    for kind in StepKind:
        seen = [(p, r * p) for k, p, r in steps if k is kind][-RULES.window :]
        scale = scale_of(calibration, kind)
        late = sum(
            PP * (observed - scale * predicted) > correction.tbt_margin_ms * (1 + 1e-9)
            for predicted, observed in seen
        )
        assert late <= (1 - RULES.share) * max(len(seen), RULES.least_window) + 1e-9


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_fair_noise_leaves_a_token_no_later_than_the_table_would(noise: float) -> None:
    """Noise around the table's truth: promise and margin together cover what is still to come."""

    def covered(seed: int) -> float:
        random = np.random.default_rng(seed)
        calibration = Calibration(PP, Correction(tbt_margin_ms=0.0, ttft_margin_ms=0.0))
        predicted_ms = random.uniform(10.0, 40.0, 4800)
        observed_ms = predicted_ms * random.lognormal(0.0, noise, 4800)
        for predicted, observed in zip(predicted_ms[:800], observed_ms[:800], strict=True):
            calibration.observe_step(StepKind.DECODE, predicted, observed)
        correction = calibration.correction
        promised_ms = correction.decode_scale * predicted_ms + correction.tbt_margin_ms / PP
        return float(np.mean(observed_ms[800:] <= promised_ms[800:]))

    shares = [covered(seed) for seed in range(20)]
    assert np.mean(shares) == pytest.approx(RULES.share, abs=0.005)
    assert min(shares) > 0.96, "a quantile of 512 values is itself unsure"


def test_a_stall_is_not_a_slow_table() -> None:
    calibration = Calibration(PP)
    feed(calibration, StepKind.DECODE, 1.0, 100)
    calibration.observe_step(StepKind.DECODE, 15.0, 30_000.0)
    assert calibration.correction.decode_scale < 1.15
    assert calibration.correction.tbt_margin_ms < 2 * Correction().tbt_margin_ms


@pytest.mark.parametrize(
    ("predicted_ms", "observed_ms"),
    [(0.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (-1.0, 1.0)],
)
def test_nonsense_is_not_learnt(predicted_ms: float, observed_ms: float) -> None:
    calibration = Calibration(PP)
    calibration.observe_step(StepKind.DECODE, predicted_ms, observed_ms)
    calibration.observe_ttft(float("inf"), 100.0)
    assert calibration.correction == Correction()


@pytest.mark.parametrize("ratio", [0.8, 1.2])
def test_drift_is_reported_once(ratio: float) -> None:
    calibration = Calibration(PP)
    windows = RULES.drift_steps
    assert feed(calibration, StepKind.DECODE, ratio, 3 * windows - 1) == []
    (drift,) = feed(calibration, StepKind.DECODE, ratio, 10 * windows)
    assert drift.kind is StepKind.DECODE
    assert drift.ratio == pytest.approx(ratio)
    assert "decode-only" in str(drift)


def test_two_bad_windows_are_no_drift() -> None:
    calibration = Calibration(PP)
    for _ in range(4):
        assert feed(calibration, StepKind.PREFILL, 1.3, 2 * RULES.drift_steps) == []
        assert feed(calibration, StepKind.PREFILL, 1.0, RULES.drift_steps) == []


@pytest.mark.parametrize(("ratio", "scale"), [(3.0, 2.0), (0.3, 0.5)])
def test_at_the_clamp_the_table_is_not_trusted_until_it_is_right_again(
    ratio: float, scale: float
) -> None:
    calibration = Calibration(PP)
    feed(calibration, StepKind.DECODE, ratio, 300)
    assert not calibration.trusted
    assert calibration.correction.decode_scale == scale
    feed(calibration, StepKind.DECODE, 1.0, 300)
    assert calibration.trusted


def test_first_tokens_that_come_late_widen_their_margin_only() -> None:
    calibration = Calibration(PP)
    for _ in range(50):
        calibration.observe_ttft(500.0, 580.0)
    assert calibration.correction.ttft_margin_ms == pytest.approx(80.0)
    assert calibration.correction.tbt_margin_ms == Correction().tbt_margin_ms


def test_the_load_is_known_after_some_arrivals_and_follows_a_change() -> None:
    calibration = Calibration(PP)
    assert calibration.correction.arrivals_per_s == 0.0, "nobody is expected"
    calibration.observe_arrival(0.0)
    assert calibration.correction.arrivals_per_s == 0.0, "one does not make a rate"
    for number in range(1, 300):
        calibration.observe_arrival(number * 500.0)
    assert calibration.correction.arrivals_per_s == pytest.approx(2.0)
    for number in range(1, 300):
        calibration.observe_arrival(149_500.0 + number * 100.0)
    assert calibration.correction.arrivals_per_s == pytest.approx(10.0, rel=0.01)


def test_arrivals_at_one_moment_or_out_of_order_give_a_finite_rate() -> None:
    calibration = Calibration(PP)
    for at_ms in (5.0, 5.0, 3.0, 5.0, 105.0):
        calibration.observe_arrival(at_ms)
    assert calibration.correction.arrivals_per_s == pytest.approx(10.0), "100 ms, not 102"


def test_longer_answers_need_a_wider_margin_of_streams_but_none_of_first_tokens() -> None:
    def after(gaps_each: int) -> Correction:
        """300 requests, of which as many steps hold that each has so many gaps."""
        random = np.random.default_rng(3)
        calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
        for number in range(300):
            calibration.observe_arrival(number * 100.0)
            observed_ms = 20.0 * random.normal(1.0, 0.03)
            calibration.observe_step(StepKind.DECODE, 20.0, observed_ms, decodes=gaps_each)
        return calibration.correction

    alone, short, long = after(1), after(10), after(1000)
    # Of a Gaussian error: 99 % of gaps lie below 2.33 sigma, 0.99^(1/1000) of them below 4.27.
    assert long.tbt_margin_ms / alone.tbt_margin_ms == pytest.approx(4.27 / 2.33, rel=0.02)
    assert alone.tbt_margin_ms < short.tbt_margin_ms < long.tbt_margin_ms
    assert alone.ttft_margin_ms == pytest.approx(long.ttft_margin_ms)


def test_what_the_errors_ask_for_takes_the_place_of_the_least_margin_and_not_on_top_of_it() -> None:
    little, large = (Calibration(PP, Correction(tbt_margin_ms=ms)) for ms in (1.0, 500.0))
    for calibration in (little, large):
        feed(calibration, StepKind.DECODE, 1.0, 300, noise=0.1)
    assert little.correction.tbt_margin_ms > 10.0
    assert large.correction.tbt_margin_ms == 500.0
