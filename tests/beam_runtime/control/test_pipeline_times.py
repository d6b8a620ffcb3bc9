"""Stage times read off completions are those that went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.control.pipeline_times import PipelineTimes, StageTime

STAGE_MS = st.floats(1.0, 100.0)


def simulate(pp: int, transfer_ms: float, steps: list[tuple[float, float]]) -> list[list[float]]:
    """Ends of each step on each stage, for (issue, stage time) in order."""
    free_ms = [float("-inf")] * pp
    ends = []
    for issue_ms, stage_ms in steps:
        ready_ms, own = issue_ms, []
        for stage in range(pp):
            end_ms = max(ready_ms, free_ms[stage]) + stage_ms
            own.append(end_ms)
            ready_ms = end_ms + transfer_ms
        free_ms = own
        ends.append(own)
    return ends


def read_off(pp: int, transfer_ms: float, steps: list[tuple[float, float]]) -> list[float | None]:
    times = PipelineTimes(pp, transfer_ms)
    ends = [own[-1] for own in simulate(pp, transfer_ms, steps)]
    moments = sorted(
        [(issue_ms, 1, at) for at, (issue_ms, _) in enumerate(steps)]
        + [(end_ms, 0, at) for at, end_ms in enumerate(ends)]
    )
    seen = []
    for at_ms, is_issue, at in moments:
        if is_issue:
            times.issue(at_ms, steps[at][1])
        else:
            measured = times.finish(at_ms)
            seen.append(measured and measured.stage_ms)
    return seen


@given(
    st.integers(1, 4),
    st.floats(0.0, 2.0),
    st.lists(st.tuples(st.floats(0.0, 60.0), STAGE_MS), min_size=1, max_size=30),
)
def test_every_step_is_read_exactly_whatever_held_it_up(
    pp: int, transfer_ms: float, gaps: list[tuple[float, float]]
) -> None:
    issue_ms, steps = 0.0, []
    for gap_ms, stage_ms in gaps:
        issue_ms += gap_ms
        steps.append((issue_ms, stage_ms))
    stages = [stage_ms for _, stage_ms in steps]
    assert read_off(pp, transfer_ms, steps) == pytest.approx(stages, rel=1e-6)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0.0, 60.0), STAGE_MS), min_size=1, max_size=6),
)
def test_what_it_expects_is_what_comes(pp: int, gaps: list[tuple[float, float]]) -> None:
    times = PipelineTimes(pp, 1.0)
    issue_ms, steps = 0.0, []
    for gap_ms, stage_ms in gaps:
        issue_ms += gap_ms
        steps.append((issue_ms, stage_ms))
        times.issue(issue_ms, stage_ms)
    ends = simulate(pp, 1.0, steps)
    assert times.in_flight == len(steps)
    assert times.finishes_ms() == pytest.approx([own[-1] for own in ends])
    assert times.stage_free_ms() == pytest.approx(ends[-1])


def test_times_that_go_backwards_say_nothing() -> None:
    times = PipelineTimes(2)
    times.issue(100.0, 10.0)
    times.issue(100.0, 10.0)
    assert times.finish(120.0) == StageTime(10.0, 100.0)
    assert times.finish(110.0) is None
    assert times.finish(130.0) is None, "nothing was in flight"
    assert len(times.stage_free_ms()) == 2
