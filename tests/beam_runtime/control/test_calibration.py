"""Calibration follows a plant that is not the table, and noise never loosens a promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_runtime.control.calibration import Calibration, Drift, StepKind
from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.emulator.moment import Moment
from beam_runtime.types import (
    ASSUMED_ANSWER_TOKENS,
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Slo,
    Snapshot,
    StepShape,
)

PP = 4
KINDS = st.sampled_from(list(StepKind))
RULES = CalibrationRules()
# A step of each kind. Its decodes do not matter to what is learnt of times.
STEPS_OF = {StepKind.PREFILL: StepShape(prefill_tokens=256), StepKind.DECODE: StepShape(0, 0, 1)}


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
        drift = calibration.observe_step(STEPS_OF[kind], predicted_ms, observed_ms)
        drifts += [drift] if drift else []
    return drifts


def beside(calibration: Calibration, *gaps_ms: float, lost: int = 0) -> Correction:
    """What it says beside streams with these gaps, the first of which are late already."""
    running = tuple(
        RequestState(
            f"r{number}", 10, -50.0, Slo(1000.0, gap_ms), computed_tokens=12, generated_tokens=2,
            last_token_ms=-1.0, broken=number < lost,
        )
        for number, gap_ms in enumerate(gaps_ms)
    )  # fmt: skip
    state = Snapshot(0.0, EngineLimits(pp=PP), Knobs(1410, 512), running)
    return calibration.corrected(Moment.of(state)).correction


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
    least_ms = 5.0
    calibration = Calibration(PP, Correction(tbt_margin_ms=least_ms))
    feed(calibration, StepKind.DECODE, 1.0, 600)
    assert calibration.correction.tbt_margin_ms == least_ms
    feed(calibration, StepKind.DECODE, 1.3, 20)
    assert calibration.correction.tbt_margin_ms > 1.2 * least_ms
    feed(calibration, StepKind.DECODE, 1.3, 1200)
    assert calibration.correction.tbt_margin_ms == least_ms
    assert calibration.scale(STEPS_OF[StepKind.DECODE]) == pytest.approx(1.3, rel=0.01)


def test_what_few_steps_of_a_size_taught_does_not_narrow_the_margin() -> None:
    """Each size once: what they were off by was not known before."""
    calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
    feed(calibration, StepKind.DECODE, 1.0, RULES.window)
    for decodes in range(4, 60, 4):
        calibration.observe_step(StepShape(decode_requests=decodes), 20.0, 26.0)
    scale = calibration.correction.decode_scale
    gap_ms = 80.0
    late_share = 26.0 / (scale * 20.0) - 1.0
    in_time_ms = gap_ms / (1.0 + late_share)
    assert beside(calibration, gap_ms).tbt_margin_ms == pytest.approx(gap_ms - in_time_ms)


SHAPES = st.builds(
    StepShape,
    prefill_tokens=st.sampled_from((0, 1, 40, 128, 129, 700)),
    decode_requests=st.sampled_from((1, 8, 40, 900)),
)
STEPS = st.lists(
    st.tuples(SHAPES, st.floats(1.0, 100.0), st.floats(0.0, 3.9)), min_size=1, max_size=700
)


@settings(max_examples=60)
@given(STEPS)
def test_noise_never_loosens_an_slo(steps: list[tuple[StepShape, float, float]]) -> None:
    """However the noise falls, 99 % of the latest steps keep a first token promised through it."""
    calibration = Calibration(PP)
    for shape, predicted_ms, ratio in steps:
        calibration.observe_step(shape, predicted_ms, ratio * predicted_ms)
    correction = calibration.correction
    assert correction.tbt_margin_ms >= Correction().tbt_margin_ms
    margin_ms = correction.ttft_margin_ms - Correction().ttft_margin_ms
    assert margin_ms >= 0.0
    for kind in StepKind:
        seen = [(s, p, r * p) for s, p, r in steps if StepKind.of(s) is kind][-RULES.window :]
        late = sum(
            PP * (observed - calibration.scale(shape) * predicted) > margin_ms * (1 + 1e-9) + 1e-9
            for shape, predicted, observed in seen
        )
        assert late <= (1 - RULES.share) * max(len(seen), RULES.least_window) + 1e-9


def test_the_correction_says_of_each_step_what_calibration_says() -> None:
    calibration = Calibration(PP)
    shapes = [StepShape(c, 0, d) for c in (0, 1, 64, 128, 129, 3000) for d in (1, 5, 33)]
    for number, shape in enumerate(shapes * 60):
        calibration.observe_step(shape, 10.0, 10.0 + 0.2 * (number % len(shapes)))
    correction = calibration.correction
    said = [correction.scale(s.prefill_tokens, s.decode_requests) for s in shapes]
    assert said == [calibration.scale(shape) for shape in shapes]
    assert len(set(said)) == 10, "three sizes of decodes, seven with prompts"


def test_a_row_that_is_wrong_is_learnt_beside_what_is_wrong_with_all() -> None:
    """Everything is 10 % slow, and chunks of 113 to 128 tokens another 20 %."""
    calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
    wrong, right = StepShape(prefill_tokens=120), StepShape(prefill_tokens=300)
    for _ in range(600):
        calibration.observe_step(wrong, 20.0, 20.0 * 1.32)
        calibration.observe_step(right, 40.0, 40.0 * 1.1)
    assert calibration.scale(wrong) == pytest.approx(1.32, rel=0.01)
    assert calibration.scale(StepShape(prefill_tokens=128)) == calibration.scale(wrong)
    assert calibration.scale(right) == pytest.approx(1.1, rel=0.01)
    unseen = calibration.scale(StepShape(prefill_tokens=129))
    assert 1.1 < unseen < 1.32, "a size never seen is off as its kind is"
    assert calibration.correction.tbt_margin_ms < PP * 0.5, "what is learnt is no noise"


def test_a_size_seldom_seen_keeps_what_it_was_off_by_when_all_slow_down() -> None:
    calibration = Calibration(PP)
    seldom, often = StepShape(prefill_tokens=120), StepShape(prefill_tokens=300)
    for _ in range(100):
        calibration.observe_step(seldom, 1.0, 1.2)
        calibration.observe_step(often, 40.0, 40.0)
    for _ in range(400):  # a hot GPU
        calibration.observe_step(often, 40.0, 52.0)
    assert calibration.scale(often) == pytest.approx(1.3, rel=0.01)
    assert calibration.scale(seldom) == pytest.approx(1.3 * 1.2, rel=0.03)


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_fair_noise_leaves_a_token_no_later_than_the_table_would(noise: float) -> None:
    """Noise around the table's truth: promise and margin cover what the longest steps take."""

    def covered(seed: int) -> float:
        random = np.random.default_rng(seed)
        calibration = Calibration(PP, Correction(tbt_margin_ms=0.0, ttft_margin_ms=0.0))
        predicted_ms = random.uniform(10.0, 40.0, 4800)
        observed_ms = predicted_ms * random.lognormal(0.0, noise, 4800)
        for predicted, observed in zip(predicted_ms[:800], observed_ms[:800], strict=True):
            calibration.observe_step(STEPS_OF[StepKind.DECODE], predicted, observed)
        correction = calibration.correction
        scale = calibration.scale(STEPS_OF[StepKind.DECODE])
        promised_ms = scale * predicted_ms + correction.tbt_margin_ms / PP
        long = predicted_ms[800:] > 39.0
        return float(np.mean((observed_ms[800:] <= promised_ms[800:])[long]))

    shares = [covered(seed) for seed in range(20)]
    assert np.mean(shares) == pytest.approx(RULES.share, abs=0.005)
    assert min(shares) > 0.96, "a quantile of 512 values is itself unsure"


def test_a_stall_is_not_a_slow_table() -> None:
    calibration = Calibration(PP)
    feed(calibration, StepKind.DECODE, 1.0, 100)
    calibration.observe_step(STEPS_OF[StepKind.DECODE], 15.0, 30_000.0)
    assert calibration.correction.decode_scale < 1.15
    assert calibration.correction.tbt_margin_ms < 2 * Correction().tbt_margin_ms


@pytest.mark.parametrize(
    ("predicted_ms", "observed_ms"),
    [(0.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (-1.0, 1.0)],
)
def test_nonsense_is_not_learnt(predicted_ms: float, observed_ms: float) -> None:
    calibration = Calibration(PP)
    calibration.observe_step(STEPS_OF[StepKind.DECODE], predicted_ms, observed_ms)
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


def asked_tokens(calibration: Calibration) -> float:
    """Of one answer."""
    correction = calibration.correction
    return correction.decode_tokens_per_s / correction.arrivals_per_s


def test_load_is_answers_times_their_length() -> None:
    calibration = Calibration(PP)
    calibration.observe_arrival(0.0)
    calibration.observe_arrival(500.0)
    assert asked_tokens(calibration) == pytest.approx(ASSUMED_ANSWER_TOKENS)
    for number in range(1000):
        calibration.observe_arrival(500.0 + number * 500.0)
        calibration.observe_tokens(39)
        calibration.observe_answer(40, running=3)
    assert asked_tokens(calibration) == pytest.approx(40.0, rel=0.01)


def test_prompts_are_hurried_once_all_who_come_find_one_that_is_too_late() -> None:
    calibration = Calibration(PP)

    def after(arrivals: int, waited_slos: float) -> float:
        for _ in range(arrivals):
            calibration.observe_arrival(0.0, waited_slos)
        return calibration.correction.patience_slos

    assert after(500, 0.9) == 10.0, "late is what is beyond its SLO"
    assert after(300, 5.0) == 10.0, "a rush is no overload"
    assert after(1000, 5.0) == 0.5
    assert after(1000, 0.6) == 0.5, "they are hurried, so none waits longer: it goes on"
    assert after(200, 0.1) == 0.5
    assert after(1000, 0.1) == 10.0, "it is over"


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
            shape = StepShape(decode_requests=gaps_each)
            calibration.observe_step(shape, 20.0, observed_ms)
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


def test_a_margin_is_for_steps_as_long_as_the_tightest_gap_that_holds_leaves_them() -> None:
    calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
    feed(calibration, StepKind.PREFILL, 1.0, RULES.window, noise=0.05)
    lax, mixed = beside(calibration, 120.0), beside(calibration, 40.0, 120.0)
    assert lax.tbt_margin_ms == pytest.approx(3.0 * mixed.tbt_margin_ms, rel=0.05)
    assert beside(calibration, 40.0, 120.0, lost=1) == lax, "one that is lost asks for none"
    assert beside(calibration, 40.0, lost=1) == beside(calibration, 40.0), "unless all are"
    longest = beside(calibration, 1e6), beside(calibration, 1e5)
    assert longest[0] == longest[1], "no step was ever so long"
    assert mixed.ttft_margin_ms == lax.ttft_margin_ms


def test_short_steps_err_by_more_of_their_time_and_say_nothing_of_long_ones() -> None:
    calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
    for number in range(RULES.window):
        predicted_ms, late_ms = (4.0, number % 5) if number % 2 else (30.0, 0.0)
        calibration.observe_step(STEPS_OF[StepKind.DECODE], predicted_ms, predicted_ms + late_ms)
    assert beside(calibration, PP * 30.0).tbt_margin_ms == pytest.approx(0.0, abs=0.1)
    assert 0.0 < beside(calibration, PP * 6.0).tbt_margin_ms < PP * 6.0, "never a whole gap"


def test_the_first_long_steps_are_not_trusted_for_having_no_error_yet() -> None:
    calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
    feed(calibration, StepKind.PREFILL, 1.0, RULES.window, noise=0.05)
    before = beside(calibration, PP * 200.0).tbt_margin_ms
    calibration.observe_step(STEPS_OF[StepKind.PREFILL], 200.0, 200.0)
    assert beside(calibration, PP * 200.0).tbt_margin_ms >= before > 0.0


def test_where_first_tokens_are_lost_streams_take_no_more_room_than_they_give() -> None:
    def margin_ms(late_in_ten: int) -> float:
        calibration = Calibration(PP, Correction(tbt_margin_ms=0.0))
        feed(calibration, StepKind.DECODE, 1.0, RULES.window, noise=0.05)
        for number in range(2000):
            calibration.observe_arrival(number * 100.0, 2.0 if number % 10 < late_in_ten else 0.0)
        return beside(calibration, 100.0).tbt_margin_ms

    none, some, many, all_of_them = map(margin_ms, (0, 1, 3, 9))
    assert none > some > many > 0.0
    assert all_of_them == pytest.approx(many, rel=0.01), "streams are not given up as well"


def test_the_mean_over_an_answer_needs_no_margin_for_the_error_of_a_step() -> None:
    floor = Correction(tbt_margin_ms=2.0, ttft_margin_ms=0.0)
    by_gap, by_mean = (Calibration(PP, floor, by_gap=by_gap) for by_gap in (True, False))
    for calibration in (by_gap, by_mean):
        feed(calibration, StepKind.DECODE, 1.0, 300, noise=0.1)
    assert by_gap.correction.tbt_margin_ms > 10.0
    assert by_mean.correction.tbt_margin_ms == 2.0
    assert by_mean.correction.ttft_margin_ms == by_gap.correction.ttft_margin_ms > 0.0
    by_mean.begin_from(floor, by_gap=True)
    assert by_mean.correction == by_gap.correction, "it has learnt meanwhile"
