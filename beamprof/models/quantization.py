"""Precision from a config's quantization_config: priced by class of tensor, or refused by name.

The methods that engines serve most are read: fp8 (per tensor, channel or block), AWQ, GPTQ,
compressed-tensors, ModelOpt, MXFP4. Lists of modules that stay in 16 bit decide by class of
tensor; where they name some layers only, the class is priced as most of its layers are.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Sequence

from beamprof.errors import ModelShapeError
from beamprof.models.fields import Fields
from beamprof.models.layers import Layer, MoeMlp
from beamprof.models.precision import Precision

# Names under which checkpoints and engines know the tensors of a class, in layer L.
MODULES: dict[str, tuple[str, ...]] = {
    "attention": (
        "model.layers.L.self_attn.q_proj",
        "model.layers.L.self_attn.qkv_proj",
        "model.layers.L.self_attn.o_proj",
        "model.layers.L.self_attn.q_b_proj",
        "model.layers.L.self_attn.kv_b_proj",
        "model.layers.L.linear_attn.in_proj_qkvz",
        "model.layers.L.mixer.in_proj",
        "model.layers.L.mixer.q_proj",
        "model.layers.L.mamba.in_proj",
    ),
    "mlp": (
        "model.layers.L.mlp.gate_proj",
        "model.layers.L.mlp.gate_up_proj",
        "model.layers.L.mlp.down_proj",
        "model.layers.L.mlp.shared_expert.down_proj",
        "model.layers.L.mlp.shared_experts.down_proj",
        "model.layers.L.feed_forward.down_proj",
        "model.layers.L.mixer.down_proj",
        "model.layers.L.mixer.shared_experts.down_proj",
        "model.layers.L.shared_mlp.output_linear",
    ),
    "experts": (
        "model.layers.L.mlp.experts",
        "model.layers.L.mlp.experts.0.down_proj",
        "model.layers.L.mlp.experts.0.gate_proj",
        "model.layers.L.block_sparse_moe.experts.0.w1",
        "model.layers.L.feed_forward.experts",
        "model.layers.L.feed_forward.experts.down_proj",
        "model.layers.L.block_sparse_moe.input_linear",
        "model.layers.L.mixer.experts",
        "model.layers.L.mixer.experts.0.down_proj",
    ),
}
IGNORED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")


def read_precision(config: Fields, dtype: str, layers: Sequence[Layer]) -> Precision:
    """The formats of a model of these layers; ``dtype`` is its 16-bit format.

    Raises:
        ModelShapeError: a method that is not priced, or a field that makes no sense.
    """
    quantization = config.inner("quantization_config") or config.inner("compression_config")
    if quantization is None:
        return Precision.of(dtype)
    method = quantization.text("quant_method").lower().replace("_", "-")
    if method not in METHODS:
        raise _refused(quantization, f"quant_method {method!r}")
    quantised = dataclasses.replace(METHODS[method](quantization, dtype), method=method)
    ignored = [pattern for name in IGNORED for pattern in quantization.texts(name)]
    kept = {
        tensor: dtype
        for tensor, modules in MODULES.items()
        if _mostly_ignored(ignored, modules, _holders(layers, tensor))
    }
    return dataclasses.replace(quantised, **kept)


def _holders(layers: Sequence[Layer], tensor: str) -> Sequence[int]:
    """Which layers hold tensors of a class: not all do in a hybrid."""
    if tensor == "attention":
        return [i for i, layer in enumerate(layers) if layer.mixers]
    if tensor == "experts":
        return [i for i, layer in enumerate(layers) if isinstance(layer.mlp, MoeMlp)]
    return [i for i, layer in enumerate(layers) if layer.mlp.projections(1)]


def _mostly_ignored(ignored: Sequence[str], modules: Sequence[str], layers: Sequence[int]) -> bool:
    """Whether the patterns take out a class in more than half of the layers that hold it."""
    if not ignored or not layers:
        return False
    sampled = sorted({layers[round(i * (len(layers) - 1) / 8)] for i in range(9)})
    hits = [
        any(_matches(pattern, name.replace(".L.", f".{layer}.")) for pattern in ignored
            for name in modules)
        for layer in sampled
    ]  # fmt: skip
    return sum(hits) > len(hits) / 2


def _matches(pattern: str, name: str) -> bool:
    """Engines take patterns as regular expressions (re:), globs, full names, or parts of names."""
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], name) is not None
        except re.error:
            raise ModelShapeError(
                f"quantization_config: {pattern!r} is no regular expression"
            ) from None
    bare = pattern.removeprefix("language_model.").replace("model.language_model.", "model.")
    bare = re.sub(r"^backbone\.", "model.", bare)  # Nemotron-H's checkpoints
    if "*" in bare:
        return fnmatch.fnmatch(name, bare) or fnmatch.fnmatch(name, f"model.{bare}")
    parts, wanted = name.split("."), bare.split(".")
    return any(parts[i : i + len(wanted)] == wanted for i in range(len(parts)))


def _everywhere(form: str, kv: str) -> Precision:
    return Precision(form, form, form, kv)


def _fp8(config: Fields, dtype: str) -> Precision:
    block = config.sizes("weight_block_size")
    if block and block != (128, 128):
        raise _refused(config, f"weight_block_size {list(block)}")
    return _everywhere("fp8_block" if block else "fp8", dtype)


def _integers(config: Fields, dtype: str) -> Precision:
    """AWQ and GPTQ: integers of 4 or 8 bits, unpacked to 16 bit before they are multiplied."""
    bits = config.size("bits", "w_bit", "wbits", default=4)
    if bits not in (4, 8):
        raise _refused(config, f"{bits} bits")
    return _everywhere("int4" if bits == 4 else "int8_wo", dtype)


def _mxfp4(config: Fields, dtype: str) -> Precision:
    """gpt-oss: only the experts are quantised."""
    del config
    return Precision(dtype, dtype, "mxfp4", dtype)


def _compressed_tensors(config: Fields, dtype: str) -> Precision:
    groups = config.inner("config_groups")
    if groups is None or not groups.values:
        raise ModelShapeError(f"{config.where} lacks the field 'config_groups'")
    if config.has("sparsity_config") and _is_sparse(config):
        raise _refused(config, "sparsity_config: sparse weights")
    formats = {}
    for name in groups.values:
        group = groups.inner(name)
        if group is None:
            raise groups.wrong(name, "an object")
        targets = group.texts("targets") or ("Linear",)
        formats[targets] = _group_format(group)
    by_class = {}
    for tensor, modules in MODULES.items():
        found = [form for targets, form in formats.items() if _targeted(targets, modules)]
        by_class[tensor] = found[0] if found else dtype
    return Precision(**by_class, kv=_kv(config, dtype))


def _kv(config: Fields, dtype: str) -> str:
    scheme = config.inner("kv_cache_scheme")
    return "fp8" if scheme and scheme.size("num_bits", default=8) == 8 else dtype


def _is_sparse(config: Fields) -> bool:
    sparsity = config.inner("sparsity_config")
    return sparsity is not None and sparsity.text("format", "dense") != "dense"


def _targeted(targets: Sequence[str], modules: Sequence[str]) -> bool:
    kinds = ("Linear", "FusedMoE", "RoutedExperts")
    names = [name.replace(".L.", ".1.") for name in modules]
    return any(t in kinds or _matches(t, name) for t in targets for name in names)


def _group_format(group: Fields) -> str:
    weights, activations = group.inner("weights"), group.inner("input_activations")
    if weights is None:
        raise ModelShapeError(f"{group.where} lacks the field 'weights'")
    bits, kind = weights.size("num_bits"), weights.text("type", "int")
    strategy, size = weights.text("strategy"), weights.count("group_size")
    known = {
        ("float", 8, True): "fp8_block" if strategy == "block" else "fp8",
        ("float", 8, False): "int8_wo",  # bytes and arithmetic of any 8-bit weight-only format
        ("int", 8, True): "int8",
        ("int", 8, False): "int8_wo",
        ("int", 4, False): "int4",
        ("float", 4, True): "nvfp4" if size in (0, 16) else "",
        ("float", 4, False): "mxfp4" if size in (0, 32) else "",
    }
    form = known.get((kind, bits, activations is not None), "")
    if not form:
        raise _refused(weights, f"{kind} weights of {bits} bits, group_size {size}")
    return form


def _modelopt(config: Fields, dtype: str) -> Precision:
    inner = config.inner("quantization") or config
    algorithm = inner.text("quant_algo").upper()
    known = {"FP8": "fp8", "FP8_PB_WO": "fp8_block", "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
             "NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4", "W4A16_AWQ": "int4"}  # fmt: skip
    if algorithm not in known:
        raise _refused(config, f"quant_algo {algorithm!r}")
    kv = "fp8" if inner.text("kv_cache_quant_algo").upper() == "FP8" else _kv(config, dtype)
    return _everywhere(known[algorithm], kv)


METHODS: dict[str, Callable[[Fields, str], Precision]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _fp8,
    "awq": _integers,
    "awq-marlin": _integers,
    "gptq": _integers,
    "gptq-marlin": _integers,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
}


def _refused(config: Fields, what: str) -> ModelShapeError:
    return ModelShapeError(
        f"{config.where}: {what} is not priced",
        cause="a table of 16-bit weights would not be this model's",
        hint=f"priced are {', '.join(METHODS)}",
    )
