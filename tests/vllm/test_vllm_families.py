"""Mixtures of experts and latent attention, live: BEAM changes when they compute, never what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from test_vllm_live import run_script  # noqa: E402

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 32,
    "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip
# vLLM's CPU kernels have latent attention for DeepSeek's own head, 512 + 64, and no other.
MLA = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "moe_intermediate_size": 128, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "norm_topk_prob": True, "num_key_value_heads": 8,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, tiny_llama: Path, tiny_table: Any) -> Callable[..., dict[str, Any]]:
    """Serves a tiny model of a family."""

    def serve(family: dict[str, Any]) -> dict[str, Any]:
        plain = json.loads((tiny_llama / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(plain | family))
        tiny_table(tmp_path / "table.parquet", pp=1)
        beam = tmp_path / "beam.toml"
        beam.write_text('table = "table.parquet"\npolicy = "steer"\n')
        return run_script("families.py", tmp_path, BEAM_CONFIG=str(beam))

    return serve


def test_experts_give_the_same_tokens_under_any_orders(
    served: Callable[..., dict[str, Any]],
) -> None:
    report = served(MOE)
    assert report["failure"] == ""
    own = report["own"]
    assert max(own["steps"]) > 128
    assert max(report["chunks"]["steps"]) <= 64
    for orders in ("chunks", "paced", "decided"):
        assert report[orders]["tokens"] == own["tokens"], orders


def test_where_latent_attention_takes_prompts_whole_beam_stays_out_and_says_so(
    served: Callable[..., dict[str, Any]],
) -> None:
    """vLLM's CPU engine turns chunked prefill off for it; engines on GPUs do not."""
    report = served(MLA)
    assert [len(tokens) for tokens in report["own"]["tokens"]] == [24] * 8
    if "chunks" in report:  # a vLLM whose CPU engine cuts its prompts
        assert report["chunks"]["tokens"] == report["own"]["tokens"]
    else:
        assert any("chunked prefill is off" in line for line in report["said"])
