import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch")

from beam_runtime.types import StepShape  # noqa: E402
from beamprof.backends import torch_pass  # noqa: E402
from beamprof.backends.torch_check import check_chunks  # noqa: E402
from beamprof.backends.torch_experts import DenseWeights  # noqa: E402
from beamprof.backends.torch_memory import available, check_fits  # noqa: E402
from beamprof.backends.torch_pass import Stage, spans_of  # noqa: E402
from beamprof.backends.torch_runner import CpuRunner  # noqa: E402
from beamprof.errors import BackendError  # noqa: E402
from beamprof.models.registry import registry  # noqa: E402
from beamprof.models.shape import ModelShape  # noqa: E402

TINY = ModelShape(
    name="tiny",
    architecture="llama",
    hidden_size=64,
    intermediate_size=96,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=100,
    max_model_len=4096,
    dtype="float32",
)
VARIANTS = {
    "llama": TINY,
    "qwen2": dataclasses.replace(TINY, qkv_bias=True),
    "qwen3": dataclasses.replace(TINY, qk_norm=True, head_dim=32),
    "every head its own keys": dataclasses.replace(TINY, kv_heads=4),
}


def stage_of(model: ModelShape, tp: int = 1, pp: int = 1) -> Stage:
    return Stage(model, model.shard(tp, pp), "cpu")


@given(
    chunk=st.integers(0, 50),
    context=st.integers(0, 50),
    decodes=st.integers(0, 9),
    decode_context=st.integers(0, 100),
)
def test_spans_hold_the_steps_tokens_and_contexts(
    chunk: int, context: int, decodes: int, decode_context: int
) -> None:
    step = StepShape(chunk, context if chunk else 0, decodes, decode_context if decodes else 0)
    spans = spans_of(step)
    assert sum(span.requests * span.new_tokens for span in spans) == step.tokens
    contexts = sum(span.requests * span.context_tokens for span in spans)
    assert contexts == step.prefill_context_tokens + step.decode_context_tokens
    shares = [span.context_tokens for span in spans[1 if chunk else 0 :]]
    assert not shares or max(shares) - min(shares) <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS)
def test_the_stage_passes_its_own_check(model: ModelShape, dtype: str) -> None:
    check_chunks(stage_of(dataclasses.replace(model, dtype=dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", ["mask", "position", "cache"])
def test_the_check_finds_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, fault: str, dtype: str
) -> None:
    if fault == "mask":  # a chunk that sees its whole self, not its past alone
        monkeypatch.setattr(
            Stage,
            "_mask",
            lambda self, span, window: (
                None
                if span.context_tokens == 0
                else torch.ones(
                    span.new_tokens, span.context_tokens + span.new_tokens, dtype=torch.bool
                )
            ),
        )
    if fault == "position":  # every chunk starts at position 0 again
        true = torch_pass.rotation
        monkeypatch.setattr(
            torch_pass,
            "rotation",
            lambda positions, *rest: true(positions - positions.min(), *rest),
        )
    if fault == "cache":  # new keys are not kept for later
        true_layer = torch_pass.decoder_layer

        def forgetful(hidden, weights, blocks, *rest):  # type: ignore[no-untyped-def]
            kept = [dataclasses.replace(block, keys=block.keys.clone()) for block in blocks]
            return true_layer(hidden, weights, tuple(kept), *rest)

        monkeypatch.setattr(torch_pass, "decoder_layer", forgetful)
    with pytest.raises(BackendError, match="fails its own check"):
        check_chunks(stage_of(dataclasses.replace(TINY, dtype=dtype)))


def test_shapes_are_those_of_the_shard() -> None:
    model = registry()["llama3-8b"]
    whole = model.shard(1, 1)
    shard = model.shard(8, 32)
    stage = Stage(model, shard, "cpu")
    (layer,) = stage.layers
    assert layer.qkv.shape == ((4 + 2) * 128, 4096)
    assert layer.out.shape == (4096, 512)
    assert isinstance(layer.mlp, DenseWeights)
    assert layer.mlp.gate_up.shape == (2 * 1792, 4096)
    assert layer.mlp.down.shape == (4096, 1792)
    assert layer.qkv.dtype == torch.bfloat16
    weights = (layer.qkv, layer.out, layer.mlp.gate_up, layer.mlp.down)
    numbers = sum(tensor.numel() for tensor in weights)
    assert numbers == shard.weights
    assert whole.weights == 32 * 8 * numbers


def test_more_ranks_than_kv_heads_keep_one_each() -> None:
    stage = stage_of(dataclasses.replace(TINY, kv_heads=2), tp=4)
    check_chunks(stage)
    assert stage.layers[0].qkv.shape == ((1 + 2) * 16, 64)


def test_earlier_passes_keep_nothing_from_later_ones() -> None:
    stage = stage_of(TINY)
    with torch.inference_mode():
        small = stage.ready(StepShape(4, 4))
        before = small.run().clone()
        stage.ready(StepShape(0, 0, 8, 800)).run()  # the cache grows into other memory
        torch.testing.assert_close(small.run(), before)


def test_context_is_not_zeros() -> None:
    with torch.inference_mode():
        ready = stage_of(TINY).ready(StepShape(0, 0, 4, 64))
    keys = ready.blocks[0][0].keys[:, :16]
    assert 0.8 < float(keys.std()) < 1.2


def test_what_does_not_fit_is_refused_before_it_is_allocated() -> None:
    stage = stage_of(TINY)
    cpu = torch.device("cpu")
    with pytest.raises(BackendError, match=r"need \d{4}\.\d GB") as caught:
        stage.ready(StepShape(0, 0, 1, 5_000_000_000))
    assert "--max-context" in str(caught.value.hint)
    with pytest.raises(BackendError, match="80 layers of llama3-70b"):
        fits = available(cpu)
        check_fits(cpu, fits, "80 layers of llama3-70b")
    check_fits(cpu, 0.5 * available(cpu), "half")


def test_the_runner_counts_passes_and_forgets_the_old_one() -> None:
    runner = CpuRunner(stage_of(TINY))
    with pytest.raises(RuntimeError, match="prepare"):
        runner.enqueue(1)
    runner.prepare(StepShape(8))
    runner.enqueue(3)
    runner.enqueue(2)
    assert len(runner.collect()) == 3
    assert len(runner.collect()) == 2
    assert all(ms > 0 for ms in _times(runner))
    runner.close()
    with pytest.raises(RuntimeError, match="prepare"):
        runner.enqueue(1)


def _times(runner: CpuRunner) -> list[float]:
    runner.enqueue(2)
    return runner.collect()


@pytest.mark.parametrize(
    "step", [StepShape(16), StepShape(32), StepShape(16, 64), StepShape(0, 0, 16, 64)]
)
def test_the_gemms_do_the_work_that_the_shape_says(step: StepShape) -> None:
    """Counted by torch itself."""
    from torch.utils.flop_counter import FlopCounterMode

    stage = stage_of(TINY)
    ready = stage.ready(step)
    with FlopCounterMode(display=False) as counter:
        ready.run()
    counts = counter.get_flop_counts()["Global"]
    gemms = sum(flops for kernel, flops in counts.items() if "attention" not in str(kernel))
    assert gemms == stage.stage.linear_flops_per_token * step.tokens
