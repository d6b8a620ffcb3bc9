"""Of which kind each layer is, in the words of Hugging Face's layer_types.

"full_attention", "sliding_attention", "chunked_attention", "linear_attention" (whatever keeps a
state in place of a cache), and where a layer is no mixer but an MLP alone, "mlp" or "moe".
"""

from collections.abc import Sequence

from beamprof.errors import ModelShapeError
from beamprof.models.families import Family
from beamprof.models.fields import LARGEST_COUNT, Fields

NAMED = ("layer_types", "layers_block_type")
OLD_NAMES = {"attention": "full_attention", "mamba": "linear_attention", "conv": "linear_attention"}
LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def layer_count(text: Fields) -> int:
    """Layers of the decoder; a pattern with a letter for each of them says how many.

    Raises:
        ModelShapeError: nothing says it, or two fields say different numbers.
    """
    pattern = text.text("hybrid_override_pattern")
    if pattern and not text.has("num_hidden_layers"):
        return len(pattern[:LARGEST_COUNT])
    named = next((len(text.texts(name)) for name in NAMED if text.has(name)), None)
    return text.several("num_hidden_layers", default=named)


def layer_kinds(family: Family, text: Fields, layers: int) -> Sequence[str]:
    """The kind of every layer, in order.

    Raises:
        ModelShapeError: as many names as there are not layers, or a letter that nobody knows.
    """
    named = _named(text)
    if named:
        if len(named) != layers:
            raise ModelShapeError(
                f"{text.where}: layer_types names {len(named)} layers of {layers}"
            )
        return named if window_tokens(family, text) else [
            "full_attention" if kind == "sliding_attention" else kind for kind in named
        ]  # fmt: skip
    if family.state:
        return _with_states(family, text, layers)
    if text.has("linear_num_value_heads"):
        every = text.several("full_attention_interval", default=4)
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if text.has("attention_chunk_size"):  # Llama 4: every fourth layer has no RoPE and sees all
        every = text.several("no_rope_layer_interval", default=4)
        return ["chunked_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    kinds = _windowed(family, text, layers)
    # Gemma 4's last layer sees all, whatever the pattern.
    return [*kinds[:-1], "full_attention"] if family.wide_full else kinds


def window_tokens(family: Family, text: Fields) -> int:
    """The sliding window of the layers that have one; 0 = the model has none."""
    if not text.has("sliding_window") or family.window == "none":
        return 0
    if family.window == "flag" and not text.flag("use_sliding_window"):
        return 0
    return text.size("sliding_window")


def _named(text: Fields) -> tuple[str, ...]:
    """What the config itself lists, layer by layer; empty where it does not."""
    for name in NAMED:
        if named := text.texts(name):
            return tuple(OLD_NAMES.get(kind, kind) for kind in named)
    pattern = text.text("hybrid_override_pattern")
    unknown = sorted(set(pattern) - LETTERS.keys())
    if unknown:
        raise ModelShapeError(
            f"{text.where}: layers {unknown[0]!r} of hybrid_override_pattern are not priced",
            hint=f"priced are {', '.join(LETTERS)}",
        )
    return tuple(LETTERS[letter] for letter in pattern)


def _with_states(family: Family, text: Fields, layers: int) -> Sequence[str]:
    """Hybrids that list their attention layers, or have none unless they list them."""
    linear = text.inner("linear_attn_config")
    if linear is not None:  # Kimi counts its layers from 1
        full, others = (set(linear.sizes(n)) for n in ("full_attn_layers", "kda_layers"))
        if full & others or full | others != set(range(1, layers + 1)):
            raise ModelShapeError(
                f"{linear.where}: full_attn_layers and kda_layers must name every layer from 1 to "
                f"{layers} once"
            )
        return ["full_attention" if i + 1 in full else "linear_attention" for i in range(layers)]
    if family.state == "beside":
        return ["full_attention"] * layers
    names = ("attn_layer_indices", "full_attn_idxs")  # of Bamba and of LFM2
    full = {i for name in names for i in text.sizes(name)}
    return ["full_attention" if i in full else "linear_attention" for i in range(layers)]


def _windowed(family: Family, text: Fields, layers: int) -> Sequence[str]:
    if not window_tokens(family, text):
        return ["full_attention"] * layers
    every = text.several(
        "sliding_window_pattern", "global_attn_every_n_layers", default=family.full_every or None
    ) if (
        text.has("sliding_window_pattern") or family.full_every
    ) else 0  # fmt: skip
    if text.has("max_window_layers") and family.window == "flag":
        first = text.count("max_window_layers")
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return [
        "full_attention" if every and (i + 1) % every == 0 else "sliding_attention"
        for i in range(layers)
    ]
