"""In which format each class of tensors is stored and multiplied: part of a model's shape.

Embeddings, norms and routers stay in 16 bit with every method that is read here.
"""

import dataclasses
from dataclasses import dataclass

from beamprof.errors import ModelShapeError
from beamprof.models.formats import FORMATS, KV_BYTES


@dataclass(frozen=True, slots=True)
class Precision:
    """Formats by class of tensor (names of formats.FORMATS; the KV cache's of KV_BYTES).

    Attributes:
        attention: the projections around attention (QKV, output, MLA's, a delta net's, Mamba's).
        mlp: dense MLPs and shared experts. experts: routed experts.
        kv: the KV cache.
        method: how the config calls the quantisation; empty where there is none.
    """

    attention: str = "bfloat16"
    mlp: str = "bfloat16"
    experts: str = "bfloat16"
    kv: str = "bfloat16"
    method: str = ""

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

    def weight_bytes(self, tensor: str) -> float:
        """Bytes of one weight of a class: "attention", "mlp" or "experts"."""
        return FORMATS[getattr(self, tensor)].weight_bytes

    def __str__(self) -> str:
        """In words: what is quantised, and how the rest is kept."""
        parts = [f"{name} {getattr(self, name)}" for name in ("attention", "mlp", "experts", "kv")]
        return (f"{self.method}: " if self.method else "") + ", ".join(parts)
