"""The stage equals a Hugging Face layer stack with the same weights, whatever the pass."""

from inspect import signature
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from beam_runtime.types import StepShape  # noqa: E402
from beamprof.backends.torch_experts import DenseWeights, ExpertWeights  # noqa: E402
from beamprof.backends.torch_layer import LayerWeights  # noqa: E402
from beamprof.backends.torch_pass import Stage, StagePass  # noqa: E402
from beamprof.models.layers import Attention, DenseMlp, Layer, MoeMlp  # noqa: E402
from beamprof.models.shape import ModelShape  # noqa: E402

LAYERS = 3


NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
         "mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe"}  # fmt: skip
EXPERTS = {"mixtral": MoeMlp(5, 2, 80), "qwen3_moe": MoeMlp(5, 2, 24)}


def window_of(shape: ModelShape) -> int:
    mixer = shape.decoder[0].mixer
    assert isinstance(mixer, Attention)
    return mixer.window_tokens


def tiny(architecture: str, kv_heads: int = 2, window: int = 0) -> ModelShape:
    layers = ()
    if window or architecture in EXPERTS:
        mlp = EXPERTS.get(architecture, DenseMlp(80))
        layers = (Layer(Attention(6, kv_heads, 16, window), mlp),) * LAYERS
    return ModelShape(
        name=f"tiny-{architecture}",
        architecture=architecture,
        hidden_size=48,
        intermediate_size=80,
        layers=LAYERS,
        heads=6,  # groups of 3 over 2 KV heads: neither number can stand for the other
        kv_heads=kv_heads,
        head_dim=16,
        vocab_size=32,
        max_model_len=256,
        dtype="float32",
        rope_theta=5000.0,
        rms_norm_eps=1e-6,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture.startswith("qwen3"),
        special_layers=layers,
    )


def huggingface(shape: ModelShape) -> Any:
    """A randomly initialised transformers model of the shape, its final norm taken off."""
    name = NAMES[shape.architecture]
    more: dict[str, Any] = {}
    if shape.architecture == "mixtral":
        more = {"num_local_experts": 5, "num_experts_per_tok": 2}
    if shape.architecture == "qwen3_moe":
        more = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                "norm_topk_prob": True}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_model_len,
        rms_norm_eps=shape.rms_norm_eps,
        rope_theta=shape.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        sliding_window=window_of(shape) or None,
        attn_implementation="eager",
        **more,
    )
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:  # at their initial ones and zeros they hide mistakes
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    model.norm = torch.nn.Identity()
    return model


def with_weights_of(model: Any, shape: ModelShape) -> Stage:
    stage = Stage(shape, shape.shard(1, 1), "cpu")
    stage.layers = [taken_from(layer) for layer in model.layers]
    return stage


def taken_from(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [projection.bias for projection in projections]
    return LayerWeights(
        qkv=torch.cat([projection.weight for projection in projections]),
        qkv_bias=None if biases[0] is None else torch.cat(biases),
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        out=attention.o_proj.weight,
        mlp=mlp_from(mlp),
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
    )


def mlp_from(mlp: Any) -> DenseWeights | ExpertWeights:
    if hasattr(mlp, "gate_proj"):
        gate_up = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
        return DenseWeights(gate_up, mlp.down_proj.weight)
    return ExpertWeights(
        router=mlp.gate.weight,
        gate_up=mlp.experts.gate_up_proj,
        down=mlp.experts.down_proj,
        top_k=2,
    )


def cache_name(model: Any) -> str:
    """What this transformers calls it: ``cache`` from 5.24 on."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def their_pass(model: Any, prompt: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """Hidden states (tokens, hidden) and each layer's (tokens, kv_heads, head_dim) cache."""
    cache = transformers.DynamicCache()
    out = model(inputs_embeds=prompt[None], use_cache=True, **{cache_name(model): cache})
    kept = [
        (layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in cache.layers
    ]
    return out.last_hidden_state[0], kept


def remember(ready: StagePass, block: int, request: int, kept: list[tuple[Any, Any]]) -> None:
    """Put a request's true context into a pass's cache."""
    for blocks, (keys, values) in zip(ready.blocks, kept, strict=True):
        context = blocks[block].context_tokens
        blocks[block].keys[request, :context] = keys[:context]
        blocks[block].values[request, :context] = values[:context]


ARCHITECTURES = list(NAMES)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_in_one_pass(architecture: str, kv_heads: int) -> None:
    shape = tiny(architecture, kv_heads)
    model = huggingface(shape)
    stage = with_weights_of(model, shape)
    with torch.inference_mode():
        prompt = stage.random(21, shape.hidden_size)
        theirs, kept = their_pass(model, prompt)
        ready = stage.ready(StepShape(21))
        ready.hidden.copy_(prompt)
        torch.testing.assert_close(ready.run(), theirs, rtol=1e-4, atol=1e-4)
        for blocks, (keys, values) in zip(ready.blocks, kept, strict=True):
            torch.testing.assert_close(blocks[0].keys[0], keys, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(blocks[0].values[0], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("context", [1, 13, 20])
def test_a_chunk_over_its_context(architecture: str, context: int) -> None:
    shape = tiny(architecture)
    model = huggingface(shape)
    stage = with_weights_of(model, shape)
    with torch.inference_mode():
        prompt = stage.random(21, shape.hidden_size)
        theirs, kept = their_pass(model, prompt)
        ready = stage.ready(StepShape(21 - context, context))
        remember(ready, 0, 0, kept)
        ready.hidden.copy_(prompt[context:])
        torch.testing.assert_close(ready.run(), theirs[context:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [0, 3, 13])
@pytest.mark.parametrize("window", [1, 4, 21, 50])
def test_a_sliding_window_over_a_chunk(window: int, context: int) -> None:
    shape = tiny("mistral", window=window)
    model = huggingface(shape)
    stage = with_weights_of(model, shape)
    with torch.inference_mode():
        prompt = stage.random(21, shape.hidden_size)
        theirs, _ = their_pass(model, prompt)
        ready = stage.ready(StepShape(21 - context, context))
        if context:  # their cache forgets what is outside the window: ours is filled by a pass
            before = stage.ready(StepShape(context))
            before.hidden.copy_(prompt[:context])
            before.run()
        ready.hidden.copy_(prompt[context:])
        torch.testing.assert_close(ready.run(), theirs[context:], rtol=1e-4, atol=1e-4)


def test_a_sliding_window_over_decodes() -> None:
    shape = tiny("mistral", window=5)
    model = huggingface(shape)
    stage = with_weights_of(model, shape)
    with torch.inference_mode():
        prompt = stage.random(13, shape.hidden_size)
        theirs, _ = their_pass(model, prompt)
        ready = stage.ready(StepShape(0, 0, 1, 12))
        before = stage.ready(StepShape(12))
        before.hidden.copy_(prompt[:12])
        before.run()
        ready.hidden.copy_(prompt[12:])
        torch.testing.assert_close(ready.run(), theirs[12:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_chunk_and_decodes_of_two_lengths_in_one_pass(architecture: str) -> None:
    shape = tiny(architecture)
    model = huggingface(shape)
    stage = with_weights_of(model, shape)
    # 23 tokens of context for 3 decodes: two have 8, one has 7.
    step = StepShape(6, 5, 3, 23)
    lengths = [11, 9, 9, 8]
    with torch.inference_mode():
        prompts = [stage.random(length, shape.hidden_size) for length in lengths]
        theirs = [their_pass(model, prompt) for prompt in prompts]
        ready = stage.ready(step)
        for (block, request), (_, kept) in zip(
            [(0, 0), (1, 0), (1, 1), (2, 0)], theirs, strict=True
        ):
            remember(ready, block, request, kept)
        ready.hidden.copy_(torch.cat([prompts[0][5:], *(prompt[-1:] for prompt in prompts[1:])]))
        expected = torch.cat([theirs[0][0][5:], *(hidden[-1:] for hidden, _ in theirs[1:])])
        torch.testing.assert_close(ready.run(), expected, rtol=1e-4, atol=1e-4)
        # Again: a repeated pass writes the same keys to the same places.
        torch.testing.assert_close(ready.run(), expected, rtol=1e-4, atol=1e-4)
