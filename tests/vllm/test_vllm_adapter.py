"""make_scheduler without a model: vLLM's real schedulers, the real hooks and gate, fake passes.

A copy of EngineCore's loop drives them through the wrapped step functions. Orders come from a
stand-in for the controller, changing all the time; what must hold for all of them: every
request gets all its tokens, budgets and pipeline depth are kept, and every event is told.
"""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import (  # noqa: E402
    BATCHED_TOKENS,
    Clock,
    Director,
    any_knobs,
    any_lesson,
    drive,
    wait_for,
)

from beam_runtime.control.orders import Orders  # noqa: E402
from beam_runtime.engines.vllm import features as vllm_features  # noqa: E402
from beam_runtime.engines.vllm.columns import Columns  # noqa: E402
from beam_runtime.engines.vllm.followed import Cohort  # noqa: E402
from beam_runtime.engines.vllm.plan import Plan  # noqa: E402
from beam_runtime.engines.vllm.planner import Planner, _without_waiting  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.engines.vllm.tally import Tally  # noqa: E402
from beam_runtime.engines.vllm.view import SchedulerView  # noqa: E402
from beam_runtime.types import Knobs  # noqa: E402


def shared_out(tally: Tally, *, aborts: bool) -> None:
    """Every step's energy is some request's, but for those that were aborted."""
    (of_all,) = tally.classes.values()
    if aborts:
        assert of_all.energy_j.total < tally.active_energy_j * (1 + 1e-9)
    else:
        assert of_all.energy_j.total == pytest.approx(tally.active_energy_j)
        assert of_all.completions == of_all.requests == of_all.first_tokens
        assert of_all.generated_tokens == of_all.first_tokens + of_all.gaps


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_any_orders_serve_every_request(
    rig: Any, simulated: Clock, config: Path, tiny_table: Any, pp: int, asynchronous: bool
) -> None:
    tiny_table(config.parent / "table.parquet", pp=pp)
    for seed in range(12):
        engine = rig(
            make=make_scheduler, pp=pp, asynchronous=asynchronous,
            num_blocks=(40, 4_000)[seed % 2], prefix_caching=seed % 4 > 1,
        )  # fmt: skip
        assert engine.scheduler.beam is not None
        director = Director(any_knobs(random.Random(seed), pp))
        core, wanted = drive(engine, simulated, director, seed, pp, aborts=seed % 3 == 0)
        assert engine.scheduler.beam.failure == ""
        assert {name: engine.given[name] for name in wanted} == wanted
        assert max(sum(batch.values()) for batch in core.batches) <= BATCHED_TOKENS
        assert core.deepest <= core.batch_queue_size
        told = director.count()
        assert told["step_issued"] == told["step_finished"] == len(core.batches)
        assert told["arrival"] == told["completion"] + told["abort"]
        assert told["first_token"] >= told["completion"]
        assert engine.scheduler.beam.view.followed == {}
        shared_out(engine.scheduler.beam.tally, aborts=seed % 3 == 0)
        assert engine.scheduler.max_num_scheduled_tokens == BATCHED_TOKENS


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_shortcuts_plan_what_the_composer_would(
    rig: Any,
    simulated: Clock,
    config: Path,
    tiny_table: Any,
    monkeypatch: pytest.MonkeyPatch,
    pp: int,
    asynchronous: bool,
) -> None:
    tiny_table(config.parent / "table.parquet", pp=pp)
    # A step full of prefill takes 17 ms of each stage: decodes have to go ahead of some.
    config.write_text(
        'table = "table.parquet"\npolicy = "steer"\n[slo]\nttft_ms = 500\ntbt_ms = 15\n'
    )
    seen: Counter[str] = Counter()
    make = Planner._make

    def both(self: Planner, now_ms: float, orders: Orders) -> Plan | None:
        quick = make(self, now_ms, orders)
        rules = orders.rules if self._features.pollable else _without_waiting(orders.rules)
        seen["closed"] += self._closed(now_ms, rules) is not None
        seen["composed"] += 1
        assert self._compiled is not None
        knobs = self._clock.knobs(orders.knobs, now_ms)
        seen["rising"] += knobs is not orders.knobs
        composed = self._composed(self._compiled, now_ms, knobs, orders.correction, rules)
        if quick is None or composed is None:
            assert quick is composed
            return quick
        assert quick.until_ms == pytest.approx(composed.until_ms, abs=1e-6)
        assert replace(quick, until_ms=0.0) == replace(composed, until_ms=0.0)
        seen["hits"] += any(
            self._view.hits.find(request)[0] for request in self._view.admission.admissible()
        )
        seen["holds"] += quick.holds
        seen["hides"] += bool(quick.hidden)
        seen["full"] += (
            self._view.queued
            and self._all_at_once(now_ms, knobs, orders.correction, orders.rules) == quick
        )
        return quick

    filled = Columns.fill

    def all_told(self: Columns, now_ms: float) -> tuple[int, int]:
        found = filled(self, now_ms)
        self._prefill = True  # so that the composer hears of the steps in flight at all times
        return found

    monkeypatch.setattr(Columns, "fill", all_told)
    monkeypatch.setattr(Planner, "_make", both)
    for seed in range(12):
        engine = rig(
            make=make_scheduler, pp=pp, asynchronous=asynchronous,
            num_blocks=(40, 4_000)[seed % 2], prefix_caching=seed % 4 > 1,
            max_num_seqs=(16, 3)[seed % 3 == 1],
        )  # fmt: skip
        controller = engine.scheduler.beam.controller
        wait_for(lambda controller=controller: not controller.warming_up)
        learnt = any_lesson(random.Random(seed))
        director = Director(any_knobs(random.Random(seed), pp), learnt=learnt)
        drive(engine, simulated, director, seed, pp, aborts=seed % 3 == 0)
        assert engine.scheduler.beam.failure == ""
    assert seen["composed"] > 100
    assert seen["closed"] > 0 or pp == 1
    assert seen["holds"] > 100
    assert seen["hits"] > 50
    assert seen["rising"] > 50
    assert seen["full"] > 50 or pp > 1
    assert seen["hides"] > 50 or pp == 1


def counted_of(tally: Tally) -> dict[str, float]:
    """All that was counted, its histograms bucket by bucket."""
    plain = tally.plain()
    (of_all,) = tally.classes.values()
    assert plain.pop("classes") == {"default": of_all.plain()}
    buckets = {
        f"{name} {at}": count
        for name in ("ttft_ms", "gap_ms", "tpot_ms", "energy_j")
        for at, count in enumerate(getattr(of_all, name).counts)
    }
    return {**plain, **of_all.plain(), **buckets}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_requests_that_go_together_are_counted_as_each_alone_would_be(
    rig: Any,
    simulated: Clock,
    config: Path,
    tiny_table: Any,
    monkeypatch: pytest.MonkeyPatch,
    pp: int,
    asynchronous: bool,
) -> None:
    tiny_table(config.parent / "table.parquet", pp=pp)
    config.write_text(
        'table = "table.parquet"\npolicy = "steer"\n[slo]\nttft_ms = 500\ntbt_ms = 3\n'
    )
    shared = late = 0

    def run(seed: int) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        nonlocal shared
        simulated.now_ms = 1_000.0
        engine = rig(
            make=make_scheduler, pp=pp, asynchronous=asynchronous,
            num_blocks=(40, 4_000)[seed % 2],
        )  # fmt: skip
        beam, requests = engine.scheduler.beam, engine.scheduler.requests
        director = Director(any_knobs(random.Random(seed), pp), predicted=seed)
        issued, token = beam.view.issued, Cohort.token

        def checked(output: Any) -> Any:
            step = issued(output)
            if step is not None and not step.chunks:
                computed = [requests[name].num_computed_tokens - 1 for name in step.decodes]
                assert step.context_tokens == sum(computed)
            return step

        def counted(self: Cohort, *args: Any) -> None:
            nonlocal shared
            shared += len(self.names)
            token(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(SchedulerView, "issued", lambda _, output: checked(output))
            patch.setattr(Cohort, "token", counted)
            drive(engine, simulated, director, seed, pp, aborts=seed % 3 == 0)
        assert beam.failure == ""
        return counted_of(beam.tally), director.events

    for seed in range(6):
        tally, events = run(seed)
        with monkeypatch.context() as alone:
            alone.setattr("beam_runtime.engines.vllm.embedded._each_a_token", lambda *_: False)
            one_by_one, same_events = run(seed)
        assert tally == pytest.approx(one_by_one)
        assert tally["longest_gaps"] > 0
        late += tally["late_gaps"]
        assert events == same_events
    assert late > 0
    assert shared > 100


def test_a_prefix_cache_hit_is_known_before_vllm_looks(rig: Any, config: Path) -> None:
    class Listening(Director):
        def arrival(self, name: str, tokens: int, *, cached_tokens: int, **_: Any) -> None:
            told[name] = cached_tokens

    told: dict[str, int] = {}
    engine = rig(make=make_scheduler, prefix_caching=True)
    beam = engine.scheduler.beam
    beam.controller.close()
    beam.connect(Listening(lambda: Knobs(1200, 512)))
    prompt = list(range(320))

    def waiting(name: str, tokens: list[int], outputs: int) -> tuple[int, int]:
        engine.add(name, tokens, outputs)
        (request,) = beam.view.admission.admissible()
        cached_tokens, unheld_tokens = beam.view.hits.find(request)
        assert told[name] == cached_tokens
        return cached_tokens, unheld_tokens

    assert waiting("first", prompt, 1) == (0, 0)
    engine.update(*engine.schedule())
    assert waiting("again", prompt, 9) == (304, 304), "the last token's block is computed anew"
    engine.update(*engine.schedule())
    assert waiting("beside", prompt[:100] + prompt, 9) == (96, 0), "another request holds them"


def test_preemptions_are_found_where_vllm_does_not_tell_of_them(
    rig: Any, simulated: Clock, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(untold: bool) -> int:
        engine = rig(make=make_scheduler, num_blocks=40)
        if untold:
            schedule = engine.scheduler.beam.issued

            def silent(output: Any) -> None:
                fields = dict(vars(output))
                del fields["preempted_req_ids"]
                schedule(SimpleNamespace(**fields))
                if engine.scheduler.beam.view.flying:
                    flying = engine.scheduler.beam.view.flying.pop()
                    engine.scheduler.beam.view.flying.append(flying._replace(output=output))

            monkeypatch.setattr(engine.scheduler.beam, "issued", silent)
        director = Director(lambda: Knobs(1200, 512))
        _, wanted = drive(engine, simulated, director, 0, 1, equal=12)
        assert {name: engine.given[name] for name in wanted} == wanted
        assert engine.scheduler.beam.failure == ""
        return director.count()["preemption"]

    told = counted(untold=False)
    assert told > 0
    # One that is preempted twice before it comes back is told of once.
    assert 0 < counted(untold=True) <= told


@pytest.mark.parametrize("by_step", [True, False], ids=["eligible step", "running list"])
def test_both_ways_of_hiding_requests(
    rig: Any,
    simulated: Clock,
    config: Path,
    tiny_table: Any,
    monkeypatch: pytest.MonkeyPatch,
    by_step: bool,
) -> None:
    tiny_table(config.parent / "table.parquet", pp=4)
    monkeypatch.setattr(
        vllm_features, "features", lambda *_: vllm_features.Features(by_step, pollable=True)
    )
    for seed in range(6):
        engine = rig(make=make_scheduler, pp=4, max_num_seqs=8)
        director = Director(lambda: Knobs(1200, 128, 4))
        core, wanted = drive(engine, simulated, director, seed, 4)
        assert {name: engine.given[name] for name in wanted} == wanted
        assert max(len(batch) for batch in core.batches) <= 8
