"""A waiting stage always draws something, and whoever has to assume it is told."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from beam_runtime.table.idle_power import ASSUMED_SHARE, with_idle_power
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import StepShape


@pytest.fixture
def silent(small_cost: StepCost) -> StepCost:
    return replace(small_cost, idle_power_w=np.full(len(small_cost.clocks_mhz), np.nan))


def test_what_a_table_measured_stands(small_cost: StepCost) -> None:
    assert with_idle_power(small_cost, 90.0) is small_cost


def test_what_somebody_knows_is_taken(silent: StepCost, caplog: pytest.LogCaptureFixture) -> None:
    assert np.all(with_idle_power(silent, 90.0).idle_power_w == 90.0)
    assert caplog.text == ""


def test_what_nobody_knows_is_a_share_of_the_lightest_pass_and_is_said(
    silent: StepCost, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "beam_runtime"):
        assumed_w = with_idle_power(silent, None).idle_power_w
    lightest = StepShape(decode_requests=1)
    power_w = silent.energy_j(lightest) / silent.latency_ms(lightest) * 1e3
    assert assumed_w == pytest.approx(ASSUMED_SHARE * power_w)
    assert f"{assumed_w[0]:.0f} to {assumed_w[-1]:.0f} W" in caplog.text
    assert "--idle-power" in caplog.text
