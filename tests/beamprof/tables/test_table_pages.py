import io
from collections.abc import Callable

import pytest
from rich.console import Console

from beam_runtime.types import StepShape
from beamprof.report.inspect_view import show_table
from beamprof.report.table_views import show_check, show_comparison, show_lookup
from beamprof.tables.check import check_table
from beamprof.tables.compare import compare_tables
from beamprof.tables.inspect import inspect_table
from beamprof.tables.lookup import lookup_step


def printed(show: Callable[[Console], None], width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    show(Console(file=file, width=width, force_terminal=False, highlight=False))
    file.flush()  # raises where a character is not in the encoding
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 100])
def test_every_page_fits_its_width(sound, width, encoding):
    view, check = inspect_table(sound), check_table(sound)
    comparison = compare_tables(sound, sound)
    lookup = lookup_step(sound, StepShape(0, 0, 64, 64 * 512))
    pages = (
        lambda out: show_table(view, "t.parquet", out),
        lambda out: show_check(check, "t.parquet", out),
        lambda out: show_comparison(comparison, "a.parquet", "b.parquet", out),
        lambda out: show_lookup(lookup, "t.parquet", out),
    )
    for page in pages:
        text = printed(page, width, encoding)
        assert max(map(len, text.splitlines())) <= width
        assert "next: beam table " in text.splitlines()[-1]
        assert "…" not in text  # no column was cut short


def test_a_check_page_names_what_is_wrong(rows, seal):
    for row in rows:
        if row["clock_mhz"] == 930 and row["decode_requests"] == 64:
            row["latency_ms"] *= 2
    text = printed(lambda out: show_check(check_table(seal(rows)), "t.parquet", out), 100)
    assert text.startswith("This table should not drive a controller: ")
    assert "64 decodes over 32,768 at 930 MHz" in text
    assert "hint: measure these rows again" in text


def test_pictures_show_the_best_clock(sound):
    view = inspect_table(sound)
    text = printed(lambda out: show_table(view, "t.parquet", out), 100)
    ridge = [line for line in text.splitlines() if "◆" in line and "best" not in line]
    assert len(ridge) == len(view.ridge)
    for line, point in zip(ridge, view.ridge, strict=True):
        assert str(point.best_clock_mhz) in line
