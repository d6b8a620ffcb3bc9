"""`beam report` as a function: what a replay, a study or a controller left behind, as one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beamprof.errors import ReportError
from beamprof.file_kind import kind_of
from beamprof.files import check_writable, written_whole
from beamprof.replay import study
from beamprof.replay.results import METADATA_KEY
from beamprof.replay.saved import load_replay, parquet_schema
from beamprof.replay.saved_study import load_study
from beamprof.report.html.burst import asked_window, busiest
from beamprof.report.html.log_part import log_part, log_window
from beamprof.report.html.log_run import load_log
from beamprof.report.html.part import Part
from beamprof.report.html.render import environment, render
from beamprof.report.html.replay_part import replay_part
from beamprof.report.html.study_part import study_part
from beamprof.report.picture import PICTURES, browser, write_picture
from beamprof.report.replay_views import answer

Window = tuple[float, float | None]
REPLAY, STUDY, LOG = "replay", "study", "decision log"
_TAKES = (
    "beam report takes what beam replay --output or beam study wrote, or a decision log (.jsonl)"
)


@dataclass(frozen=True, slots=True)
class Told:
    """One input and what the page says of it first.

    Attributes:
        path: a replay's folder, or the file.
        kind: ``replay``, ``study`` or ``decision log``.
        sentence: the answer.
    """

    path: Path
    kind: str
    sentence: str


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A page that was written.

    Attributes:
        path: where.
        size_bytes: of the file.
        inputs: what it tells of, in order.
    """

    path: Path
    size_bytes: int
    inputs: tuple[Told, ...]


def write_report(
    paths: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    window: Window | None = None,
    force: bool = False,
) -> WrittenReport:
    """Write one HTML page of everything at ``paths``; it loads nothing and runs no script.

    An output that ends in .svg or .png is a picture instead, of one replay's answer.

    Args:
        paths: folders or files of beam replay, studies, decision logs; in the page's order.
        output: the page; by default beside the first input.
        window: seconds that timelines show, from and to; None = the busiest stretch.
        force: replace ``output``.

    Raises:
        ReportError: nothing to read, jinja2 or (for a PNG) Chromium is missing, a picture of
            something else than one replay, or a window outside.
        BeamError: a decision log that cannot be read.
        OutputError: the output exists, or cannot be written.
    """
    output = None if output is None else Path(output)
    inputs = tuple(dict.fromkeys(_input(Path(path)) for path in paths))
    if not inputs:
        raise ReportError("there is nothing to report on", hint=_TAKES)
    output = output or _beside(inputs[0][0])
    check_writable(output, force=force)
    if output.suffix in PICTURES:
        return _pictured(inputs, output, force=force)
    environment()  # before minutes of reading
    parts = [_part(path, kind, window) for path, kind in inputs]
    page = render(parts).encode("utf-8", "replace")  # a file's name may be no text
    with written_whole(output, force=force) as temporary:
        temporary.write_bytes(page)
    told = (
        Told(path, kind, part.sentence) for (path, kind), part in zip(inputs, parts, strict=True)
    )
    return WrittenReport(output, len(page), tuple(told))


def _pictured(inputs: Sequence[tuple[Path, str]], output: Path, *, force: bool) -> WrittenReport:
    """One replay's answer as a picture."""
    if len(inputs) != 1 or inputs[0][1] != REPLAY:
        raise ReportError(
            f"{output.name} would be a picture, and a picture is of one replay",
            cause=f"asked for {', '.join(f'{path} ({kind})' for path, kind in inputs)}",
            hint="--output FILE.html takes everything",
        )
    if output.suffix == ".png":
        browser()  # before reading
    saved = load_replay(inputs[0][0])
    report, sources = saved.report, saved.record.plant_table.sources
    with written_whole(output, force=force) as temporary:
        write_picture(report, temporary, png=output.suffix == ".png", sources=sources)
        size_bytes = temporary.stat().st_size
    return WrittenReport(output, size_bytes, (Told(*inputs[0], answer(report)),))


def _part(path: Path, kind: str, window: Window | None) -> Part:
    if kind == LOG:
        run = load_log(path)
        return log_part(run, asked_window(run.end_s, *window) if window else log_window(run))
    if kind == STUDY:
        return study_part(path, load_study(path))
    saved = load_replay(path)
    end_s = saved.report.duration_s
    return replay_part(saved, asked_window(end_s, *window) if window else busiest(saved))


def _input(path: Path) -> tuple[Path, str]:
    """A replay's folder or a file, and what it is."""
    if path.is_dir():
        return path, REPLAY
    if not path.is_file():
        raise ReportError(f"there is no file or folder {path}", hint=_TAKES)
    # A log that was full is NAME.jsonl.1.
    if path.suffix in (".jsonl", ".json", ".log") or kind_of(path) == "JSON":
        return path, LOG
    columns, metadata = parquet_schema(path)
    if METADATA_KEY in metadata:
        return path.parent, REPLAY
    if study.METADATA_KEY in metadata:
        return path, STUDY
    raise ReportError(
        f"{path} is a Parquet file of something else",
        cause=f"its columns are {', '.join(columns[:8])}",
        hint=_hint_for(metadata),
    )


def _hint_for(metadata: dict[str, str]) -> str:
    if "beam.rows_sha256" in metadata:
        return "a perf-energy table: beam table inspect shows it"
    return _TAKES


def _beside(first: Path) -> Path:
    if first.is_dir():
        return first / "report.html"
    if first.suffix[1:].isdigit():  # of NAME.jsonl.1 and NAME.jsonl.2 each its own
        return first.with_name(f"{first.name}.html")
    return first.with_suffix(".html")
