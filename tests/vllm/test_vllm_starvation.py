"""Prompts that vLLM does not cut to a step's tokens: refused, and, refused or not, never starved.

The witness is vLLM's real scheduler, in which each of its reasons not to cut a prompt is switched
on; BEAM's chunk is smaller than the prompt.
"""

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import Clock, Director, drive, wait_for  # noqa: E402

from beam_runtime.engines.vllm import features as vllm_features  # noqa: E402
from beam_runtime.engines.vllm.head_watch import STILL_MS  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.types import Knobs  # noqa: E402

# A Mamba block, but not beside four decodes.
SMALL = Knobs(1200, 130)
PROMPTS = (50, 300, 40)


def nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were a vLLM of which nobody knows yet what it does not cut."""
    monkeypatch.setattr(vllm_features, "unsupported", lambda config: ())
    monkeypatch.setattr(vllm_features, "unsupported_on", lambda scheduler: ())


def uncut_prompts(rig: Any) -> Any:
    return rig(make=make_scheduler, enable_chunked_prefill=False, max_num_batched_tokens=1024)


def whole_mamba_blocks(rig: Any) -> Any:
    engine = rig(make=make_scheduler)
    engine.scheduler.need_mamba_block_aligned_split = True
    engine.scheduler.cache_config.block_size = 128
    engine.scheduler.block_size = engine.scheduler.hash_block_size = 128
    return engine


WAYS = pytest.mark.parametrize("way", [uncut_prompts, whole_mamba_blocks])


def serve(engine: Any, clock: Clock, *, decodes: int = 4) -> Director:
    """Prompts among decodes that go on for long, all under a small chunk."""
    director = Director(lambda: SMALL)
    scheduler = engine.scheduler
    wait_for(lambda: scheduler.beam._planner._compiled is not None)
    for number in range(decodes):
        engine.add(f"d{number}", [1] * 8, 900)
    for number, prompt in enumerate(PROMPTS):
        engine.add(f"p{number}", [1] * prompt, 3)
    scheduler.beam.controller.close()
    scheduler.beam.connect(director)
    for _ in range(3_000):
        output, sampled = engine.schedule()
        clock.now_ms += 8.0 if output.num_scheduled_tokens else 1.0
        engine.update(output, sampled)
        if all(engine.given[f"p{number}"] == 3 for number in range(len(PROMPTS))):
            return director
    raise AssertionError(f"not served after 3,000 steps: {dict(engine.given)}")


@WAYS
def test_a_prompt_that_is_not_cut_gets_vllm_s_own_settings(
    rig: Any, simulated: Clock, config: Path, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    nothing_is_refused(monkeypatch)
    engine = way(rig)
    begun_ms = simulated.now_ms
    director = serve(engine, simulated)
    assert simulated.now_ms - begun_ms < 1_500.0, "all three prompts, the long one within a second"
    beam = engine.scheduler.beam
    assert beam.tally.passed_over == director.count()["passed_over"] == 1
    ((name, detail),) = (args for kind, args in director.events if kind == "passed_over")
    assert name == "p1"
    assert "p1 got no tokens" in detail
    assert beam.failure == ""


def test_the_controller_gives_the_engine_its_own_settings_for_longer(
    rig: Any, config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = rig(make=make_scheduler)
    controller = engine.scheduler.beam.controller
    wait_for(lambda: controller.status.steering)
    with caplog.at_level(logging.WARNING, logger="beam_runtime"):
        controller.passed_over("p1", "p1 got no tokens for 400 ms")
        wait_for(lambda: not controller.orders.steering)
    said = [one for one in caplog.messages if "p1 got no tokens" in one]
    assert len(said) == 1, "said once"
    assert "a prompt was passed over" in controller.status.reason
    assert controller.status.counts.falls == 1
    controller.close()


def test_a_prompt_that_waits_for_kv_blocks_is_not_beam_s_fault(
    rig: Any, simulated: Clock, config: Path
) -> None:
    engine = rig(make=make_scheduler, num_blocks=40)
    director = Director(lambda: Knobs(1200, 256))
    wait_for(lambda: engine.scheduler.beam._planner._compiled is not None)
    engine.scheduler.beam.controller.close()
    engine.scheduler.beam.connect(director)
    engine.add("long", [1] * 256, 250)
    engine.add("waits", [1] * 500, 3)
    begun_ms = simulated.now_ms
    while engine.given["waits"] < 3:
        output, sampled = engine.schedule()
        simulated.now_ms += 10.0
        engine.update(output, sampled)
    assert simulated.now_ms - begun_ms > 3 * STILL_MS, "it did wait"
    assert engine.scheduler.beam.tally.passed_over == 0


@pytest.mark.parametrize("seed", range(6))
def test_nobody_is_passed_over_where_vllm_cuts_prompts(
    rig: Any, simulated: Clock, config: Path, seed: int
) -> None:
    """Prompts of up to 400 tokens, a chunk of 32, and a pace: the watch has nothing to say."""
    engine = rig(make=make_scheduler, num_blocks=(60, 4_000)[seed % 2])
    director = Director(lambda: Knobs(600, 32, 1, 60.0))
    _, wanted = drive(engine, simulated, director, seed, 1)
    assert {name: engine.given[name] for name in wanted} == wanted
    assert engine.scheduler.beam.tally.passed_over == 0


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (uncut_prompts, "chunked prefill is off"),
        (lambda rig: rig(make=_over_mamba), "whole Mamba blocks"),
    ],
)
def test_what_is_known_not_to_be_cut_is_refused_in_a_line(
    rig: Any, config: Path, caplog: pytest.LogCaptureFixture, way: Any, said: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        scheduler = way(rig).scheduler
    (line,) = [r.getMessage() for r in caplog.records if r.name == "beam_runtime.vllm"]
    assert said in line
    assert getattr(scheduler, "beam", None) is None


def _over_mamba(**wanted: Any) -> Any:
    """make_scheduler over a scheduler that finds Mamba layers in its model."""
    from vllm.v1.core.sched import scheduler as module

    plain = module.Scheduler

    class OverMamba(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.need_mamba_block_aligned_split = True

    module.Scheduler = OverMamba
    try:
        return make_scheduler(**wanted)
    finally:
        module.Scheduler = plain
