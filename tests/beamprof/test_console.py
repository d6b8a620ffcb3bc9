"""What is printed can be printed: words out of files move no cursor."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from beamprof import console as ours
from beamprof import printed
from beamprof.cli.main import main

ODD = "a\x1b[31mb\x07c\r\u202ed\x9b2J\ud800e\nf\tg"
SAID = r"a\x1b[31mbc\u202ed\x9b2J\ud800e"  # rich leaves bells and carriage returns out


def test_words_of_files_are_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    ours.stdout().print(ODD, markup=False)
    table = Table("name")
    table.add_row(ODD.partition("\n")[0])
    ours.stdout().print(table)
    out = capsys.readouterr().out
    assert out.count(SAID) == 2
    assert not set(out) & set("\x1b\x07\r\u202e\x9b\ud800")


def test_colours_and_bars_are_not_words() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", highlight=False)
    console.push_render_hook(printed._Printable())
    console.print(ODD, style="red", markup=False)
    assert out.getvalue().startswith("\x1b[31m") and SAID in out.getvalue()
    with Progress(console=console) as progress:
        progress.advance(progress.add_task("x", total=2))
    assert "\x1b[?25l" in out.getvalue(), "the bar hides the cursor all the same"


def test_errors_are_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--model", "a\x1b[31mb/c"]) == 2
    assert "\x1b" not in capsys.readouterr().err
