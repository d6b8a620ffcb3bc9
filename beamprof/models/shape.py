"""A model's shape: what decides the cost of a forward pass, and nothing else.

Comes from the registry (registry.toml) or from any directory with a Hugging Face
config.json of a dense Llama, Mistral, Qwen2 or Qwen3. Sharding by tensor and
pipeline parallelism yields a StageShape, what one GPU of one stage computes.
"""

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from beamprof.errors import ModelShapeError

ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DTYPE_BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class StageShape:
    """What one GPU of one pipeline stage computes: heads and widths are already divided by tp.

    ``kv_heads`` is at least 1: with more tensor-parallel ranks than KV heads each rank keeps
    a whole copy of one head, as vLLM does.
    """

    tp: int
    pp: int
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int

    @property
    def qkv_size(self) -> int:
        """Rows of the fused QKV projection on this GPU."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def weights_per_layer(self) -> int:
        """GEMM weights of one layer on this GPU (elements)."""
        attention = self.hidden_size * (self.qkv_size + self.heads * self.head_dim)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def kv_bytes_per_token(self) -> int:
        """KV-cache bytes of one token over the stage's layers on this GPU."""
        return 2 * self.kv_heads * self.head_dim * self.dtype_bytes * self.layers

    @property
    def linear_flops_per_token(self) -> float:
        """FLOPs of the stage's GEMMs for one token on this GPU."""
        return 2.0 * self.weights_per_layer * self.layers

    @property
    def attention_flops_per_pair(self) -> float:
        """FLOPs of one (query, key) pair over all heads and layers on this GPU (QK and PV)."""
        return 4.0 * self.heads * self.head_dim * self.layers


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The whole model. Sizes are counts of elements; ``dtype`` names weights and activations."""

    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    dtype: str = "bfloat16"
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False

    def to_json(self) -> str:
        """The shape as it stands in a table's metadata."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def shard(self, tp: int, pp: int) -> StageShape:
        """One stage's shape on one GPU.

        Raises:
            ModelShapeError: tp or pp does not divide the model; the hint lists what does.
        """
        for flag, parts in (("--tp", tp), ("--pp", pp)):
            if parts < 1:
                raise ModelShapeError(
                    f"{flag} must be 1 or more, found {parts}", hint=f"try {flag} 1"
                )
        if self.heads % tp or self.intermediate_size % tp or not _kv_heads_split(self, tp):
            fits = [
                d
                for d in _divisors(self.heads)
                if self.intermediate_size % d == 0 and _kv_heads_split(self, d)
            ]
            raise ModelShapeError(
                f"--tp {tp} does not divide {self.name}: {self.heads} heads, "
                f"{self.kv_heads} KV heads, intermediate size {self.intermediate_size}",
                cause="every GPU of a stage takes an equal share of heads and MLP columns",
                hint=f"--tp can be {_listed(fits)}",
            )
        if self.layers % pp:
            raise ModelShapeError(
                f"--pp {pp} does not divide {self.name}'s {self.layers} layers",
                cause="BEAM profiles one stage for all, so every stage holds as many layers",
                hint=f"--pp can be {_listed(_divisors(self.layers))}",
            )
        return StageShape(
            tp=tp,
            pp=pp,
            layers=self.layers // pp,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size // tp,
            heads=self.heads // tp,
            kv_heads=max(1, self.kv_heads // tp),
            head_dim=self.head_dim,
            dtype_bytes=DTYPE_BYTES[self.dtype],
        )


def resolve_model(model: str) -> ModelShape:
    """A registry name, or a directory (or its config.json) in Hugging Face's form.

    Raises:
        ModelShapeError: neither is found, or the config cannot be understood.
    """
    path = Path(model).expanduser()
    if path.is_dir() or path.suffix == ".json":
        return read_config(path / "config.json" if path.is_dir() else path)
    known = registry()
    if model.lower() in known:
        return known[model.lower()]
    raise ModelShapeError(
        f"unknown model {model!r}",
        cause="it is neither in BEAM's registry nor a directory with a config.json",
        hint=f"known models: {', '.join(sorted(known))}; or give a directory that holds the "
        "model's config.json",
    )


@cache
def registry() -> dict[str, ModelShape]:
    """The models BEAM knows by name (registry.toml, each with its source)."""
    text = resources.files("beamprof.models").joinpath("registry.toml").read_text("utf-8")
    shapes = {}
    for name, fields in tomllib.loads(text).items():
        fields.pop("source")
        shapes[name] = ModelShape(name=name, **fields)
    return shapes


def read_config(path: Path) -> ModelShape:
    """Read a Hugging Face config.json.

    Raises:
        ModelShapeError: unreadable, not JSON, a missing or senseless field, another architecture.
    """
    where = str(path)
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelShapeError(
            f"no config.json in {path.parent}", hint="download the model's config.json there"
        ) from None
    except OSError as error:
        raise ModelShapeError(f"cannot read {where}", cause=error.strerror) from None
    except ValueError as error:
        raise ModelShapeError(
            f"{where} is not JSON", cause=str(error), hint="download the file again"
        ) from None
    if not isinstance(config, dict):
        raise ModelShapeError(
            f"{where} is not a JSON object", cause=f"it holds a {type(config).__name__}"
        )
    architecture = _architecture(config, where)
    heads = _positive(config, "num_attention_heads", where)
    kv_heads = _positive(config, "num_key_value_heads", where, default=heads)
    hidden = _positive(config, "hidden_size", where)
    if heads % kv_heads:
        raise ModelShapeError(f"{where}: {kv_heads} KV heads do not divide {heads} heads")
    if not config.get("head_dim") and hidden % heads:
        raise ModelShapeError(f"{where}: {heads} heads do not divide the hidden size {hidden}")
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if dtype not in DTYPE_BYTES:
        raise ModelShapeError(
            f"{where}: dtype {dtype!r} is not supported",
            hint=f"expected one of {', '.join(DTYPE_BYTES)}",
        )
    # transformers 5 writes rope_theta inside rope_parameters.
    rope = {**(config.get("rope_parameters") or {}), **config}
    return ModelShape(
        name=path.parent.resolve().name,
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=_positive(config, "intermediate_size", where),
        layers=_positive(config, "num_hidden_layers", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_positive(config, "head_dim", where, default=hidden // heads),
        vocab_size=_positive(config, "vocab_size", where),
        max_model_len=_positive(config, "max_position_embeddings", where),
        dtype=dtype,
        rope_theta=_number(rope, "rope_theta", where, default=10000.0),
        rms_norm_eps=_number(config, "rms_norm_eps", where, default=1e-6),
        qkv_bias=architecture == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=architecture == "qwen3",
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _architecture(config: dict[str, Any], where: str) -> str:
    listed = config.get("architectures") or []
    if not isinstance(listed, list):
        raise ModelShapeError(f"{where}: architectures must be a list, found {listed!r}")
    named = listed[0] if listed else None
    if named in ARCHITECTURES:
        return ARCHITECTURES[named]
    if named is None and config.get("model_type") in ARCHITECTURES.values():
        return str(config["model_type"])
    raise ModelShapeError(
        f"{where}: architecture {named or config.get('model_type')!r} is not supported",
        cause="BEAM profiles dense decoder-only models",
        hint=f"known architectures: {', '.join(ARCHITECTURES)}",
    )


def _positive(config: dict[str, Any], field: str, where: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default
    if value is None:
        raise ModelShapeError(
            f"{where} lacks the field {field!r}", hint="download the model's config.json again"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelShapeError(f"{where}: {field} must be a positive integer, found {value!r}")
    return value


def _number(config: dict[str, Any], field: str, where: str, default: float) -> float:
    value = config.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelShapeError(f"{where}: {field} must be a positive number, found {value!r}")
    return float(value)


def _kv_heads_split(shape: ModelShape, tp: int) -> bool:
    return shape.kv_heads % tp == 0 or tp % shape.kv_heads == 0


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
