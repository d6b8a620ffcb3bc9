"""Which stages the torch backend can build, and why it cannot build another."""

from collections.abc import Sequence

import torch

from beamprof.backends.torch_linear import MULTIPLE
from beamprof.errors import BackendError
from beamprof.models.layers import Attention, DenseMlp, Layer, MoeMlp, NoMlp
from beamprof.models.precision import OUTPUTS
from beamprof.models.shape import ModelShape, StageShape

# Families whose layers torch_layer computes; others norm, rotate or activate in other ways.
FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
# Formats of weights (models.formats) that torch_linear multiplies.
BUILT = ("bfloat16", "float16", "float32", "fp8")
# GPUs that multiply in FP8 (Ada), and for which torch has a grouped GEMM in it (Hopper).
FP8_CAPABILITY, GROUPED_FP8_CAPABILITY = (8, 9), (9, 0)


def attention_of(layer: Layer) -> Attention:
    """A layer's softmax attention, which buildable() has checked to be there."""
    if not isinstance(layer.mixer, Attention):
        raise TypeError(f"{layer} has no softmax attention")
    return layer.mixer


def mlp_of(layer: Layer) -> DenseMlp | MoeMlp:
    """A layer's MLP: the families that are built here have one in every layer."""
    if isinstance(layer.mlp, NoMlp):
        raise TypeError(f"{layer} has no MLP")
    return layer.mlp


def buildable(model: ModelShape, stage: StageShape, device: torch.device) -> list[Layer]:
    """The stage's layers, kind after kind.

    Raises:
        BackendError: a family, mixer, format or layout that is not built here, or FP8 on a GPU
            without.
    """
    layers = [group.layer for group in stage.groups for _ in range(group.count)]
    kinds = [group.layer for group in stage.groups]
    why = ""
    if model.architecture not in FAMILIES:
        why = f"layers of {model.architecture}"
    elif any(not isinstance(layer.mixer, Attention) for layer in kinds):
        why = "attention other than softmax's"
    elif any(isinstance(layer.mlp, MoeMlp) and layer.mlp.shared_size for layer in kinds):
        why = "shared experts"
    elif stage.ep > 1 or stage.dp > 1:
        why = "experts spread over GPUs"
    else:
        why = _unbuilt_formats(model, kinds)
    if why:
        raise BackendError(
            f"the torch backend does not build {why}: {model.name}",
            cause=f"it builds {', '.join(FAMILIES)} in 16 or 32 bit, and in FP8 scaled by channel",
            hint="measure through the engine, --backend vllm, or model it, --backend modelled",
        )
    _check_fp8(model, device)
    return layers


def _unbuilt_formats(model: ModelShape, kinds: Sequence[Layer]) -> str:
    """What of a model's precision is not built here, in words; empty where all is."""
    precision = model.precision
    for tensor in ("attention", "mlp", "experts"):
        name = getattr(precision, tensor)
        if name not in BUILT:
            return f"{tensor} weights in {name} ({precision.method})"
    if apart := [getattr(precision, name) for name in OUTPUTS if getattr(precision, name)]:
        return f"output projections in a format of their own, {apart[0]} ({precision.method})"
    if precision.kv == "fp8":
        return "a KV cache in fp8"
    if not _has_fp8(model):
        return ""
    if model.dtype != "bfloat16":
        return f"fp8 beside {model.dtype}"
    sizes = [model.hidden_size]
    for layer in kinds:
        mixer, mlp = attention_of(layer), mlp_of(layer)
        sizes += [mixer.qkv_size, mixer.heads * mixer.head_dim, mlp.intermediate_size]
    odd = [size for size in sizes if size % MULTIPLE]
    return f"fp8 weights of {odd[0]} rows or columns ({MULTIPLE} must divide them)" if odd else ""


def _has_fp8(model: ModelShape) -> bool:
    return "fp8" in (model.precision.attention, model.precision.mlp, model.precision.experts)


def _check_fp8(model: ModelShape, device: torch.device) -> None:
    """Raises BackendError where a GPU cannot multiply so."""
    if device.type != "cuda" or not _has_fp8(model):
        return
    grouped = model.precision.experts == "fp8" and any(
        isinstance(layer.mlp, MoeMlp) for layer in model.decoder
    )
    needed = GROUPED_FP8_CAPABILITY if grouped else FP8_CAPABILITY
    if torch.cuda.get_device_capability(device) < needed:
        raise BackendError(
            f"{torch.cuda.get_device_name(device)} does not multiply {'experts ' * grouped}in FP8: "
            f"{model.name}",
            cause=f"compute capability {needed[0]}.{needed[1]} or newer does, in PyTorch",
            hint="measure through the engine, which unpacks to 16 bit: --backend vllm",
        )
