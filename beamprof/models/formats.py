"""Number formats of weights: bytes in memory, and the arithmetic that kernels do with them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """How a weight is stored and multiplied (int8 runs at fp8's rate where a GPU has both).

    Attributes:
        name: as tables and device files write it.
        weight_bytes: of one weight, with its share of the scales.
        activation_bytes: of one input element, as the GEMM reads it.
        arithmetic: the format whose tensor rate applies where kernels for this one exist.
        doc: for people.
    """

    name: str
    weight_bytes: float
    activation_bytes: float
    arithmetic: str
    doc: str

    @property
    def weight_only(self) -> bool:
        """Weights are unpacked to 16 bit before the multiplication."""
        return self.activation_bytes >= 2

    @property
    def sixteen_bit(self) -> bool:
        """Neither weights nor activations are quantised."""
        return self.name in ("bfloat16", "float16")


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("bfloat16", 2, 2, "bfloat16", "16-bit weights"),
        Format("float16", 2, 2, "bfloat16", "16-bit weights"),
        Format("float32", 4, 4, "float32", "32-bit weights"),
        Format("fp8", 1, 1, "fp8", "8-bit floats, scaled per tensor or channel"),
        Format("fp8_block", 1 + 4 / 128**2, 1, "fp8", "8-bit floats, scaled in blocks of 128"),
        Format("int8", 1, 1, "fp8", "8-bit integers, activations too (W8A8)"),
        Format("int8_wo", 1 + 2 / 128, 2, "bfloat16", "8-bit integers, 16-bit arithmetic (W8A16)"),
        Format("int4", 0.5 + 2.5 / 128, 2, "bfloat16", "4-bit integers, 16-bit arithmetic (W4A16)"),
        Format("mxfp4", 0.5 + 1 / 32, 2, "bfloat16", "4-bit floats in blocks of 32 (MXFP4)"),
        Format(
            "mxfp4_fp8", 0.5 + 1 / 32, 1, "fp8", "MXFP4 weights, 8-bit inputs (MXFP8), Blackwell"
        ),
        Format("nvfp4", 0.5 + 1 / 16, 0.5 + 1 / 16, "fp4", "4-bit floats in blocks of 16 (NVFP4)"),
    )
}
KV_BYTES: dict[str, float] = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}
