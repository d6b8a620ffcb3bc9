"""Layers that a config describes one by one, in block_configs (DeciLM, Llama-Nemotron's NAS).

A block says how many heads share a KV head and how wide its MLP is, or that one of them is left
out. The names are those of NVIDIA's own configuration_decilm.
"""

from dataclasses import replace

from beamprof.errors import ModelShapeError
from beamprof.models.fields import Fields
from beamprof.models.layers import Attention, DenseMlp, Layer, Mixer, Mlp, NoMixer, NoMlp

WIDTH_MULTIPLE = 256  # widths given as a multiple of the hidden size are rounded up to it
FOREIGN = ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens")


def block_layers(text: Fields, attention: Attention, layers: int) -> tuple[Layer, ...]:
    """Every layer, in order; ``attention`` as the config's flat fields say it.

    Raises:
        ModelShapeError: another number of blocks than layers, or a part that is not priced.
    """
    blocks = text.inners("block_configs")
    if len(blocks) != layers:
        raise ModelShapeError(
            f"{text.where}: block_configs describes {len(blocks)} layers of {layers}"
        )
    hidden = text.size("hidden_size")
    return tuple(Layer(_mixer(block, attention), _mlp(block, hidden)) for block in blocks)


def _part(block: Fields, name: str) -> Fields | None:
    """One half of a block; None where it is left out."""
    part = block.inner(name)
    if part is None:
        raise ModelShapeError(f"{block.where} lacks the field {name!r}")
    for foreign in FOREIGN:
        if part.values.get(foreign):
            raise ModelShapeError(
                f"{part.where}: {foreign} is not priced",
                hint="priced are attention and a gated MLP, either of them left out or not",
            )
    return None if part.flag("no_op") else part


def _mixer(block: Fields, attention: Attention) -> Mixer:
    part = _part(block, "attention")
    if part is None:
        return NoMixer()
    group = part.several("n_heads_in_group")
    if attention.heads % group:
        raise ModelShapeError(
            f"{part.where}: groups of {group} do not divide {attention.heads} heads"
        )
    return replace(attention, kv_heads=attention.heads // group)


def _mlp(block: Fields, hidden: int) -> Mlp:
    part = _part(block, "ffn")
    if part is None:
        return NoMlp()
    if not part.has("ffn_mult"):
        return DenseMlp(part.size("intermediate_size"))
    width = int(2 * part.number("ffn_mult", default=0.0) * hidden / 3)
    return DenseMlp(-(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
