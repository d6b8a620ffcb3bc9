"""Typical uses of the public names, for mypy alone: scripts/check runs it over this file."""

from pathlib import Path
from typing import assert_type

from beam_runtime import (
    Controller,
    Decision,
    EngineLimits,
    Forecast,
    Knobs,
    Orders,
    PerfTable,
    Policy,
    RequestState,
    Search,
    Slo,
    Snapshot,
    Status,
    StepCost,
    StepShape,
    explain,
    read_log,
)
from beam_runtime.testing import FakeActuator, FakeClock, FakeEngine, FakeRequest, Ledger


def embed(path: Path) -> None:
    """The five lines of docs/embedding.md."""
    limits = EngineLimits(pp=4, max_num_seqs=256)
    with Controller.from_table(path, limits, gpus=range(8), slos={"batch": Slo(5000.0)}) as beam:
        assert_type(beam, Controller)
        beam.arrival("r1", prompt_tokens=1500, slo="batch")
        beam.step_issued(decodes=["r0"], chunks=[("r1", 512)])
        beam.step_finished()
        beam.first_token("r1")
        beam.completion("r1")
        assert_type(beam.orders, Orders)
        assert_type(beam.orders.knobs.chunk_tokens, int)
        assert_type(beam.status, Status)


def decide(path: Path) -> str:
    """A decision by hand."""
    cost = StepCost.from_table(PerfTable.load(path))
    limits = EngineLimits(pp=4)
    search = Search(cost, limits, policy=Policy(chunk_tokens=(128, 256)))
    state = Snapshot(0.0, limits, Knobs(1410, 256), waiting=(RequestState("r1", 900, 0.0),))
    decision = search(state)
    assert_type(decision, Decision)
    assert_type(search.forecast(state, decision.knobs), Forecast)
    print(cost.latency_ms(StepShape(prefill_tokens=128)).min())
    return explain(state, decision)


def check(cost: StepCost, path: Path) -> None:
    """An embedding under test."""
    limits, clock = EngineLimits(pp=2), FakeClock()
    engine = FakeEngine(cost, limits, [FakeRequest("r", 0.0, 100, 10)])
    with Controller(cost, limits, actuator=FakeActuator(), threads=False, now_ms=clock) as beam:
        assert_type(engine.run(beam), Ledger)
    for record in read_log(path):
        print(record["kind"])
