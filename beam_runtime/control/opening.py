"""The searches that a controller asks, opened for a stance, and anew where the promise changes.

    SLOs ──> stance ──> searches, opened behind the engine's back (warming)
      └── promise() comes this way again; the searches there are serve until the new ones do

Everything happens on the thread that will ask the searches, or, without threads, on the caller's.
"""

import math
from collections.abc import Mapping
from functools import partial

from beam_runtime.control.events import Arrival, Promise
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
from beam_runtime.search.keepable import Keepable
from beam_runtime.search.stance import Stance
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Decision, EngineLimits, Follows, Knobs, Slo

# A promise that a request brings sets margins where it is so much tighter than all known ones;
# no more of them than it takes to come from seconds to milliseconds.
CLEARLY, MOST_OWN = 0.8, 32


def checked_slos(slos: Mapping[str, Slo]) -> Mapping[str, Slo]:
    """The classes, if that is what they are.

    Raises:
        TypeError: no SLOs by name.
    """
    if not isinstance(slos, Mapping):
        raise TypeError(f"slos is a mapping of names to Slo, found {slos!r:.60}")
    for name, slo in slos.items():
        if not isinstance(name, str) or not isinstance(slo, Slo):
            raise TypeError(f"slos maps names to Slo, found {name!r:.60}: {slo!r:.60}")
    return slos


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
        self._slos = {"default": Slo(), **checked_slos(slos)}
        self._own_slos: list[Slo] = []  # that requests brought
        self._keepable = None if isinstance(cost, TableError) else Keepable(cost, limits)
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
        self._stand_anew()

    def hear(self, event: Promise | Arrival) -> None:
        """What is promised from now on, or to one request: margins are for tight ones, too."""
        if isinstance(event, Promise):
            self.promise(event.slo)
        elif isinstance(event.slo, Slo) and self._keepable is not None:
            known = (*self._slos.values(), *self._own_slos)
            tightest_ms = min(
                (one.token_ms for one in known if not self._keepable.hopeless(one)),
                default=math.inf,
            )
            tight = event.slo.token_ms < CLEARLY * tightest_ms and len(self._own_slos) < MOST_OWN
            if tight and not self._keepable.hopeless(event.slo):
                self._own_slos.append(event.slo)
                self._stand_anew()

    def _stand_anew(self) -> None:
        before, self.stance = self.stance, self._stance()
        if self.stance != before:
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
        classes = (*self._slos.values(), *self._own_slos)
        return open_stance(
            self._cost, self._limits, self._slos["default"], classes, self._follows, self._own
        )

    def _begin(self) -> None:
        self._open = partial(
            open_searches, self._cost, self._limits, self.stance, self._own, self._given,
            clocks=self._clocks, composer=self._composer,
        )  # fmt: skip
        if self._warming is not None:
            self._warming.turn_to(self._open)
        elif self.later:
            self._warming = Warming(self._open)
        self.pending = True

    def _end(self) -> None:
        self._warming, self.pending = None, False
