"""From cells to requests, and from two layer counts to a stage: arithmetic, without vLLM."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.types import Source, StepShape
from beamprof.backends.base import Measurement
from beamprof.backends.vllm_cells import MOST_STEPS, craft, envelope
from beamprof.backends.vllm_layers import layer_counts, stage_of
from beamprof.backends.vllm_model import hf_config, model_folder
from beamprof.errors import BackendError
from beamprof.models.registry import registry, resolve_model
from beamprof.profiler.grid import GridLimits, grid

decodes = st.integers(1, 64).flatmap(
    lambda b: st.tuples(st.just(b), st.integers(b, b * 4096))
)  # fmt: skip
steps = st.builds(
    lambda chunk, context, batch: StepShape(chunk, context if chunk else 0, *batch),
    st.integers(0, 512), st.integers(0, 4096), decodes,
)  # fmt: skip


@given(steps)
def test_timed_steps_have_the_cell_s_contexts_on_average(step: StepShape) -> None:
    crafted = craft(step)
    # Contexts grow by one a step, the admitting one included.
    totals = [
        sum(context + since for context in crafted.contexts)
        for since in range(1, crafted.steps + 1)
    ]
    assert sum(totals) == step.decode_context_tokens * crafted.steps
    assert all(context >= 0 for context in crafted.contexts)
    assert max(crafted.contexts) - min(crafted.contexts) <= 1
    assert 1 <= crafted.steps <= MOST_STEPS
    assert crafted.budget_tokens == step.tokens
    for total in totals:
        found = StepShape(
            step.prefill_tokens, step.prefill_context_tokens, step.decode_requests, total
        )
        assert crafted.fits(found)


@given(steps)
def test_other_steps_are_not_taken_for_the_cell_s(step: StepShape) -> None:
    crafted = craft(step)
    b, total = step.decode_requests, step.decode_context_tokens
    c, k = step.prefill_tokens, step.prefill_context_tokens
    far = b * (MOST_STEPS + 1)
    for found in (
        StepShape(c + 1, k, b, total),
        StepShape(c, k + 1, b, total),
        StepShape(c, k, b + 1, total),
        StepShape(c, k, b, total + far),
        StepShape(c, k, 0, 0),
    ):
        assert not crafted.fits(found)


def test_a_chunk_alone_admits_nobody() -> None:
    crafted = craft(StepShape(64, 256))
    assert crafted.contexts == ()
    assert crafted.budget_tokens == 64
    assert crafted.fits(StepShape(64, 256))


def test_a_decode_needs_context() -> None:
    with pytest.raises(BackendError, match="3 decodes over 2 tokens"):
        craft(StepShape(decode_requests=3, decode_context_tokens=2))


@given(steps, st.sampled_from([16, 128]))
def test_blocks_hold_the_longest_contexts(step: StepShape, block_size: int) -> None:
    crafted = craft(step)
    tokens = [context + 1 + crafted.steps for context in crafted.contexts]
    if step.prefill_tokens:
        tokens.append(step.prefill_context_tokens + step.prefill_tokens)
    assert crafted.blocks(block_size) >= sum(math.ceil(one / block_size) for one in tokens)


def test_an_envelope_takes_every_cell_of_a_sweep() -> None:
    limits = GridLimits(512, 64, 2048, 100_000, 64, 60)
    cells = grid(limits)
    needs = envelope(cells)
    for cell in cells:
        crafted = craft(cell)
        assert crafted.budget_tokens <= needs.max_batched_tokens
        assert len(crafted.contexts) + 2 <= needs.max_seqs
        assert max(crafted.contexts, default=0) + crafted.steps < needs.max_model_len
        assert cell.prefill_context_tokens + cell.prefill_tokens < needs.max_model_len
        assert crafted.blocks(128) * 128 <= needs.kv_tokens
    assert needs.max_model_len < 2048 + 128, "no longer than the sweep needs"


def row(latency_ms: float, energy_j: float, ci: float = 0.0) -> Measurement:
    return Measurement(
        latency_ms, energy_j, Source.MEASURED, latency_ci_ms=ci, energy_ci_j=ci, passes=5
    )


positive = st.floats(0.01, 100.0)


@given(st.integers(1, 40), st.integers(2, 8), positive, positive)
def test_a_stage_keeps_its_layers_and_its_share_of_the_ends(
    layers: int, pp: int, layer_j: float, ends_j: float
) -> None:
    counts = layer_counts(layers, pp)
    assert counts[0] == layers
    assert counts[1] not in (0, layers)
    rows = [row(n * 1.5 + 2.0, n * layer_j + ends_j) for n in counts]
    stage = stage_of(rows, counts, pp)
    assert stage.energy_j * pp == pytest.approx(layers * pp * layer_j + ends_j, rel=1e-6)
    assert stage.latency_ms == layers * 1.5 + 2.0  # the stage that has the ends sets the beat


def test_without_a_pipeline_one_engine_says_it_all() -> None:
    assert layer_counts(32, 1) == (32,)
    whole = row(10.0, 5.0, 0.1)
    assert stage_of([whole], (32,), 1) is whole


def test_noise_makes_no_end_cost_less_than_nothing() -> None:
    assert stage_of([row(10.0, 5.0), row(5.0, 2.0)], (4, 2), 2).energy_j == 5.0


def test_half_widths_grow_by_what_is_subtracted() -> None:
    stage = stage_of([row(10.0, 5.0, 0.1), row(6.0, 3.0, 0.1)], (4, 2), 2)
    # energy = 1.5 whole - 1 other
    assert stage.energy_j == pytest.approx(4.5)
    assert stage.energy_ci_j == pytest.approx(0.1 * math.hypot(1.5, 1.0))


@pytest.mark.parametrize("name", sorted(registry()))
def test_a_registry_name_becomes_a_folder_that_reads_back_the_same(
    name: str, tmp_path: Path
) -> None:
    model = registry()[name]
    folder = model_folder(name, model, tmp_path)
    again = resolve_model(str(folder)).to_json()
    assert {**json.loads(again), "name": name} == json.loads(model.to_json())
    assert hf_config(model)["architectures"] != []


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(registry()["llama3-8b"])))
    model = resolve_model(str(folder))
    assert model_folder(str(folder), model, scratch) == folder
    assert model_folder(str(folder / "config.json"), model, scratch) == folder
    assert not scratch.exists()
