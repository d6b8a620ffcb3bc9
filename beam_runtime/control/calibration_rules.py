"""How calibration learns."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CalibrationRules:
    """How fast to learn, and how careful to be.

    Attributes:
        share: of requests that the margins put on the safe side.
        weight: of the newest step in its kind's scale, of the newest time between two arrivals,
            and of the newest answer where none goes on: 1/33 forgets half in 23 of them.
        prior_steps: how many steps the table's own word counts for at first.
        settled_steps: how many it takes until little is left of that in a kind's scale (a tenth
            at a hundred steps), and sizes begin to be learnt.
        prior_steps_of_size: how many steps its kind's scale counts for at first with a size. One
            row of a table is off by more than one step is.
        prior_answers: how many answers of the assumed length count as seen at first.
        clamp: the lowest and highest value of each factor.
        window: latest steps of a kind that margins are taken from.
        least_window: a window with fewer steps is judged as if it held so many, all others
            without error, so that the first outlier of a run is not taken for the rule.
        outlier: a step is counted as this many times its prediction at most; a stall says
            nothing about the table.
        drift: share off the table that counts as drift.
        drift_steps: steps of one drift window.
        drift_windows: windows in a row until it is reported.
    """

    share: float = 0.99
    weight: float = 0.03
    prior_steps: int = 20
    settled_steps: int = 100
    prior_steps_of_size: int = 4
    prior_answers: int = 20
    clamp: tuple[float, float] = (0.5, 2.0)
    window: int = 512
    least_window: int = 100
    outlier: float = 4.0
    drift: float = 0.15
    drift_steps: int = 64
    drift_windows: int = 3
