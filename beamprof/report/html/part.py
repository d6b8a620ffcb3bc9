"""What a page is made of: parts of sections of figures, tables and facts, in plain words.

The template knows these and nothing else; who fills them knows nothing of HTML. Only ``svg``
fields hold markup, and only svg.Plot makes it.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a bar figure: a name, a drawing, and what it comes to.

    Attributes:
        name: whose.
        css: the class of its colour.
        svg: the bar.
        words: its numbers; each is a text and the class of a colour chip, empty for none.
    """

    name: str
    css: str
    svg: str
    words: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars below each other on one axis."""

    kind: ClassVar[str] = "bars"
    bars: tuple[Bar, ...]

    @property
    def columns(self) -> int:
        """Most words of a bar."""
        return max((len(bar.words) for bar in self.bars), default=0)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot with its title and, below it, its x axis in words."""

    title: str
    svg: str
    x_words: str = ""


@dataclass(frozen=True, slots=True)
class Drawings:
    """Plots beside each other where there is room; ``small`` ones need less of it."""

    kind: ClassVar[str] = "drawings"
    drawings: tuple[Drawing, ...]
    small: bool = False


@dataclass(frozen=True, slots=True)
class Strip:
    """One quantity over time, low and wide."""

    name: str
    svg: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Strips on one time axis, under a name and a line of words."""

    name: str
    css: str
    words: str
    strips: tuple[Strip, ...]
    x_words: str


@dataclass(frozen=True, slots=True)
class Timelines:
    """Timelines beside each other where there is room."""

    kind: ClassVar[str] = "timelines"
    timelines: tuple[Timeline, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text; the first column names the row, all others are numbers.

    Attributes:
        groups: (title, columns) over the heads, in order; empty for none.
        heads: one word per column.
        rows: cells; ``css`` colours the first.
        css: one class per row.
        words: the last column is prose.
    """

    kind: ClassVar[str] = "grid"
    groups: tuple[tuple[str, int], ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    css: tuple[str, ...] = ()
    words: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are; ``typed``: commands, to be copied."""

    kind: ClassVar[str] = "facts"
    facts: tuple[tuple[str, str], ...]
    typed: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A figure or table with its heading and how to read it."""

    title: str
    explanation: str
    body: Bars | Drawings | Timelines | Grid | Facts


@dataclass(frozen=True, slots=True)
class Part:
    """Everything about one input.

    Attributes:
        kicker: what it is, in a few words.
        sentence: the answer.
        standing: what the numbers stand on, in a sentence or two; always shown.
        sections: in order of reading.
    """

    kicker: str
    sentence: str
    standing: str
    sections: tuple[Section, ...]
