"""From a Hugging Face config.json to a ModelShape.

One reader for all architectures: families.py says what each of them reads its mixers and MLPs
from. A multimodal config is read as its text decoder (text_config); the towers are left out, and
a note says so. Whatever would change the cost and is not understood is refused by name.
"""

import json
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from beamprof.errors import ModelShapeError
from beamprof.files import read_text
from beamprof.models.blocks import block_layers
from beamprof.models.families import ARCHITECTURES, FAMILIES, REFUSED, Family
from beamprof.models.fields import Fields
from beamprof.models.layer_kinds import layer_count, layer_kinds
from beamprof.models.layers import Attention, DenseMlp, Layer
from beamprof.models.mixers import mixers
from beamprof.models.mlps import mlps
from beamprof.models.precision import Precision
from beamprof.models.quantization import read_precision
from beamprof.models.shape import ModelShape

DTYPES = ("bfloat16", "float16", "float32")
TEXT = ("text_config", "llm_config", "thinker_config", "language_config")
# What a model's size hangs on, of the fields that a nested config may leave out (defaults.toml).
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim")  # fmt: skip
HEAD_DIM = ("head_dim", "attention_head_dim")
LENGTH = ("max_position_embeddings", "model_max_length", "seq_length")
SHORTEST = 2  # tokens of a request
NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
QKV_BIAS = ("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias")
TOWERS = ("vision_config", "audio_config", "vision_tower_config")


def read_config(path: Path, *, dtype: str | None = None) -> ModelShape:
    """Read a config.json.

    Args:
        path: the file; the model is called after its folder.
        dtype: what is not quantised is served in this; None = as engines choose.

    Raises:
        ModelShapeError: unreadable, not JSON, a missing or senseless field, another architecture.
    """
    where = str(path)
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        raise ModelShapeError(
            f"no config.json in {path.parent}", hint="download the model's config.json there"
        ) from None
    except OSError as error:
        raise ModelShapeError(f"cannot read {where}", cause=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise ModelShapeError(
            f"{where} is not JSON", cause=str(error)[:200], hint="download the file again"
        ) from None
    if not isinstance(config, dict):
        raise ModelShapeError(
            f"{where} is not a JSON object", cause=f"it holds a {type(config).__name__}"
        )
    _with_quantisation_beside(config, path.parent / "hf_quant_config.json")
    return shape_of(config, path.parent.resolve().name, where, dtype=dtype)


def _with_quantisation_beside(config: dict[str, Any], file: Path) -> None:
    """ModelOpt before 0.31 wrote what it quantised into a file of its own, which vLLM reads, too.

    Raises:
        ModelShapeError: there is such a file and it cannot be read.
    """
    if config.get("quantization_config") is not None:
        return
    try:
        beside = json.loads(read_text(file))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise ModelShapeError(
            f"cannot read {file}",
            cause=str(error)[:200],
            hint="it says how the model is quantised: download it again",
        ) from None
    if not isinstance(beside, dict):
        raise ModelShapeError(f"{file} is not a JSON object")
    config["quantization_config"] = {"quant_method": "modelopt", **beside}


def shape_of(
    config: dict[str, Any], name: str, where: str, *, dtype: str | None = None
) -> ModelShape:
    """The shape that a config says; ``where`` names it in errors.

    Raises:
        ModelShapeError: as read_config.
    """
    whole = Fields(config, where)
    text, family_name, notes = _decoder(whole)
    family = FAMILIES[family_name]
    served, dtype_notes = _dtype(whole, text, dtype)
    longest = text.size(*LENGTH)
    if longest < SHORTEST:
        raise text.wrong(next(n for n in LENGTH if text.has(n)), "2 or more (prompt and answer)")
    heads = text.several("num_attention_heads")
    kv_heads = text.several("num_key_value_heads", "multi_query_group_num", default=heads)
    hidden = text.size("hidden_size")
    if heads % kv_heads:
        raise ModelShapeError(f"{text.where}: {kv_heads} KV heads do not divide {heads} heads")
    head_dim = text.size(*HEAD_DIM, default=family.head_dim or max(1, hidden // heads))
    told = family.head_dim or any(text.has(name) for name in (*HEAD_DIM, "kv_lora_rank"))
    if not told and hidden % heads:
        raise ModelShapeError(f"{text.where}: {heads} heads do not divide the hidden size {hidden}")
    layers = layer_count(text)
    attention = Attention(heads, kv_heads, head_dim)
    decoder = _layers(family, text, attention, layers, served)
    plain = Layer(attention, DenseMlp(_dense_width(text, decoder)))
    rope = text.inner("rope_parameters") or text.inner("rope_scaling") or Fields({}, text.where)
    theta = text if text.has("rope_theta") else _full_rope(rope)
    quantised = whole if whole.has("quantization_config") else text
    precision = read_precision(quantised, served, decoder)
    return ModelShape(
        name=name,
        architecture=family_name,
        hidden_size=hidden,
        intermediate_size=_dense_width(text, decoder),
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(decoder, kv_heads),
        head_dim=head_dim,
        vocab_size=text.size("vocab_size"),
        max_model_len=longest,
        dtype=served,
        rope_theta=theta.number("rope_theta", default=10000.0),
        rms_norm_eps=text.number(*NORM_EPS, default=1e-6),
        qkv_bias=family.qkv_bias or any(text.flag(name) for name in QKV_BIAS),
        qk_norm=family.qk_norm,
        tie_embeddings=whole.flag("tie_word_embeddings", default=text.flag("tie_word_embeddings")),
        special_layers=() if set(decoder) == {plain} else decoder,
        quantised=None if precision == Precision.of(served) else precision,
        notes=(*notes, *dtype_notes),
    )


def _layers(
    family: Family, text: Fields, attention: Attention, layers: int, served: str
) -> tuple[Layer, ...]:
    """Every layer of the decoder, in order."""
    if family.blocks:
        return block_layers(text, attention, layers)
    if text.values.get("block_configs"):
        raise ModelShapeError(f"{text.where}: block_configs are not priced for this architecture")
    kinds = layer_kinds(family, text, layers)
    by_layer = mixers(family, text, attention, kinds, served), mlps(family, text, kinds)
    parallel = text.flag("use_parallel_residual", default=family.parallel)
    return tuple(Layer(mixer, mlp, parallel) for mixer, mlp in zip(*by_layer, strict=True))


def _decoder(whole: Fields) -> tuple[Fields, str, tuple[str, ...]]:
    """The part that describes the text decoder, its family, and what was left out."""
    if "architectures" in whole.values and whole.values["architectures"] is not None:
        value = whole.values["architectures"]
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ModelShapeError(
                f"{whole.where}: architectures must be a list of strings, found {value!r:.60}"
            )
    named = (whole.texts("architectures") or (None,))[0]
    inner = _innermost(whole)
    if named in REFUSED:
        raise ModelShapeError(
            f"{whole.where}: architecture {named!r} is not supported",
            cause=f"BEAM does not model its {REFUSED[named]}",
            hint=f"known architectures: {', '.join(ARCHITECTURES)}",
        )
    if named in ARCHITECTURES and inner is None:
        return whole, ARCHITECTURES[named], ()
    text = inner if inner is not None else whole
    model_type = text.text("model_type").removesuffix("_text")
    inner_named = (text.texts("architectures") or (None,))[0]
    family = ARCHITECTURES.get(str(inner_named)) or ARCHITECTURES.get(str(named), model_type)
    family = model_type if model_type in FAMILIES and inner is not None else family
    if (named is not None and inner is None) or family not in FAMILIES:
        raise ModelShapeError(
            f"{whole.where}: architecture {named or model_type!r} is not supported",
            cause="BEAM knows decoders of these kinds: " + ", ".join(sorted(FAMILIES)),
            hint=f"known architectures: {', '.join(ARCHITECTURES)}",
        )
    if inner is None:
        return text, family, ()
    towers = [key.removesuffix("_config") for key in TOWERS if whole.has(key)]
    what = f"its {' and '.join(towers)} part" if towers else "whatever stands around it"
    filled, notes = _filled(text, family)
    return filled, family, (f"only the text decoder is counted, {what} left out", *notes)


def _innermost(whole: Fields) -> Fields | None:
    """The nested config of the text decoder; a thinker's holds one itself (Qwen3-Omni)."""
    found, part = None, _nested(whole)
    while part is not None:
        found, part = part, _nested(part)
    return found


def _nested(outer: Fields) -> Fields | None:
    return next((part for key in TEXT if (part := outer.inner(key)) is not None), None)


def _filled(text: Fields, family: str) -> tuple[Fields, tuple[str, ...]]:
    """A nested config holds only what differs from its class: the rest is as transformers has it.

    A field that is there and null stays null. Experts go by several names, of which a default
    could only guess the right one: it is there only where there is one name (Mistral 4), and of
    others they must be named (mlps.py).
    """
    defaults = _defaults().get(family, {})
    known = {**defaults, **text.values}
    missing = {name: value for name, value in defaults.items() if name not in text.values}
    told = ", ".join(f"{name} {value}" for name, value in missing.items() if name in SIZES)
    notes = (f"{text.where.rpartition(', ')[2]} leaves out, as is {family}'s default: {told}",)
    return Fields(known, text.where), notes if told else ()


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    text = resources.files("beamprof.models").joinpath("defaults.toml").read_text("utf-8")
    return tomllib.loads(text)


def _dtype(whole: Fields, text: Fields, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """What engines serve the unquantised tensors in."""
    stored = "bfloat16"
    for fields in (whole, text):
        for name in ("dtype", "torch_dtype"):
            stored = fields.text(name).removeprefix("torch.") or stored
    if asked is not None and asked not in DTYPES:
        raise ModelShapeError(
            f"dtype {asked!r} is not supported", hint=f"expected one of {', '.join(DTYPES)}"
        )
    if stored not in DTYPES:
        raise ModelShapeError(
            f"{whole.where}: dtype {stored!r} is not supported",
            hint=f"expected one of {', '.join(DTYPES)}",
        )
    if asked is not None:
        return asked, ()
    if stored == "float32":
        return "bfloat16", ("stored in float32, taken as bfloat16, in which engines serve it",)
    return stored, ()


def _full_rope(rope: Fields) -> Fields:
    """rope_parameters may hold one set for each kind of attention (Gemma 3)."""
    return rope.inner("full_attention") or rope


def _kv_heads(decoder: tuple[Layer, ...], told: int) -> int:
    """Of the first attention; layers that are described one by one may not share a number."""
    attention = (m for layer in decoder for m in layer.mixers if isinstance(m, Attention))
    return next((mixer.kv_heads for mixer in attention), told)


def _dense_width(text: Fields, decoder: tuple[Layer, ...]) -> int:
    dense = [layer.mlp for layer in decoder if isinstance(layer.mlp, DenseMlp)]
    if dense:
        return dense[0].intermediate_size
    return text.size("intermediate_size", "moe_intermediate_size")


__all__ = ["ARCHITECTURES", "Family", "read_config", "shape_of"]
