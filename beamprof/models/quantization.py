"""Precision from a config's quantization_config: priced by part of a layer, or refused by name.

The methods that engines serve most are read: fp8 (per tensor, channel or block), AWQ, GPTQ,
compressed-tensors, ModelOpt, MXFP4. A method yields rules, from patterns of module names to a
format; the first that names a tensor decides. Where layers of a kind differ all are priced as most
of them are, and the precision says so.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from beamprof.errors import ModelShapeError
from beamprof.models.fields import Fields
from beamprof.models.layers import Attention, DenseMlp, Layer, MoeMlp, SideBySide
from beamprof.models.modules import modules
from beamprof.models.patterns import EVERYTHING, KINDS, matcher
from beamprof.models.precision import Precision

IGNORED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
FIELDS = {"attention": ("attention", "attention_out"), "mlp": ("mlp", "mlp_down"),
          "experts": ("experts",)}  # fmt: skip
# The format of a class that a model lacks is told all the same: as if it had it.
LACKING = Layer(Attention(1, 1, 1), DenseMlp(1)), Layer(Attention(1, 1, 1), MoeMlp(1, 1, 1))
SEVERAL = "several formats"

Rule = tuple[Sequence[str], str]  # patterns of module names, and the format of what they name


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a config asks for: its rules, the first that fits decides, and the KV cache's format."""

    rules: Sequence[Rule]
    kv: str


def read_precision(config: Fields, dtype: str, layers: Sequence[Layer]) -> Precision:
    """The formats of a model of these layers; ``dtype`` is its 16-bit format.

    Raises:
        ModelShapeError: a method or a mixture of formats that is not priced, a quantisation of
            nothing that the model has, or a field that makes no sense.
    """
    quantization = config.inner("quantization_config") or config.inner("compression_config")
    if quantization is None:
        return Precision.of(dtype)
    method = quantization.text("quant_method").lower().replace("_", "-")
    if method not in METHODS:
        raise _refused(quantization, f"quant_method {method!r}")
    scheme = METHODS[method](quantization, dtype)
    objects = (quantization, quantization.inner("quantization"))
    ignored = [text for one in objects if one for name in IGNORED for text in one.texts(name)]
    rules = [(matcher(names), form) for names, form in ((ignored, dtype), *scheme.rules)]

    def form_of(paths: Sequence[str]) -> str:
        found = (form for matches, form in rules if any(map(matches, paths)))
        return next(found, dtype)

    formats: dict[str, str] = {}
    odd: list[str] = []
    quantised = scheme.kv != dtype
    for tensor, fields in FIELDS.items():
        found = _by_layer(tensor, layers, form_of)
        most, count = (found or _by_layer(tensor, LACKING, form_of)).most_common(1)[0]
        if found:
            _check_priced(quantization, tensor, most, layers)
        told = [dtype if form == SEVERAL else form for form in most]
        formats |= dict(zip(fields, told, strict=True))
        quantised |= any(set(one) != {dtype} for one in found)
        if found and count < found.total():
            odd.append(f"{found.total() - count} of {found.total()} layers' {tensor}")
    if not quantised:
        raise _refused(quantization, f"{method} that quantises nothing of this model")
    return Precision(**formats, kv=scheme.kv, method=method, approximated=tuple(odd))


def _by_layer(
    tensor: str, layers: Sequence[Layer], form_of: Callable[[Sequence[str]], str]
) -> Counter[tuple[str, ...]]:
    """How many layers that hold a class have it in which formats, field by field."""
    found: Counter[tuple[str, ...]] = Counter()
    held = {layer: modules(layer) for layer in set(layers)}
    for i, layer in enumerate(layers):
        formats = []
        for field in FIELDS[tensor]:
            tensors = held[layer].get(field, ())
            names = [[f"model.layers.{i}.{name}" for name in names] for names in tensors]
            forms = {form_of(paths) for paths in names}
            formats += [forms.pop() if len(forms) == 1 else SEVERAL] if forms else []
        if formats:
            found[tuple(formats)] += 1
    return found


def _check_priced(
    config: Fields, tensor: str, formats: Sequence[str], layers: Sequence[Layer]
) -> None:
    """Raises ModelShapeError for a mixture of formats within one class that is not priced."""
    if SEVERAL in formats:
        raise _refused(config, f"projections of one kind ({tensor}) in several formats")
    apart = any(
        isinstance(layer.mixer, SideBySide)
        if tensor == "attention"
        else isinstance(layer.mlp, MoeMlp) and layer.mlp.latent_size
        for layer in layers
    )
    if len(set(formats)) > 1 and apart:
        raise _refused(config, f"{tensor} in {' and '.join(formats)} for such layers")


def _fp8(config: Fields, dtype: str) -> Scheme:
    block = config.sizes("weight_block_size")
    if block and block != (128, 128):
        raise _refused(config, f"weight_block_size {list(block)}")
    return Scheme([([EVERYTHING], "fp8_block" if block else "fp8")], dtype)


def _awq(config: Fields, dtype: str) -> Scheme:
    """Integers of 4 or 8 bits, unpacked to 16 bit before they are multiplied."""
    return Scheme([([EVERYTHING], _integers(config, 4))], dtype)


def _gptq(config: Fields, dtype: str) -> Scheme:
    """As AWQ; GPTQModel's ``dynamic`` leaves modules out (-:) or gives them other bits (+:)."""
    if config.has("modules_in_block_to_quantize"):
        raise _refused(config, "modules_in_block_to_quantize")
    form = _integers(config, 4)
    bits = config.size("bits", "w_bit", "wbits", default=4)
    rules: list[Rule] = []
    dynamic = config.inner("dynamic")
    for pattern in dynamic.values if dynamic else ():
        assert dynamic is not None
        sign, bare = (pattern[:2], pattern[2:]) if pattern[:2] in ("-:", "+:") else ("+:", pattern)
        changed = dynamic.inner(pattern)
        of = dtype if sign == "-:" or changed is None else _integers(changed, bits)
        rules.append(([f"re:{bare}"], of))
    return Scheme([*rules, ([EVERYTHING], form)], dtype)


def _integers(config: Fields, default: int) -> str:
    bits = config.size("bits", "w_bit", "wbits", default=default)
    if bits not in (4, 8):
        raise _refused(config, f"{bits} bits")
    return "int4" if bits == 4 else "int8_wo"


def _mxfp4(config: Fields, dtype: str) -> Scheme:
    """gpt-oss: only the experts are quantised."""
    del config
    return Scheme([([r"re:.*\.experts\b"], "mxfp4")], dtype)


def _compressed_tensors(config: Fields, dtype: str) -> Scheme:
    groups = config.inner("config_groups")
    if groups is None or not groups.values:
        raise ModelShapeError(f"{config.where} lacks the field 'config_groups'")
    if _is_sparse(config):
        raise _refused(config, "a format with sparse weights")
    rules: list[Rule] = []
    for name in groups.values:
        group = groups.inner(name)
        if group is None:
            raise groups.wrong(name, "an object")
        rules.append((group.texts("targets") or ("Linear",), _group_format(group)))
    # A target that names modules goes before one that names their class.
    by_name = [([t for t in targets if t not in KINDS], form) for targets, form in rules]
    by_kind = [([t for t in targets if t in KINDS], form) for targets, form in rules]
    return Scheme([*by_name, *by_kind], _kv(config, dtype))


def _kv(config: Fields, dtype: str) -> str:
    """By compressed-tensors' scheme of the KV cache."""
    scheme = config.inner("kv_cache_scheme")
    if scheme is None:
        return dtype
    bits, kind = scheme.size("num_bits", default=8), scheme.text("type", "float")
    if (bits, kind) != (8, "float"):
        raise _refused(scheme, f"a KV cache of {kind}s of {bits} bits")
    return "fp8"


def _is_sparse(config: Fields) -> bool:
    sparsity = config.inner("sparsity_config") or Fields({}, config.where)
    return sparsity.text("format", "dense") != "dense" or config.text("format") == "marlin-24"


def _group_format(group: Fields) -> str:
    weights, activations = group.inner("weights"), group.inner("input_activations")
    if weights is None:
        raise ModelShapeError(f"{group.where} lacks the field 'weights'")
    bits, kind = weights.size("num_bits"), weights.text("type", "int")
    strategy, size = weights.text("strategy"), weights.count("group_size")
    known = {
        ("float", 8, True): {"block": "fp8_block", "group": ""}.get(strategy, "fp8"),
        ("float", 8, False): "int8_wo",  # bytes and arithmetic of any 8-bit weight-only format
        ("int", 8, True): "int8",
        ("int", 8, False): "int8_wo",
        ("int", 4, False): "int4",
        ("float", 4, True): "nvfp4" if size in (0, 16) else "",
        ("float", 4, False): "mxfp4" if size in (0, 32) else "",
    }
    form = known.get((kind, bits, activations is not None), "")
    alike = activations is None or (
        activations.text("type", kind) == kind
        and activations.size("num_bits", default=bits) == bits
    )
    if not (form and alike):
        inputs = "in 16 bit" if activations is None else _numbers(activations, kind)
        grouped = f" in groups of {size}" if size else ""
        raise _refused(
            group, f"a layer with weights {_numbers(weights)}{grouped} and inputs {inputs}"
        )
    return form


def _numbers(tensor: Fields, kind: str = "int") -> str:
    return f"as {tensor.text('type', kind)}s of {tensor.size('num_bits', default=16)} bits"


def _modelopt(config: Fields, dtype: str) -> Scheme:
    inner = config.inner("quantization") or config
    algorithm = inner.text("quant_algo").upper()
    known = {"FP8": "fp8", "FP8_PB_WO": "fp8_block", "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
             "NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4", "W4A16_AWQ": "int4"}  # fmt: skip
    if algorithm not in known:
        raise _refused(config, f"quant_algo {algorithm!r}")
    cache = inner.text("kv_cache_quant_algo").upper()
    if cache not in ("", "NONE", "FP8"):
        raise _refused(inner, f"kv_cache_quant_algo {cache!r}")
    kv = "fp8" if cache == "FP8" else _kv(inner, _kv(config, dtype))
    return Scheme([([EVERYTHING], known[algorithm])], kv)


METHODS: dict[str, Callable[[Fields, str], Scheme]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _fp8,
    "awq": _awq,
    "awq-marlin": _awq,
    "gptq": _gptq,
    "gptq-marlin": _gptq,
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
