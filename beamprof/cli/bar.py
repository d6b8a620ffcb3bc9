"""How long work looks while it runs: a bar with ETA, and a line for what is under way.

Without a terminal: one plain line every 30 s. All on stderr.
"""

import time
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from beamprof.console import note, stderr
from beamprof.units import format_duration

PLAIN_EVERY_S = 30.0
REFRESH_PER_S = 8


class Bar:
    """A bar for a known number of steps. Use it as a context manager: it gives the terminal back.

    Args:
        unit: what is counted, in the plural.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._console = stderr()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            auto_refresh=False,
        )
        self._now = Text("", style="dim", no_wrap=True, overflow="ellipsis")
        self._live = Live(
            Group(self._bar, self._now),
            console=self._console,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._done = self._resumed = self._total = 0
        self._began_s = self._spoke_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begin(self, title: str, done: int, total: int) -> None:
        """Draw the bar from ``done`` on."""
        self._done, self._resumed, self._total = done, done, total
        self._began_s = self._spoke_s = time.monotonic()
        self._bar.update(self._task, description=title, total=total, completed=done)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live.start()

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to draw it on."""
        return self._live.is_started

    def now(self, text: str) -> None:
        """Name what is under way."""
        self._now.plain = text

    def advance(self, last: str) -> None:
        """Move the bar; say a line where there is none and half a minute has passed."""
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        now_s = time.monotonic()
        if not self._live.is_started and now_s - self._spoke_s >= PLAIN_EVERY_S:
            self._spoke_s = now_s
            each_s = (now_s - self._began_s) / (self._done - self._resumed)
            left = format_duration(each_s * (self._total - self._done))
            note(f"{self._done} of {self._total} {self._unit}, about {left} left; last: {last}")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, style="dim", markup=False)
