"""A folder that vLLM can load a model's shape from: the user's own, or one made for a name."""

import json
from pathlib import Path

from beamprof.models.shape import ARCHITECTURES, ModelShape


def model_folder(named: str, model: ModelShape, scratch: Path) -> Path:
    """Where the model's config.json is.

    Args:
        named: what the user called the model: a folder, its config.json, or a registry name.
        model: its shape.
        scratch: an empty folder; a registry name's config.json is written there.
    """
    path = Path(named).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.name == "config.json" and path.is_file():
        return path.parent.resolve()
    (scratch / "config.json").write_text(json.dumps(hf_config(model)), encoding="utf-8")
    return scratch


def hf_config(model: ModelShape) -> dict[str, object]:
    """The shape in Hugging Face's form; model_shape.read_config reads the same shape back."""
    classes = {ours: theirs for theirs, ours in ARCHITECTURES.items()}
    return {
        "architectures": [classes[model.architecture]],
        "model_type": model.architecture,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_model_len,
        "torch_dtype": model.dtype,
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.rms_norm_eps,
        "attention_bias": model.qkv_bias,
        "tie_word_embeddings": model.tie_embeddings,
    }
