"""A small grid of cells, a place without processes to play them in, and what to compare of them."""

from concurrent.futures import Future

from replay_cases import make_table

from beamprof.replay.study_cells import TIMINGS, play_job
from beamprof.replay.study_spec import resolve_study
from beamprof.tables.table_file import write_table

POLICIES = "vanilla,static:best,static:800,oracle"


class Here:
    """A place without processes: cells are played when they are submitted."""

    workers = 2

    def __init__(self) -> None:
        self.played = []

    def submit(self, job):
        self.played.append(str(job))
        future = Future()
        future.set_result(play_job(job))
        return future

    def close(self) -> None:
        pass


def put_table(path, *, force=False, **options):
    table = make_table(**options)
    write_table(table.columns, table.metadata, path, force=force)
    return path


def grid(folder, **flags):
    return resolve_study(
        {
            "tables": [str(folder / "t.parquet")],
            "traces": [str(folder / "one.parquet"), str(folder / "two.parquet")],
            "policies": POLICIES,
            **flags,
        }
    )


def found(result):
    """What was noticed, without what is always assumed."""
    return " ".join(note for note in result.notes if not note.startswith("plant: "))


def comparable(result):
    return result.frame.drop(TIMINGS)
