"""The errors that issue and README promise of StepCost, on data that was not fitted."""

import pytest

step_cost = pytest.importorskip("step_cost", reason="needs scipy, of the test extra")

pytestmark = pytest.mark.skipif(
    not step_cost.DATA.is_dir(), reason="the measurements in ../shared/data are absent"
)


def test_nine_clocks_tell_the_other_twenty_two():
    csv = next((step_cost.DATA / "measured-a100").glob("dvfs_profile_*70B*.csv"))
    errors = step_cost.unseen_clocks(csv)
    assert errors["latency"].points == 22 * 24
    assert errors["latency"].mape <= 0.010
    assert errors["energy"].mape <= 0.022


def test_sixty_cells_tell_the_steps_of_a_served_trace():
    cells, errors = step_cost.unseen_steps()
    assert cells <= 60
    assert len(errors) == 6
    for name, error in errors.items():
        assert error.points > 100, name
        assert error.mape <= 0.025, name
