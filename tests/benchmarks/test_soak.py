"""Both soaks, for seconds: what they count is counted, and holds in the small."""

from pathlib import Path

import pytest
import soak


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_of_a_day_with_lost_events_nothing_is_left() -> None:
    found = soak.day(hours=0.2, every_s=8.0, loss=0.1, seed=3)
    assert found.tokens_equal, "the engine's tokens are its own"
    assert found.events_lost > 100
    assert found.lost_requests and found.lost_steps
    assert found.ghosts_at_end <= found.ghosts < 10
    assert found.locked_at_end == 0
    assert found.steering_share > 0.5


def test_without_losses_nothing_counts_as_lost() -> None:
    found = soak.day(hours=0.05, every_s=4.0, loss=0.0, seed=3)
    assert (found.events_lost, found.lost_requests, found.lost_steps) == (0, 0, 0)
    assert (found.ghosts, found.missing, found.falls) == (0, 0, 0)
    assert found.steering_share > 0.9
