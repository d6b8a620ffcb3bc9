"""In which format each class of tensors is stored and multiplied: part of a model's shape.

Embeddings, norms and routers stay in 16 bit with every method that is read here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from beamprof.errors import ModelShapeError
from beamprof.models.formats import FORMATS, KV_BYTES

# Fields of projections that make an output, and the class whose they are.
OUTPUTS = {"attention_out": "attention", "mlp_down": "mlp"}


@dataclass(frozen=True, slots=True)
class Precision:
    """Formats by class of tensor (names of formats.FORMATS; the KV cache's of KV_BYTES).

    Attributes:
        attention: the projections around attention (QKV, output, MLA's, a delta net's, Mamba's).
        mlp: dense MLPs and shared experts. experts: routed experts.
        kv: the KV cache.
        method: how the config calls the quantisation; empty where there is none.
        attention_out, mlp_down: the projections that make their outputs, where they are in another
            format; empty: as the rest of their class.
        approximated: what is in other formats than it is priced in, in words.
    """

    attention: str = "bfloat16"
    mlp: str = "bfloat16"
    experts: str = "bfloat16"
    kv: str = "bfloat16"
    method: str = ""
    attention_out: str = ""
    mlp_down: str = ""
    approximated: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name, tensor in OUTPUTS.items():
            if getattr(self, name) == getattr(self, tensor):
                object.__setattr__(self, name, "")

    @classmethod
    def of(cls, dtype: str) -> "Precision":
        """Everything in one format: a model that is not quantised."""
        return cls(dtype, dtype, dtype, dtype)

    def with_kv(self, dtype: str) -> "Precision":
        """The same with another KV cache, as --kv-cache-dtype of an engine.

        Raises:
            ModelShapeError: a format that is not priced.
        """
        known = {"auto": self.kv, "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
        name = known.get(dtype, dtype)
        if name not in KV_BYTES:
            raise ModelShapeError(
                f"a KV cache in {dtype!r} is not priced",
                hint=f"priced are auto, {', '.join(KV_BYTES)}",
            )
        return dataclasses.replace(self, kv=name)

    @property
    def kv_bytes(self) -> float:
        """Bytes of one cached element."""
        return KV_BYTES[self.kv]

    def formats(self, tensor: str, projections: int) -> Sequence[str]:
        """The formats of so many projections of a class ("attention", "mlp"), the output's last."""
        most = [getattr(self, tensor)] * projections
        last = next((getattr(self, name) for name in OUTPUTS if OUTPUTS[name] == tensor), "")
        return [*most[:-1], last] if most and last else most

    def weight_bytes(self, tensor: str, projections: Sequence[tuple[int, int]]) -> float:
        """Bytes of a class's weights, by its projections' (outputs, inputs)."""
        return sum(
            rows * columns * FORMATS[name].weight_bytes
            for (rows, columns), name in zip(
                projections, self.formats(tensor, len(projections)), strict=True
            )
        )

    @property
    def weights(self) -> set[str]:
        """Every format that weights are in."""
        names = ("attention", "mlp", "experts", *OUTPUTS)
        return {getattr(self, name) for name in names} - {""}

    def to_dict(self) -> dict[str, str]:
        """As it stands in a table's metadata: what says nothing is left out."""
        fields = dataclasses.asdict(self)
        del fields["approximated"]
        return {name: form for name, form in fields.items() if form or name not in OUTPUTS}

    def __str__(self) -> str:
        """In words: what is quantised, and how the rest is kept."""
        names = ("attention", "mlp", "experts", "kv")
        parts = [f"{name} {getattr(self, name)}{self._apart(name)}" for name in names]
        return (f"{self.method}: " if self.method else "") + ", ".join(parts)

    def _apart(self, tensor: str) -> str:
        return "".join(
            f" ({name.partition('_')[2]} projection {form})"
            for name, of in OUTPUTS.items()
            if of == tensor and (form := getattr(self, name))
        )
