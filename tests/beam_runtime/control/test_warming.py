"""A search that is not open yet: the engine is served meanwhile, and nothing is left behind."""

import logging
import os
import pickle
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
from fault_bench import wait_for
from fault_opening import open_fake

pytest.importorskip("numba", reason="without numba there is nothing to compile")

from beam_runtime.control import opening as opening_module
from beam_runtime.control.controller import Controller
from beam_runtime.emulator import compiler as jit
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Knobs, Rules, Slo

import numba  # isort: skip


def runs(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be reaped does nothing more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def beam(
    small_cost: StepCost, limits: EngineLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Controller:
    monkeypatch.setattr(opening_module, "open_searches", partial(open_fake, tmp_path, os.getpid()))
    return Controller(small_cost, limits)


def compiling(beam: Controller) -> bool:
    return beam.orders.why.startswith("warming up: compiling the search, ")


def test_the_engine_is_served_while_the_search_is_compiled(
    beam: Controller, tmp_path: Path
) -> None:
    with beam:
        wait_for(lambda: compiling(beam))
        beam.arrival("a", 100)
        wait_for(lambda: beam.status.counts.events == 1)
        orders, status = beam.orders, beam.status
        assert (orders.knobs, orders.rules) == (Knobs(1410, 512), Rules.vanilla())
        assert beam.warming_up
        assert not orders.steering
        assert status.reason.startswith("warming up: compiling the search, ")
        (tmp_path / "go").touch()
        wait_for(lambda: beam.orders.steering)
        assert beam.orders.knobs.clock_mhz == 960
        assert not beam.warming_up
        assert beam.status.reason == ""
        assert beam.status.counts.falls == beam.status.counts.failed_searches == 0


def test_tighter_promises_do_not_begin_the_compiling_anew(
    beam: Controller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request with a clearly tighter SLO of its own killed the child: for ever, at worst."""
    caplog.set_level(logging.INFO, "beam_runtime")
    with beam:
        wait_for(lambda: compiling(beam))
        for count, tbt_ms in enumerate((150.0, 110.0, 80.0), start=1):
            beam.arrival(f"r{count}", 100, slo=Slo(1000.0, tbt_ms))
            wait_for(lambda count=count: beam.status.counts.events == count)
        beam.promise(Slo(700.0, 300.0))
        wait_for(lambda: beam.status.counts.events == 4)
        assert compiling(beam)
        (tmp_path / "go").touch()
        wait_for(lambda: beam.orders.steering)
        assert not beam.warming_up
    assert caplog.text.count("compiling the search, once after each install") == 1


def test_code_on_disk_needs_no_child(beam: Controller, tmp_path: Path) -> None:
    (tmp_path / "compiled").touch()
    with beam:
        wait_for(lambda: beam.orders.steering)


def test_a_child_that_fails_leaves_the_work_to_the_engine_s_process(
    beam: Controller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fail").touch()
    with beam:
        wait_for(lambda: beam.orders.steering)
    assert caplog.text.count("RuntimeError: no room for the child") == 1


def test_a_child_that_cannot_be_started_does_likewise(
    beam: Controller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with beam:
        wait_for(lambda: beam.orders.steering)
    assert caplog.text.count("compiled in the engine's process") == 1


def test_where_the_child_is_killed_nobody_compiles(
    beam: Controller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "die").touch()
    with beam:
        wait_for(lambda: "killed by signal 9" in beam.status.reason)
        beam.resume()
        wait_for(lambda: beam.status.counts.events == 1)
        assert not beam.orders.steering
        assert beam.orders.knobs == Knobs(1410, 512)
        assert beam.status.counts.falls == 1
    assert caplog.text.count("killed by signal 9") == 1


def test_a_search_that_cannot_be_opened_is_said_once(
    beam: Controller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "compiled").touch()
    (tmp_path / "broken").touch()
    with beam:
        wait_for(lambda: beam.status.reason == "the search fails: OSError: no such library")
        beam.arrival("a", 100)
        wait_for(lambda: beam.status.counts.events == 1)
        assert not beam.orders.steering
        assert beam.status.counts.falls == 1
    assert caplog.text.count("no such library") == 1


def test_close_ends_the_child(beam: Controller) -> None:
    with beam:
        wait_for(lambda: compiling(beam))
        warming = beam._opening._warming
        assert warming is not None
        assert warming._compiler is not None
        child = warming._compiler.pid
        assert runs(child)
    assert not runs(child)
    assert beam.orders.why == "BEAM has been stopped"


def test_the_child_does_not_outlive_a_killed_engine() -> None:
    engine = """
    import os, signal, time
    from functools import partial
    from beam_runtime.control.warming import _Compiler

    print(_Compiler(partial(time.sleep, 600)).pid, flush=True)
    time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(engine)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert runs(child)
        process.kill()
    wait_for(lambda: not runs(child))


def test_the_child_compiles_what_this_process_will_ask_for(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    controller = Controller(small_cost, limits, compose_with=lambda step: None)
    charge = controller._opening._open
    pickle.loads(pickle.dumps(charge))()
    with jit.from_disk_only():
        opened = charge()
    assert opened.predict_own is not None
    assert opened.next_step is not None


def test_from_disk_only_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def twice(x: int) -> int:
        return 2 * x

    with jit.from_disk_only(), pytest.raises(jit.NotKeptError):
        jit.entry(twice)(4)
    assert jit.entry(twice)(4) == 8
    with jit.from_disk_only():
        assert jit.entry(twice)(4) == 8
