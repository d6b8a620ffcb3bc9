"""Where a study's cells are played: the same rows in every place, also where a worker dies."""

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from study_cases import POLICIES, comparable, grid

from beam_runtime import emulator
from beamprof.errors import ReplayError
from beamprof.replay import study as study_module
from beamprof.replay import study_cells
from beamprof.replay.study import study
from beamprof.replay.study_places import LocalPlace, RayPlace


def test_one_process_two_processes_and_none_give_the_same_rows(files, here, monkeypatch):
    spec = grid(files, policies=f"{POLICIES},lowest-feasible", noises="0.05")
    reference = study(spec, files / "here.parquet")
    monkeypatch.undo()
    compiled = machine_code()
    for workers in (1, 2):
        result = study(spec, files / f"{workers}.parquet", workers=workers)
        assert result.failures == ()
        assert comparable(result).equals(comparable(reference))
    assert machine_code() == compiled  # the workers found it on disk


def machine_code():
    folders = [Path(module.__file__).parent for module in (study_module, emulator)]
    return {
        path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.nb[ci]")
    }


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(ReplayError) as caught:
        RayPlace(None)
    assert "beamprof[ray]" in caught.value.hint


def test_fewer_than_one_worker_is_refused(files):
    with pytest.raises(ReplayError, match="--workers"):
        study(grid(files), files / "s.parquet", workers=0)


class Deadly(dict):
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_worker_that_dies_is_told_and_the_others_go_on(files, monkeypatch):
    def with_a_deadly_one(spec, tables, traces):
        jobs = study_cells.jobs_of(spec, tables, traces)
        return (dataclasses.replace(jobs[0], provenance=Deadly(jobs[0].provenance)), *jobs[1:])

    monkeypatch.setattr(study_module, "jobs_of", with_a_deadly_one)
    result = study(grid(files), files / "s.parquet", workers=1)
    assert [one.message for one in result.failures] == [
        "its worker ended, or that of a cell beside it"
    ]
    assert result.played == 7


def test_workers_end_with_a_cell_under_way():
    place = LocalPlace(1)
    place._pool.submit(os.getpid).result()
    future = place._pool.submit(__import__("time").sleep, 3600)
    place.close()
    assert future.cancelled() or future.exception() is not None
