"""A replay's answer as one picture for a slide: SVG by itself, PNG by way of a browser.

Goodput and energy of every policy side by side, the sentence above them, and below it what it
stands on. The SVG needs no fonts, styles or network of its own; PNG is a browser's picture of it.
"""

import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from re import findall

from beamprof.errors import ReportError
from beamprof.replay.ladder import ReplayReport, Rung
from beamprof.report.html.colours import colours
from beamprof.report.html.number_words import percent
from beamprof.report.replay_views import answer, largest_j
from beamprof.slo import stream_words
from beamprof.units import format_duration, format_energy

PICTURES = (".svg", ".png")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_WIDTH_PX, _ROW_PX, _MARGIN_PX = 960, 34, 28
_LETTERS = 88  # of a line of the sentence
_LEFT_PX, _BAR_PX, _SECOND_PX = 150, 210, 530
_SHARP = 2  # pixels of the PNG for one of the SVG


def write_picture(
    report: ReplayReport, path: Path, *, png: bool, sources: Sequence[str] = ()
) -> None:
    """Write ``path`` as SVG, or as PNG; ``sources``: of the table that was played.

    Raises:
        ReportError: no browser to draw a PNG with.
    """
    text, height_px = picture(report, sources)
    if png:
        _photograph(text, height_px, path)
    else:
        path.write_text(text, "utf-8")


def browser() -> str:
    """Who draws a PNG.

    Raises:
        ReportError: nobody.
    """
    for name in _BROWSERS:
        if found := shutil.which(name):
            return found
    raise ReportError(
        "a PNG is drawn by Chromium, which is not installed",
        hint="apt-get install chromium; or --output FILE.svg, which needs nothing",
    )


def picture(report: ReplayReport, sources: Sequence[str] = ()) -> tuple[str, int]:
    """The SVG, and its height in pixels."""
    css = colours(rung.metrics.policy for rung in report.rungs)
    colour_of = dict(findall(r"--(c\d): (#\w+);", (_page_css().split("@media"))[0]))
    parts, y = [], _MARGIN_PX + 8
    for line in textwrap.wrap(answer(report), _LETTERS):
        parts.append(_text(_MARGIN_PX, y, line, 17, weight=600))
        y += 25
    y += 22
    parts.append(_text(_LEFT_PX, y, "requests with every promise kept", 13, fill="#565d68"))
    parts.append(_text(_SECOND_PX, y, "energy of all GPUs", 13, fill="#565d68"))
    y += 12
    longest_j = largest_j(report)
    for rung in report.rungs:
        parts += _row(rung, y, longest_j, colour_of[css[rung.metrics.policy]])
        y += _ROW_PX
    y += 26
    for line in textwrap.wrap(_ground(report, sources), 132):
        parts.append(_text(_MARGIN_PX, y, line, 12, fill="#565d68"))
        y += 17
    height_px = y + _MARGIN_PX - 17
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH_PX}" height="{height_px}" '
        f'viewBox="0 0 {_WIDTH_PX} {height_px}" font-family="system-ui, Roboto, Arial, sans-serif">'
        f'<title>{escape(answer(report))}</title><rect width="100%" height="100%" fill="#ffffff"/>'
        + "".join(parts)
        + "</svg>\n"
    ), height_px


def _row(rung: Rung, y: int, longest_j: float, colour: str) -> list[str]:
    m = rung.metrics
    kept_px, energy_px = _BAR_PX * m.goodput, _BAR_PX * m.energy_j / longest_j
    words = f"{format_energy(m.energy_j, longest_j)} · {rung.to_vanilla:.2f} of vanilla"
    middle = y + 19
    return [
        _text(_LEFT_PX - 12, middle, m.policy, 14, weight=600, fill=colour, anchor="end"),
        _bar(_LEFT_PX, y, kept_px, colour),
        _text(_LEFT_PX + kept_px + 8, middle, percent(m.goodput), 13),
        _bar(_SECOND_PX, y, energy_px, colour),
        _text(_SECOND_PX + energy_px + 8, middle, words, 13),
    ]


def _bar(x: float, y: float, width_px: float, colour: str) -> str:
    size = f'width="{width_px:.1f}" height="{_ROW_PX - 12}"'
    return f'<rect x="{x}" y="{y + 4}" {size} fill="{colour}"/>'


def _text(
    x: float, y: float, words: str, size: int, *, weight: int = 400, fill: str = "#1a1d21",
    anchor: str = "start",
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _ground(report: ReplayReport, sources: Sequence[str]) -> str:
    slo, table = report.options.slo, " and ".join(sources)
    return (
        f"Simulated by beam replay: {report.model} on {report.tp * report.pp} x {report.device}"
        f"{f' (table: {table})' if table else ''}, "
        f"{report.requests:,} requests in {format_duration(report.duration_s)} of {report.trace}, "
        f"SLO TTFT {format_duration(slo.ttft_ms / 1e3)}, {stream_words(slo)}; "
        + "; ".join(report.assumed)
    )


def _page_css() -> str:
    return (files("beamprof.report.html") / "page.css").read_text("utf-8")


def _photograph(text: str, height_px: int, path: Path) -> None:
    program = browser()
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "picture.html"), Path(folder, "picture.png")
        page.write_text(f'<!doctype html><body style="margin:0">{text}', "utf-8")
        done = subprocess.run(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--force-device-scale-factor={_SHARP}",
                f"--window-size={_WIDTH_PX},{height_px}", f"--screenshot={shot}", page.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if not shot.is_file():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise ReportError(
                f"{program} made no picture", cause=last[0],
                hint="--output FILE.svg needs no browser",
            )  # fmt: skip
        path.write_bytes(shot.read_bytes())
