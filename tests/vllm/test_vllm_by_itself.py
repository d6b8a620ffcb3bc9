"""vLLM with its own settings: until BEAM can steer, while it observes, once it failed or ended.

The same where it cannot be used at all, which is said once.
"""

import logging
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import (  # noqa: E402
    BATCHED_TOKENS,
    NOTHING,
    Clock,
    Director,
    drive,
    wait_for,
)

from beam_runtime.control.decision_log import read_log  # noqa: E402
from beam_runtime.control.warming import Warming  # noqa: E402
from beam_runtime.emulator.next_step import NextStep  # noqa: E402
from beam_runtime.engines.vllm import features as vllm_features  # noqa: E402
from beam_runtime.engines.vllm.control import Control  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.testing.actuator import FakeActuator  # noqa: E402
from beam_runtime.types import Knobs  # noqa: E402


def test_until_the_composer_is_loaded_vllm_has_its_own_settings(
    rig: Any, simulated: Clock, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, loaded_by, asks = threading.Event(), [], Counter()
    look, compose, ask = Warming.look, NextStep.__init__, NextStep.ask

    def slow(self: Warming) -> Any:
        return look(self) if allowed.is_set() else None

    def loading(self: NextStep, *args: Any) -> None:
        loaded_by.append(threading.current_thread().name)
        compose(self, *args)

    def asked(self: NextStep, *args: Any, **kwargs: Any) -> Any:
        asks["engine"] += threading.current_thread() is threading.main_thread()
        return ask(self, *args, **kwargs)

    monkeypatch.setattr(Warming, "look", slow)
    monkeypatch.setattr(NextStep, "__init__", loading)
    monkeypatch.setattr(NextStep, "ask", asked)
    engine = rig(make=make_scheduler)
    director = Director(lambda: Knobs(1200, 64))
    core, _ = drive(engine, simulated, director, 1, 1, composer=False)
    assert max(sum(batch.values()) for batch in core.batches) > 64, "vLLM's own budget"
    assert asks["engine"] == 0
    assert loaded_by == []
    allowed.set()
    engine = rig(make=make_scheduler)
    controller = engine.scheduler.beam.controller
    wait_for(lambda: not controller.warming_up)
    core, _ = drive(engine, simulated, Director(lambda: Knobs(1200, 64)), 1, 1)
    assert max(sum(batch.values()) for batch in core.batches) <= 64
    assert asks["engine"] > 10
    assert loaded_by == ["beam-search"]
    assert engine.scheduler.beam.failure == ""


def test_a_failing_hook_leaves_the_engine_to_itself(
    rig: Any,
    simulated: Clock,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = iter(range(1000))

    def broken(*_: Any) -> None:
        if next(calls) > 5:
            raise ZeroDivisionError("a planted bug")

    engine = rig(make=make_scheduler)
    controller = engine.scheduler.beam.controller
    wait_for(lambda: not controller.warming_up)
    monkeypatch.setattr("beam_runtime.engines.vllm.columns.Columns.fill", broken)
    director = Director(lambda: Knobs(1200, 64))
    with caplog.at_level(logging.ERROR, logger="beam_runtime.vllm"):
        _, wanted = drive(engine, simulated, director, 5, 1)
    assert {name: engine.given[name] for name in wanted} == wanted
    assert sum("stays out" in r.getMessage() for r in caplog.records) == 1
    assert engine.scheduler.max_num_scheduled_tokens == BATCHED_TOKENS


def test_observing_touches_nothing(
    rig: Any, simulated: Clock, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = drive(rig(), simulated, None, 7, 1)
    monkeypatch.setenv("BEAM_POLICY", "observe")
    simulated.now_ms = 1_000.0
    engine = rig(make=make_scheduler)
    director = Director(lambda: Knobs(600, 32, 1, 50.0))
    watched, _ = drive(engine, simulated, director, 7, 1)
    assert watched.batches == plain.batches
    assert director.count()["step_finished"] == len(plain.batches)


def test_observing_gives_clocks_back_and_steering_takes_them_again(
    rig: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actuator = FakeActuator(2, range(600, 1201, 150))
    monkeypatch.setattr(
        "beam_runtime.control.resources.open_clocks", lambda gpus, table: (actuator, "a test's")
    )
    engine = rig(make=make_scheduler)
    beam = engine.scheduler.beam
    control = Control(beam)
    wait_for(lambda: None not in actuator.locked_mhz)
    assert beam.steering
    assert control.change({"policy": "observe"})["policy"] == "observe"
    wait_for(lambda: actuator.locked_mhz == [None] * 2)
    calls = len(actuator.calls)
    engine.add("r0", [1] * 300, 5)
    wait_for(lambda: "r0" in (beam.controller.orders.expected or NOTHING).ttft_ms)
    while engine.scheduler.has_requests():
        engine.update(*engine.schedule())
    assert engine.given["r0"] == 5
    assert beam.tally.ttfts == 1, "its first token was predicted for vLLM's own settings"
    assert "set" not in dict(actuator.calls[calls:])
    control.change({"policy": "steer"})
    wait_for(lambda: None not in actuator.locked_mhz)
    assert beam.steering
    beam.close()
    assert actuator.locked_mhz == [None] * 2


def test_sigterm_ends_the_log_before_vllm_s_own_handler_runs(
    rig: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('table = "table.parquet"\nlog = "log.jsonl"\n')
    heard = []

    def theirs(number: int, frame: Any) -> None:
        heard.extend(record["kind"] for record in read_log(config.parent / "log.jsonl"))

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        engine = rig(make=make_scheduler)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: bool(heard))
        assert heard[-1] == "stop"
        engine.scheduler.beam.close()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "BEAM_CONFIG is not set"),
        ('table = "nowhere.parquet"', "no table at"),
        ("log = 'x.jsonl'", "names no table"),
        ('table = "other.parquet"', "a table for pp 4"),
        ('table = "strange.parquet"', "for another model"),
        ('tabel = "table.parquet"', "no field tabel"),
        ('table = "table.parquet"\npolicy = "steer"\n[slo]\nttft_ms = -1', "slo.ttft_ms"),
        ("table = [", "cannot read the configuration"),
    ],
)
def test_without_a_usable_table_vllm_serves_alone_and_says_why_once(
    rig: Any,
    simulated: Clock,
    config: Path,
    tiny_table: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str | None,
    said: str,
) -> None:
    tiny_table(config.parent / "other.parquet", pp=4)
    tiny_table(config.parent / "strange.parquet", pp=1, model_shape='{"layers": 80}')
    if text is None:
        monkeypatch.delenv("BEAM_CONFIG")
    else:
        config.write_text(text)
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        engine = rig(make=make_scheduler)
        core, wanted = drive(engine, simulated, None, 2, 1)
    lines = [r.getMessage() for r in caplog.records if r.name == "beam_runtime.vllm"]
    assert len(lines) == 1
    assert lines[0].startswith("vLLM serves without BEAM: ")
    assert said in lines[0]
    assert getattr(engine.scheduler, "beam", None) is None
    simulated.now_ms = 1_000.0
    plain, _ = drive(rig(), simulated, None, 2, 1)
    assert core.batches == plain.batches
    assert {name: engine.given[name] for name in wanted} == wanted


def test_a_vllm_without_an_expected_attribute_is_left_alone_and_named(
    rig: Any, config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    class Future013(Scheduler):
        """Keeps its running requests elsewhere."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.active = self.__dict__.pop("running")

    monkeypatch.setattr("vllm.v1.core.sched.scheduler.Scheduler", Future013)
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        engine = rig(make=make_scheduler)
    assert engine.scheduler.beam is None
    assert "lacks what BEAM needs: Scheduler.running" in caplog.text


def test_features_are_told_from_the_classes() -> None:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.request import Request

    assert vllm_features.missing(Scheduler, Request, SchedulerOutput, EngineCoreOutput) == ()
    found = vllm_features.features(Request, EngineCore)
    assert found == vllm_features.Features(eligible_step=True, pollable=True)
