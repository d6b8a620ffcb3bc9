"""A study on a real Ray cluster of two nodes: the same rows, also where workers and a node die."""

import os
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from replay_cases import make_table, random_trace

from beamprof.replay import study as study_module
from beamprof.replay import study_cells
from beamprof.replay.study import study
from beamprof.replay.study_cells import TIMINGS
from beamprof.replay.study_places import On
from beamprof.replay.study_spec import resolve_study
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),  # of Ray itself
]


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of two CPUs each, on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Workers import the tests' modules too: what is pickled may be one of theirs.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        yield cluster, second
    finally:
        cluster.shutdown()


def grid(folder, seeds):
    table = make_table()
    write_table(table.columns, table.metadata, folder / "t.parquet", force=True)
    save_trace(random_trace(1), folder / "one.parquet", force=True)
    return resolve_study(
        {
            "tables": str(folder / "t.parquet"),
            "traces": str(folder / "one.parquet"),
            "policies": "static:800,lowest-feasible",
            "noises": "0.05",
            "seeds": seeds,
        },
        environment={},
    )


def rows(result):
    return result.frame.drop(TIMINGS)


def test_two_nodes_give_the_rows_of_one_process(cluster, tmp_path):
    spec = grid(tmp_path, "0:9:1")
    here = study(spec, tmp_path / "here.parquet", workers=1)
    ray = study(spec, tmp_path / "ray.parquet", on=On.RAY)
    assert ray.failures == () and ray.cells == 40
    assert rows(ray).equals(rows(here))


def test_a_node_that_goes_takes_no_cell_with_it(cluster, tmp_path):
    nodes, second = cluster
    spec = grid(tmp_path, "0:49:1")
    cells = tmp_path / "ray.parquet.cells"

    def take_it_away():
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s:
            if cells.is_dir() and len(list(cells.glob("*.json"))) >= 10:
                nodes.remove_node(second, allow_graceful=False)
                return
            time.sleep(0.02)

    thief = threading.Thread(target=take_it_away)
    thief.start()
    ray = study(spec, tmp_path / "ray.parquet", on=On.RAY)
    thief.join()
    assert len([node for node in nodes.list_all_nodes() if node is not second]) == 1
    assert ray.failures == ()
    here = study(spec, tmp_path / "here.parquet", workers=2)
    assert rows(ray).equals(rows(here))


class Deadly(dict):
    """Ends the worker that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_cell_that_kills_its_worker_is_told_and_the_others_go_on(cluster, tmp_path, monkeypatch):
    import dataclasses

    def with_a_deadly_one(spec, tables, traces):
        first, *others = study_cells.jobs_of(spec, tables, traces)
        return (dataclasses.replace(first, provenance=Deadly(first.provenance)), *others)

    monkeypatch.setattr(study_module, "jobs_of", with_a_deadly_one)
    result = study(grid(tmp_path, "0,1"), tmp_path / "s.parquet", on=On.RAY)
    assert [one.message for one in result.failures] == [
        "its worker ended, or that of a cell beside it"
    ]
    assert result.played == 7
