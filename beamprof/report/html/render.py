"""Parts to one HTML file that loads nothing."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

from beamprof.errors import ReportError
from beamprof.report.html.part import Part

if TYPE_CHECKING:
    import jinja2

_TITLE_LETTERS = 90


def render(parts: Sequence[Part]) -> str:
    """The page.

    Raises:
        ReportError: jinja2 is not installed.
    """
    folder = files(__package__)
    page = environment().from_string((folder / "page.html.jinja").read_text("utf-8"))
    parts = [replace(part, sentence=_together(part.sentence)) for part in parts]
    sentence = parts[0].sentence
    return page.render(
        parts=parts,
        title=sentence if len(sentence) <= _TITLE_LETTERS else f"{sentence[:_TITLE_LETTERS]}…",
        style=(folder / "page.css").read_text("utf-8"),
        version=version("beamprof"),
    )


def _together(sentence: str) -> str:
    """No line of a narrow page begins with a unit's sign."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def environment() -> "jinja2.Environment":
    """Where templates are rendered: everything is escaped, nothing may be missing.

    Raises:
        ReportError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise ReportError(
            "a report needs jinja2, which is not installed",
            hint="pip install 'beamprof[report]'",
        ) from None
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
