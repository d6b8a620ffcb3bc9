"""Chunks alone between steps with all decodes: vLLM's real scheduler does what was planned."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import Clock, Core, Director, drive  # noqa: E402

from beam_runtime.emulator import next_step  # noqa: E402
from beam_runtime.emulator.setup import STEP  # noqa: E402
from beam_runtime.engines.vllm import features as vllm_features  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.types import Knobs, Rules  # noqa: E402


class Together(Director):
    """Orders with the rule."""

    def reorder(self) -> None:
        super().reorder()
        self.orders = replace(self.orders, rules=Rules(together=True))


class Witness:
    """Holds each step of vLLM's against what the composer had put into it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: Counter[str] = Counter()
        self._planned: tuple[list[int], int, int] | None = None
        composed, scheduled = next_step.composed, Core.scheduled

        def noted(state: Any, *given: Any) -> Any:
            found = composed(state, *given)
            answer, _, batch = found[:3]
            tokens = state.places["scheduled_tokens"][: batch.items].tolist()
            self._planned = (tokens, batch.decodes, batch.each_tokens) if answer == STEP else None
            return found

        def compared(core: Core) -> Any:
            output, sampled = scheduled(core)
            if self._planned is not None and output.num_scheduled_tokens:
                self._compare(core, dict(output.num_scheduled_tokens), sampled)
            self._planned = None
            return output, sampled

        monkeypatch.setattr(next_step, "composed", noted)
        monkeypatch.setattr(Core, "scheduled", compared)

    def _compare(self, core: Core, tokens: dict[str, int], sampled: set[str]) -> None:
        assert self._planned is not None
        planned, decodes, each_tokens = self._planned
        assert sorted(tokens.values()) == sorted(planned)
        self.seen["capped"] += each_tokens > 0
        self.seen["with all"] += decodes > 1
        prompts = [r for r in core.scheduler.running if not r.num_output_tokens]
        if not decodes and len(prompts) < len(core.scheduler.running):
            assert not sampled, "a first token that would go on alone"
            self.seen["between"] += 1


@pytest.mark.parametrize("threshold", [0, 40], ids=["", "a threshold of the user's"])
@pytest.mark.parametrize("by_step", [True, False], ids=["eligible step", "running list"])
@pytest.mark.parametrize("pp", [2, 4])
def test_each_step_is_the_composers(
    rig: Any,
    simulated: Clock,
    config: Path,
    tiny_table: Any,
    monkeypatch: pytest.MonkeyPatch,
    pp: int,
    by_step: bool,
    threshold: int,
) -> None:
    tiny_table(config.parent / "table.parquet", pp=pp)
    monkeypatch.setattr(
        vllm_features, "features", lambda *_: vllm_features.Features(by_step, pollable=True)
    )
    witness = Witness(monkeypatch)
    for seed in range(10):
        engine = rig(
            make=make_scheduler, pp=pp, max_num_seqs=12, long_prefill_token_threshold=threshold
        )
        director = Together(lambda chunk=(64, 100, 128)[seed % 3]: Knobs(1200, chunk))
        _, wanted = drive(engine, simulated, director, seed, pp)
        assert engine.scheduler.beam.failure == ""
        assert {name: engine.given[name] for name in wanted} == wanted
        assert engine.scheduler.scheduler_config.long_prefill_token_threshold == threshold
    assert min(witness.seen.values()) > 20, witness.seen
