"""Whether a step's decodes are in time while the clock changes."""

from beam_runtime.emulator.moment import Moment
from beam_runtime.emulator.moves import composed
from beam_runtime.emulator.setup import STEP, Setting, make_setup, make_tables
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepShape,
)

LIMITS = EngineLimits(pp=2, host_gap_ms=2.0)
LEARNT = Correction(tbt_margin_ms=5.0)
SLO = Slo(1000.0, 200.0)
PROMPT = 300


def chunk_tokens(cost: StepCost, *, goes_down_ms: float, left_ms: float) -> int:
    """Of a prompt, in a step now whose decode is due in ``left_ms`` while the clock goes down."""
    decode = RequestState(
        "d", 100, -5000.0, SLO, computed_tokens=108, generated_tokens=9,
        first_token_ms=-4000.0, last_token_ms=left_ms - SLO.token_ms,
    )  # fmt: skip
    prompt = RequestState("p", PROMPT, 0.0, SLO)
    state = Moment.of(Snapshot(0.0, LIMITS, Knobs(1410, 512), (decode,), (prompt,))).state
    setting = Setting(0, len(cost.clocks_mhz) - 1, goes_down_ms, 512, 1, 0.0)
    setup, tables = make_setup(LIMITS, Rules(), LEARNT), make_tables(cost, 512)
    answer, _, batch, _, _ = composed(state, setting, 0.0, setup, tables)
    assert answer == STEP
    assert batch.decodes == 1
    return int(batch.chunk_tokens)


def test_a_pass_is_done_at_either_clock_by_as_much_as_it_has_of_each(
    small_cost: StepCost,
) -> None:
    """No cliff: whether a pass begins just before its clock changes or just after is the same."""
    low_ms, high_ms = (
        float(small_cost.latency_ms(StepShape(PROMPT, 0, 1, 108))[i]) for i in (0, -1)
    )
    second_ms = high_ms + LIMITS.host_gap_ms  # when the second stage begins
    at_high_ms = 2 * second_ms
    half_ms = second_ms + high_ms / 2  # half of its pass is done at either
    for goes_down_ms, last_ms in (
        (second_ms - 0.1, low_ms),
        (second_ms + 0.1, low_ms),
        (half_ms, (low_ms + high_ms) / 2),
        (second_ms + high_ms, high_ms),
    ):
        back_ms = at_high_ms - high_ms + last_ms
        for spare_ms, whole in (
            (LEARNT.tbt_margin_ms - 0.5, False),
            (LEARNT.wide_margin_ms + 0.5, True),
        ):
            found = chunk_tokens(small_cost, goes_down_ms=goes_down_ms, left_ms=back_ms + spare_ms)
            assert (found == PROMPT) == whole, (goes_down_ms, spare_ms)
