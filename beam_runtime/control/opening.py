"""The searches that a controller asks, opened for a stance, and anew where the promise changes.

    SLOs ──> stance ──> searches, opened behind the engine's back (warming)
      └── promise() comes this way again; the searches there are serve until the new ones do

Everything happens on the thread that will ask the searches, or, without threads, on the caller's.
"""

from collections.abc import Mapping
from functools import partial

from beam_runtime.control.resources import (
    Given,
    Searcher,
    Searches,
    open_search,
    open_searches,
    open_stance,
)
from beam_runtime.control.warming import Warming
from beam_runtime.emulator.moment import Moment
from beam_runtime.errors import TableError
from beam_runtime.search.stance import Stance
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Decision, EngineLimits, Follows, Knobs, Slo


class Opening:
    """What is open, and what is being opened.

    Args:
        cost: step costs, or why there are none.
        limits: of the engine.
        slos: classes by name; ``default`` is what most requests are promised.
        own: the engine's own settings.
        given: a search to use instead of the compiled one.
        follows: what the engine follows.
        clocks: whether they can be set.
        composer: whether the compiled composer is wanted as well.
        threads: whether there is a thread to open searches on; without, one look() does it.

    Attributes:
        stance: the one that was asked for last.
        pending: whether searches for it are still to come.
        later: whether opening them takes time, and a thread.
    """

    def __init__(
        self,
        cost: StepCost | TableError,
        limits: EngineLimits,
        slos: Mapping[str, Slo],
        own: Knobs,
        given: Given | None,
        *,
        follows: Follows,
        clocks: bool,
        composer: bool,
        threads: bool,
    ) -> None:
        self._cost = cost
        self._limits = limits
        self._slos = {"default": Slo(), **slos}
        self._own = own
        self._given = given
        self._follows = follows
        self._clocks = clocks
        self._composer = composer  # until it was handed over
        # Only the compiled search takes time to open: the thread that will use it does that.
        self.later = threads and given is None and not isinstance(cost, TableError)
        self._warming: Warming | None = None
        self._pure: tuple[Stance, Searcher] | None = None
        self.stance = self._stance()
        self.pending = False
        self._begin()

    @property
    def why(self) -> str:
        """What the searches wait for."""
        return "" if self._warming is None else self._warming.why

    def look(self) -> Searches | None:
        """The searches, once, as soon as they can be had; None: ``why`` says what is missing.

        Raises:
            Exception: whatever opening them raises; nothing is pending then.
        """
        try:
            searches = self._open() if self._warming is None else self._warming.look()
        except Exception:
            self._end()
            raise
        if searches is not None:
            self._composer = False
            self._end()
        return searches

    def promise(self, slo: Slo) -> None:
        """Most requests are promised this from now on: another stance, perhaps."""
        self._slos["default"] = slo
        before, self.stance = self.stance, self._stance()
        if self.stance != before:
            self.close()
            self._begin()

    def pure(self, moment: Moment) -> Decision:
        """The decision of a search for this stance that nobody else asks."""
        if self._pure is None or self._pure[0] is not self.stance:
            searcher = open_search(self._cost, self._limits, self.stance, self._given)
            self._pure = self.stance, searcher
        return self._pure[1](moment)

    def close(self) -> None:
        """Stop opening."""
        if self._warming is not None:
            self._warming.close()
        self._end()

    def _stance(self) -> Stance:
        return open_stance(self._cost, self._limits, self._slos, self._follows, self._own)

    def _begin(self) -> None:
        self._open = partial(
            open_searches, self._cost, self._limits, self.stance, self._own, self._given,
            clocks=self._clocks, composer=self._composer,
        )  # fmt: skip
        self._warming = Warming(self._open) if self.later else None
        self.pending = True

    def _end(self) -> None:
        self._warming, self.pending = None, False
