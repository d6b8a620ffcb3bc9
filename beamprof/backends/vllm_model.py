"""A folder that vLLM can load a model's shape from: the user's own, or one made for a name."""

import json
from pathlib import Path

from beamprof.errors import BackendError
from beamprof.files import there_is, user_path
from beamprof.models.registry import cached_config, registered_config, registry_name
from beamprof.models.shape import ModelShape


def model_folder(named: str, model: ModelShape, scratch: Path) -> Path:
    """Where the model's config.json is.

    Args:
        named: what the user called the model: a folder, its config.json, a Hugging Face id of the
            local cache, or a registry name.
        model: its shape.
        scratch: an empty folder; a registry name's config.json is written there.

    Raises:
        BackendError: none of these.
    """
    path = user_path(named)
    if there_is(path) and path.is_dir():
        return path.resolve()
    if path.name == "config.json" and there_is(path):
        return path.parent.resolve()
    cached = cached_config(named)
    if cached is not None:
        return cached.parent
    if registry_name(model.name) is None:
        raise BackendError(
            f"vLLM needs the config.json of {model.name}", hint="--model DIR that holds it"
        )
    (scratch / "config.json").write_text(json.dumps(hf_config(model)), encoding="utf-8")
    return scratch


def hf_config(model: ModelShape) -> dict[str, object]:
    """A registry entry in Hugging Face's form: models.config reads the same shape back."""
    config = registered_config(registry_name(model.name) or model.name)
    types = {name: f"{name}_text" for name in ("llama4", "qwen3_5", "gemma3", "gemma4")}
    # The registry has no null: queries that are projected in one step would get their class's rank.
    one_step = "kv_lora_rank" in config and "q_lora_rank" not in config
    return {
        "model_type": types.get(model.architecture, model.architecture),
        "hidden_act": "silu",
        **config,
        "head_dim": model.head_dim,
        "torch_dtype": model.dtype,
        **({"q_lora_rank": None} if one_step else {}),
    }
