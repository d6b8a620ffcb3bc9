"""Finished cells of a study on disk: one small JSON file each, written whole, named by its id.

    study.parquet.cells/5f1c....json      {schema, id, row, check}

An id hashes everything that a result depends on, so a cell that is there is never played again
and one of another table, trace or BEAM is never taken for it. Nothing is deleted: cells of
another grid stay for the day that grid is asked for again. Two studies may share a folder.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beamprof.errors import OutputError
from beamprof.files import written_whole
from beamprof.replay.study_cells import PROVENANCE, RESULTS, Job

SCHEMA = "beam.study.cell/1"
_PLACE = (
    "table",
    "trace",
    "policy",
    "slo_ttft_ms",
    "slo_kind",
    "slo_stream_ms",
    "slo_classes",
    "noise_share",
    "seed",
)


class Store:
    """The folder beside the study's output.

    Attributes:
        folder: where the cells lie.
        rows: by cell id: every sound cell that was found or added.
        damaged: files that are no sound cell; theirs are played again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.damaged: list[Path] = []
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            row = _read(path)
            if row is None:
                self.damaged.append(path)
            else:
                self.rows[path.stem] = row

    def prepare(self) -> None:
        """Make the folder, before anything is played for it.

        Raises:
            OutputError: it cannot be made, or something else has its name.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {self.folder} for finished cells",
                cause=error.strerror or str(error),
                hint="choose another place: --output FILE",
            ) from None

    def add(self, cell_id: str, row: Mapping[str, Any]) -> None:
        """Put one finished cell on disk; when this returns, it is there.

        Raises:
            OutputError: it could not be written (disk full).
        """
        content = {"schema": SCHEMA, "id": cell_id, "row": dict(row)}
        with written_whole(self.folder / f"{cell_id}.json", force=True) as temporary:
            temporary.write_text(
                json.dumps({**content, "check": _check(content)}, allow_nan=False), "utf-8"
            )
        self.rows[cell_id] = row

    def outdated(self, jobs: Iterable[Job]) -> dict[str, int]:
        """What keeps cells at the same place of the grid from being used, and how many.

        By the column that differs, such as trace_sha256.
        """
        there: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in self.rows.values():
            there.setdefault(tuple(row[name] for name in _PLACE), []).append(row)
        differing: dict[str, int] = {}
        for job in jobs:
            if job.cell_id in self.rows:
                continue
            at_place = there.get(tuple(job.provenance[name] for name in _PLACE), [])
            changed = {
                name
                for row in at_place
                for name, value in job.provenance.items()
                if row[name] != value
            }
            for name in sorted(changed):
                differing[name] = differing.get(name, 0) + 1
        return differing


def _read(path: Path) -> Mapping[str, Any] | None:
    """The row of a sound cell."""
    try:
        content = json.loads(path.read_bytes())
        check = content.pop("check")
        row = content["row"]
        sound = content["schema"] == SCHEMA and content["id"] == path.stem
        if not sound or check != _check(content) or set(row) != {*PROVENANCE, *RESULTS}:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(row)


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
