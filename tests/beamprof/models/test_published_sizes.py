"""Configs as people download them: as many weights as are published, or refused by name."""

from typing import Any

import pytest

from beamprof.errors import ModelShapeError
from beamprof.models.config import shape_of
from beamprof.models.shape import ModelShape

COMMON = {"max_position_embeddings": 131072, "tie_word_embeddings": False, "head_dim": 128}
QWEN3_30B = COMMON | {
    "model_type": "qwen3_omni_moe_text", "hidden_size": 2048, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 768,
    "vocab_size": 152064, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}  # fmt: skip
KIMI_K2 = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "num_hidden_layers": 61,
    "num_attention_heads": 64, "num_key_value_heads": 64, "intermediate_size": 18432,
    "vocab_size": 163840, "n_routed_experts": 384, "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}  # fmt: skip
MIXTRAL = COMMON | {
    "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
LING_FLASH = COMMON | {
    "architectures": ["BailingMoeV2ForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 9216,
    "vocab_size": 157184, "num_experts": 256, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1024, "num_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
MIMO_7B = COMMON | {
    "architectures": ["MiMoForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 11008,
    "vocab_size": 151680,
}  # fmt: skip
# Billions: of all weights, of those that a token uses.
PUBLISHED = [
    pytest.param(KIMI_K2, 1026, 32.0, id="Kimi-K2"),
    pytest.param(MIXTRAL, 46.7, 12.9, id="Mixtral-8x7B"),
    pytest.param(LING_FLASH, 103, 6.1, id="Ling-flash-2.0"),
    pytest.param(MIMO_7B, 7.6, 7.6, id="MiMo-7B"),
    pytest.param({"architectures": ["Qwen3OmniMoeForConditionalGeneration"], "thinker_config":
                  {"model_type": "qwen3_omni_moe_thinker", "text_config": QWEN3_30B},
                  "talker_config": {"hidden_size": 1024}}, 30.5, 3.3, id="Qwen3-Omni-30B"),
]  # fmt: skip


def read(config: dict[str, Any]) -> ModelShape:
    return shape_of(config, "model", "config.json")


@pytest.mark.parametrize(("config", "all_b", "active_b"), PUBLISHED)
def test_weights_are_those_published(config: dict[str, Any], all_b: float, active_b: float) -> None:
    shape = read(config)
    stage, embedding = shape.shard(1, 1), shape.vocab_size * shape.hidden_size
    assert (stage.weights + 2 * embedding) / 1e9 == pytest.approx(all_b, rel=0.01)
    # Some count embeddings as used, some do not.
    used = stage.linear_flops_per_token / 2 + 2 * embedding
    assert used / 1e9 == pytest.approx(active_b, rel=0.05)


def test_what_stands_around_a_thinker_is_said_to_be_left_out() -> None:
    (note,) = read(PUBLISHED[-1].values[0]).notes  # type: ignore[arg-type]
    assert note.startswith("only the text decoder is counted")


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


def test_a_model_with_experts_that_does_not_say_how_many_is_no_dense_one() -> None:
    """Read as dense it would have a thirtieth of its weights."""
    for config, name in ((KIMI_K2, "n_routed_experts"), (MIXTRAL, "num_local_experts")):
        with pytest.raises(ModelShapeError, match="does not say how many experts") as caught:
            read(without(config, name))
        assert "null" in str(caught.value.hint)


def test_experts_are_not_taken_as_wide_as_dense_layers() -> None:
    """Their width left out made Kimi-K2 nine times as large."""
    with pytest.raises(ModelShapeError, match="lacks the field 'moe_intermediate_size'"):
        read(without(KIMI_K2, "moe_intermediate_size"))


def test_latent_attention_without_its_rank_is_no_other_attention() -> None:
    """Its KV cache would be fourteen times as large."""
    with pytest.raises(ModelShapeError, match="lacks the field 'kv_lora_rank'"):
        read(without(KIMI_K2, "kv_lora_rank"))


def test_true_is_not_a_number_of_experts() -> None:
    with pytest.raises(ModelShapeError, match="num_local_experts must be an integer"):
        read(MIXTRAL | {"num_local_experts": True})
