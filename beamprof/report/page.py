"""The parts of a printed answer: one sentence first, sections, the next command last."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from beamprof.files import is_stdout, is_stream


def plain_table(words: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """Columns without rules, a bold head; words stand left, numbers right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for head in words:
        table.add_column(head, overflow="fold", no_wrap=True)
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def narrowed(table: Table, width: int, optional: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """A table that fits: without as many of the optional columns as it takes.

    Args:
        table: made of whole columns.
        width: what there is.
        optional: heads of columns that the answer does not need, the least needed first.

    Returns:
        The table, and the heads of what was left out.
    """
    left_out: list[str] = []
    columns = list(table.columns)
    while (needed := _needed(columns)) > width and len(left_out) < len(optional):
        head = optional[len(left_out)]
        columns = [column for column in columns if str(column.header) != head]
        left_out.append(head)
    del needed
    kept = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False,
                 show_header=table.show_header)  # fmt: skip
    kept.columns = [replace(column, _index=place) for place, column in enumerate(columns)]
    kept.rows = table.rows
    return kept, tuple(left_out)


def _needed(columns: Sequence[Column]) -> int:
    widths = [
        max((_width(_plain(cell)) for cell in (column.header, *column.cells)), default=0)
        for column in columns
    ]
    return sum(widths) + 2 * (len(widths) - 1)


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _plain(cell: RenderableType) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def fitted_block(console: Console, table: Table, optional: Sequence[str]) -> None:
    """A table, without the optional columns that a narrow terminal has no room for; said below."""
    kept, left_out = narrowed(table, console.width - 2, optional)
    block(console, kept)
    if left_out:
        names = ", ".join(head.replace("\n", " ") for head in left_out)
        block(console, Text(f"no room here for {names}: a wider terminal, or --json", "dim"))


def sentence(console: Console, text: str) -> None:
    """What stands first: the answer."""
    console.print(Text(text, "bold"))
    console.print()


def heading(console: Console, title: str, explanation: str = "") -> None:
    """A section's title and how to read it."""
    console.print()
    console.print(Text(title, "bold").append(f"  {explanation}", "not bold dim"))


def block(console: Console, content: RenderableType) -> None:
    """Content, indented under its heading."""
    console.print(Padding(content, (0, 0, 0, 2), expand=False))


def wrote(console: Console, path: Path | str, size: str = "") -> None:
    """A file that is there now. Of standard output nothing is said: whoever asked has it."""
    if not is_stdout(Path(path)):
        line = Text("wrote ", "dim").append(str(path), "not dim").append(size and f" {size}", "dim")
        console.print(line, soft_wrap=True)


def next_command(console: Console, command: str) -> None:
    """What stands last. Never broken into lines: it is there to be copied.

    What has gone through a pipe cannot be named again: then there is no such line.
    """
    if any(is_stream(Path(word)) for word in shlex.split(command)):
        return
    console.print()
    console.print(Text("next: ", "dim").append(command, "not dim bold"), soft_wrap=True)
