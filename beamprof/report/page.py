"""The parts of a printed answer: one sentence first, sections, the next command last."""

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def plain_table(words: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """Columns without rules, a bold head; words stand left, numbers right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for head in words:
        table.add_column(head, overflow="fold")
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    return table


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


def next_command(console: Console, command: str) -> None:
    """What stands last. Never broken into lines: it is there to be copied."""
    console.print()
    console.print(Text("next: ", "dim").append(command, "not dim bold"), soft_wrap=True)
