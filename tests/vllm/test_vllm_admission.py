"""Requests that vLLM passes over, and those that only its own look moves on: its real scheduler."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import Clock, Director, wait_for  # noqa: E402

from beam_runtime.engines.vllm.admission import Admission  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.types import Knobs  # noqa: E402


def steered(rig: Any, knobs: Knobs = Knobs(1200, 256), **options: Any) -> tuple[Any, Director]:  # noqa: B008
    engine = rig(make=make_scheduler, **options)
    beam = engine.scheduler.beam
    wait_for(lambda: beam._planner._compiled is not None)
    beam.controller.close()
    director = Director(lambda: knobs)
    beam.connect(director)
    return engine, director


def run(engine: Any, clock: Clock, steps: int, each_ms: float = 10.0) -> None:
    for _ in range(steps):
        output, sampled = engine.schedule()
        clock.now_ms += each_ms
        engine.update(output, sampled)


def request(name: str, prompt: int, tokens: int = 3, **more: Any) -> Any:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False)
    return Request(
        request_id=name, prompt_token_ids=[1] * prompt, sampling_params=params,
        pooling_params=None, **more,
    )  # fmt: skip


def with_grammar(name: str, prompt: int) -> tuple[Any, "Future[Any]"]:
    """A request whose grammar is compiled when the future is done."""
    from vllm.v1.request import RequestStatus

    one = request(name, prompt)
    compiled: Future[Any] = Future()
    real = type("Structured", (), {"grammar": property(lambda self: _done(compiled))})
    one.structured_output_request = real()
    one.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    return one, compiled


def _done(compiled: "Future[Any]") -> Any:
    if not compiled.done():
        return None
    return compiled.exception() or compiled.result()


def test_who_waits_for_a_grammar_is_passed_over_until_it_is_there(
    rig: Any, simulated: Clock, config: Path
) -> None:
    engine, _ = steered(rig)
    blocked, compiled = with_grammar("grammar", 30)
    engine.add("before", [1] * 20, 100)
    engine.scheduler.add_request(blocked)
    engine.add("behind", [1] * 20, 100)
    beam = engine.scheduler.beam
    assert [r.request_id for r in beam.view.admission.admissible()] == ["before", "behind"]
    run(engine, simulated, 60)
    assert engine.given["behind"] > 50
    assert engine.given["grammar"] == 0
    assert beam.tally.passed_over == 0, "who cannot be admitted is not BEAM's fault"
    # Nothing but decodes goes on; a step that has no room for it would never look at it.
    engine.scheduler.structured_output_manager.accept_tokens = lambda request, tokens: True
    compiled.set_result(SimpleNamespace())
    assert [r.request_id for r in beam.view.admission.admissible()] == ["grammar"]
    run(engine, simulated, 5)
    assert engine.given["grammar"] == 3


def test_a_grammar_that_cannot_be_compiled_ends_its_request(
    rig: Any, simulated: Clock, config: Path
) -> None:
    engine, _ = steered(rig)
    blocked, compiled = with_grammar("grammar", 30)
    engine.add("before", [1] * 20, 200)
    run(engine, simulated, 5)
    engine.scheduler.add_request(blocked)
    run(engine, simulated, 5)
    assert "grammar" in engine.scheduler.requests
    compiled.set_exception(ValueError("no such rule"))
    run(engine, simulated, 5)
    assert "grammar" not in engine.scheduler.requests, "vLLM had a look, and told its client"
    assert engine.scheduler.beam.view.followed.keys() == {"before"}


def test_adapters_without_a_slot_are_passed_over() -> None:
    def one(name: str, lora: int | None) -> SimpleNamespace:
        adapter = None if lora is None else SimpleNamespace(lora_int_id=lora)
        status = SimpleNamespace(name="WAITING")
        return SimpleNamespace(request_id=name, lora_request=adapter, status=status)

    scheduler = SimpleNamespace(
        running=[one("r", 1)],
        waiting=[one("other", 2), one("third", 3), one("same", 1), one("plain", None)],
        lora_config=SimpleNamespace(max_loras=2),
    )
    found = [request.request_id for request in Admission(scheduler).admissible()]
    assert found == ["other", "same", "plain"], "as vLLM: the third adapter has no slot left"


def test_a_hold_lets_vllm_learn_of_kv_blocks_that_are_on_their_way(
    rig: Any, simulated: Clock, config: Path
) -> None:
    """vLLM hears of loaded blocks from the steps that it runs, empty ones too."""
    from vllm.v1.request import RequestStatus

    engine, _ = steered(rig, Knobs(1200, 256, 1, 80.0))
    engine.add("paced", [1] * 20, 200)
    run(engine, simulated, 3)
    beam = engine.scheduler.beam
    held = beam._planner.plan(simulated.now_ms, beam.controller.orders)
    assert held is not None
    assert held.holds, "the case is sound: its decode is held back"
    loads = request("loads", 40)
    loads.status = RequestStatus.WAITING_FOR_REMOTE_KVS
    engine.scheduler.connector = SimpleNamespace()
    engine.scheduler.waiting.add_request(loads)
    engine.scheduler.requests["loads"] = loads
    beam._planner.drop()
    assert beam._planner.plan(simulated.now_ms, beam.controller.orders) is None
    assert list(beam.view.admission.admissible()) == []
    engine.scheduler.finished_recving_kv_req_ids.add("loads")
    assert [r.request_id for r in beam.view.admission.admissible()] == ["loads"]


def test_a_paused_engine_has_nobody_in_turn(rig: Any, config: Path) -> None:
    from vllm.v1.core.sched.interface import PauseState

    engine, _ = steered(rig)
    engine.add("r", [1] * 20, 3)
    admission = engine.scheduler.beam.view.admission
    assert admission.open()
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    assert not admission.open()


def test_a_streaming_session_is_a_request_per_input(
    rig: Any, simulated: Clock, config: Path
) -> None:
    engine, director = steered(rig)
    scheduler = engine.scheduler
    beam = scheduler.beam
    scheduler.add_request(request("talk", 30, 4, resumable=True))
    scheduler.add_request(request("talk", 10, 4, resumable=True))  # while the first is at work
    run(engine, simulated, 12)
    assert engine.given["talk"] == 8, "both inputs are answered"
    time_apart_ms = 60_000.0
    simulated.now_ms += time_apart_ms  # its user thinks
    scheduler.add_request(request("talk", 20, 4, resumable=True))
    run(engine, simulated, 8)
    assert engine.given["talk"] == 12
    assert beam.failure == ""
    told = director.count()
    assert (told["arrival"], told["first_token"], told["completion"]) == (3, 3, 3)
    (of_all,) = beam.tally.classes.values()
    assert of_all.gap_ms.total < time_apart_ms, "nobody's token came a minute late"
    scheduler.add_request(request("talk", 1, 1, resumable=False))  # it is over
    run(engine, simulated, 4)
    assert beam.view.followed == {}
