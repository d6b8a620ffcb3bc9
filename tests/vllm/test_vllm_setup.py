"""How BEAM comes into an engine: in the place of the class vLLM would take, or not at all."""

import logging
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import wait_for  # noqa: E402

from beam_runtime.control.controller import Controller  # noqa: E402
from beam_runtime.control.decision_log import read_log  # noqa: E402
from beam_runtime.engines.vllm import scheduler as beam_scheduler  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler, own_class  # noqa: E402
from beam_runtime.testing.actuator import FakeActuator  # noqa: E402


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("diffusion", [False, True])
def test_the_class_is_the_one_that_vllm_would_take(asynchronous: bool, diffusion: bool) -> None:
    from vllm.config import SchedulerConfig

    sched = SchedulerConfig(max_model_len=64, is_encoder_decoder=False)
    sched.async_scheduling = asynchronous
    config = SimpleNamespace(
        scheduler_config=sched, diffusion_config=object() if diffusion else None
    )
    if diffusion:  # as VllmConfig does for whoever names no class
        name = "DiffusionAsyncScheduler" if asynchronous else "DiffusionScheduler"
        sched.scheduler_cls = f"vllm.v1.core.sched.diffusion_scheduler.{name}"
    assert own_class(config) is sched.get_scheduler_cls()


def test_a_diffusion_model_gets_its_scheduler_and_beam_stays_out(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.v1.core.sched import diffusion_scheduler

    class Theirs(diffusion_scheduler.DiffusionScheduler):
        def __init__(self, **_: Any) -> None:
            """Without a model."""

    monkeypatch.setattr(diffusion_scheduler, "DiffusionScheduler", Theirs)
    vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=False),
        diffusion_config=object(),
        parallel_config=SimpleNamespace(),
    )
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        assert type(make_scheduler(vllm_config=vllm_config)) is Theirs
    assert "a diffusion model" in caplog.text


def test_observing_is_the_default(rig: Any, config: Path) -> None:
    config.write_text('table = "table.parquet"\n')
    beam = rig(make=make_scheduler).scheduler.beam
    assert beam.policy == "observe"
    assert not beam.steering
    beam.close()


def test_a_log_that_cannot_be_opened_is_said_and_does_without(
    rig: Any, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.write_text('table = "table.parquet"\nlog = "nowhere/decisions.jsonl"\n')
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        beam = rig(make=make_scheduler).scheduler.beam
    assert beam is not None
    assert "cannot open the decision log" in caplog.text
    beam.close()


@pytest.mark.parametrize("fails", ["last_words_on", "add_utilities", "install", "ControlServer"])
def test_what_fails_while_beam_is_set_up_leaves_nothing_behind(
    rig: Any,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config.write_text(
        f'table = "table.parquet"\npolicy = "steer"\nlog = "log.jsonl"\nmetrics_port = {port}\n'
    )
    actuator = FakeActuator(1, range(600, 1201, 150))
    monkeypatch.setattr(
        "beam_runtime.control.resources.open_clocks", lambda gpus, table: (actuator, "a test's")
    )

    entered: list[Controller] = []
    enter = Controller.__enter__
    monkeypatch.setattr(Controller, "__enter__", lambda self: entered.append(self) or enter(self))

    def broken(*_: Any) -> None:
        entered[0]._want_clock(600)
        wait_for(lambda: actuator.locked_mhz == [600])
        raise RuntimeError(f"no {fails} today")

    monkeypatch.setattr(beam_scheduler, fails, broken)
    handler = signal.getsignal(signal.SIGTERM)
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        engine = rig(make=make_scheduler)
    assert f"vLLM serves without BEAM: no {fails} today" in caplog.text
    assert engine.scheduler.beam is None
    ours = {"beam-search", "beam-clocks", "beam-watchdog", "beam-metrics"}
    wait_for(lambda: ours.isdisjoint(thread.name for thread in threading.enumerate()))
    assert actuator.locked_mhz == [None]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [record["kind"] for record in read_log(config.parent / "log.jsonl")][-1] == "stop"
    socket.create_server(("127.0.0.1", port)).close()
    engine.add("r", [1] * 20, 2)
    while engine.scheduler.has_requests():
        engine.update(*engine.schedule())
    assert engine.given["r"] == 2
