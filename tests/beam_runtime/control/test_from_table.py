"""A controller opened from a table's file, in real time: whatever the file is, it opens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fault_bench import wait_for

from beam_runtime.control.controller import Controller
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import EngineLimits
from beamprof.tables.table_file import write_table


class TestFromFiles:
    """from_table never raises: the engine serves, and the status says what is missing."""

    @pytest.fixture
    def path(self, small_table: PerfTable, tmp_path: Path) -> Path:
        path = tmp_path / "small.parquet"
        write_table(small_table.columns, small_table.metadata, path)
        return path

    @pytest.mark.usefixtures("compiled")
    def test_a_good_table(self, path: Path, limits: EngineLimits) -> None:
        with Controller.from_table(path, limits, model="small", tp=2) as beam:
            wait_for(lambda: beam.orders.steering)
            assert beam.status.clocks == "clocks stay as they are: no GPU was named"
            assert beam.orders.knobs.clock_mhz == 1410, "nothing else can be had"

    @pytest.mark.parametrize(
        ("break_it", "words"),
        [
            (lambda path: path.unlink(), "no table at"),
            (lambda path: path.write_bytes(b""), "cannot be read"),
            (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
        ],
    )
    def test_a_bad_table(
        self, path: Path, limits: EngineLimits, break_it: Callable[[Path], None], words: str
    ) -> None:
        break_it(path)
        with Controller.from_table(path, limits) as beam:
            beam.arrival("a", 100)
            wait_for(lambda: beam.status.counts.events == 1)
            assert words in beam.status.reason
            assert beam.orders.knobs.chunk_tokens == limits.max_batched_tokens

    def test_what_nobody_foresaw(
        self, path: Path, limits: EngineLimits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("nobody foresaw it")

        for name in ("PerfTable.load", "StepCost.from_table"):
            with monkeypatch.context() as patched:
                patched.setattr(f"beam_runtime.control.resources.{name}", fails)
                with Controller.from_table(path, limits) as beam:
                    assert "nobody foresaw it" in beam.status.reason
                    assert not beam.orders.steering

    def test_a_table_for_something_else(self, path: Path, limits: EngineLimits) -> None:
        for wrong in (
            Controller.from_table(path, limits, model="large"),
            Controller.from_table(path, limits, tp=1),
            Controller.from_table(path, limits, device="other"),
            Controller.from_table(path, replace(limits, pp=2, max_steps_in_flight=2)),
        ):
            assert "expected" in wrong.status.reason
            assert not wrong.orders.steering

    @pytest.mark.usefixtures("compiled")
    def test_no_place_for_the_log(
        self, path: Path, limits: EngineLimits, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("/nowhere/log.jsonl", "x" * 5000, "a\0b"):
            caplog.clear()
            with Controller.from_table(path, limits, decision_log=name) as beam:
                wait_for(lambda: beam.orders.steering)
            assert "cannot open the decision log" in caplog.text
