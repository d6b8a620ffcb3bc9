"""What a knob or a promise does to vLLM's steps, one at a time.

Schedulers and hooks are the real ones, orders a stand-in's, passes fake (driving.py).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import Clock, Director, drive, wait_for  # noqa: E402

from beam_runtime.engines.vllm.control import Control  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.types import Knobs, Slo  # noqa: E402


def test_the_chunk_knob_is_the_step_s_budget(rig: Any, simulated: Clock, config: Path) -> None:
    for chunk in (64, 256):
        engine = rig(make=make_scheduler)
        core, _ = drive(engine, simulated, Director(lambda c=chunk: Knobs(1200, c)), 3, 1)
        assert max(sum(batch.values()) for batch in core.batches) == chunk


def test_microbatches_split_the_decodes_of_a_pipeline(
    rig: Any, simulated: Clock, config: Path, tiny_table: Any
) -> None:
    tiny_table(config.parent / "table.parquet", pp=2)

    def largest_decode(microbatches: int) -> int:
        engine = rig(make=make_scheduler, pp=2)
        director = Director(lambda: Knobs(1200, 512, microbatches))
        core, _ = drive(engine, simulated, director, 0, 2, equal=12)
        last = core.batches[len(core.batches) // 2 :]
        return max(len(batch) for batch in last if max(batch.values()) == 1)

    assert largest_decode(2) <= -(-largest_decode(1) // 2) + 1


def test_a_paced_batch_is_held_without_being_sent_empty(
    rig: Any, simulated: Clock, config: Path
) -> None:
    def run(pace_ms: float) -> tuple[int, float]:
        begin_ms = simulated.now_ms
        engine = rig(make=make_scheduler)
        director = Director(lambda: Knobs(1200, 512, 1, pace_ms))
        core, _ = drive(engine, simulated, director, 1, 1, equal=4)
        assert engine.scheduler.beam.failure == ""
        return len(core.batches), simulated.now_ms - begin_ms

    (steps, plain_ms), (paced_steps, paced_ms) = run(0.0), run(60.0)
    assert paced_steps <= steps
    assert paced_ms > 2 * plain_ms


def test_another_default_slo_reaches_requests_and_margins(rig: Any, config: Path) -> None:
    engine = rig(make=make_scheduler)
    beam = engine.scheduler.beam
    wait_for(lambda: beam.controller.orders.steering)
    before_ms = beam.controller.status.correction.ttft_margin_ms
    Control(beam).change({"slo": {"ttft_ms": 200}})
    wait_for(lambda: beam.controller.status.correction.ttft_margin_ms == 0.4 * before_ms)
    engine.add("r0", [1] * 30, 2)
    assert beam.view.followed["r0"].slo == Slo(200.0, 100.0)
    assert beam.controller.orders.steering
    beam.close()


def test_a_request_names_its_own_slo(rig: Any, config: Path) -> None:
    from beam_runtime.engines.config import EmbeddedConfig
    from beam_runtime.engines.vllm.limits import slo_of

    config.write_text("[slo]\nttft_ms = 900\n[slo.batch]\nttft_ms = 9000\ntbt_ms = 400\n")
    promised = slo_of(EmbeddedConfig.from_environment())

    default = Slo(900.0, 200.0)

    def asked(**extra: object) -> Slo:
        params = SimpleNamespace(extra_args=extra)
        return promised(SimpleNamespace(sampling_params=params), default)

    assert asked() == default
    assert asked(beam_class="batch") == Slo(9000.0, 400.0)
    assert asked(beam_class="batch", beam_tbt_ms="50") == Slo(9000.0, 50.0)
    assert asked(beam_class="nobody", beam_ttft_ms="soon", beam_tbt_ms=-1) == default
    assert promised(SimpleNamespace(), default) == default


def test_a_promise_that_is_not_understood_is_told_of(config: Path) -> None:
    """A mistyped class must not become the default one without a word."""
    from beam_runtime.engines.config import EmbeddedConfig
    from beam_runtime.engines.vllm.limits import slo_of

    config.write_text("[slo.batch]\nttft_ms = 9000\n")
    heard: list[str] = []
    promised = slo_of(EmbeddedConfig.from_environment(), heard.append)

    def said(**extra: object) -> str:
        heard.clear()
        promised(SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra)), Slo())
        return "; ".join(heard)

    assert said(beam_class="bacth") == "beam_class 'bacth', known: default, batch"
    assert said(beam_ttft_ms="soon").startswith("beam_ttft_ms 'soon', expected milliseconds")
    assert said(beam_tbt_ms=-5).startswith("beam_tbt_ms -5")
    assert said(beam_tbt_ms=50, beam_tpot_ms=40).startswith("more than one of")
    for understood in ({"beam_class": "batch"}, {"beam_class": "default"}, {"beam_tbt_ms": "50"},
                       {"beam_tpot_ms": 40}, {"another": 1}):  # fmt: skip
        assert said(**understood) == ""


def test_what_is_not_understood_is_counted_and_said_once(
    rig: Any, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    engine = rig(make=make_scheduler)
    beam = engine.scheduler.beam
    for name in ("r0", "r1"):
        params = SamplingParams(max_tokens=2, extra_args={"beam_class": "nobody"})
        engine.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=[1] * 9,
                sampling_params=params,
                pooling_params=None,
            )
        )
    assert beam.tally.misunderstood == 2
    assert beam.view.followed["r0"].slo == beam.slo
    assert caplog.text.count("a request asks for beam_class 'nobody'") == 1
    assert "beam_misunderstood_slos_total 2" in Control(beam).metrics()
    beam.close()
