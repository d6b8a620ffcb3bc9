"""What of a stage is modelled without measurements of its own, in words for people and tables."""

from beamprof.models.layers import Attention
from beamprof.models.recurrent import GatedDelta, Mamba2, ShortConv
from beamprof.models.shape import StageShape

NOT_MEASURED = "not measured: "  # what follows it in a table's accuracy is from here
MAMBA = "Mamba-2 layers (taken as gated delta nets with states as large)"
KIMI = "Kimi's delta attention (taken as gated delta nets, which forget by head)"
CONV = "short convolutions (taken as elementwise traffic)"
WIDE = "heads of more than 256 numbers (as fast as those of 256)"
WIDEST = 256  # of the operators that were fitted


def assumed(stage: StageShape) -> str:
    """What of a stage no measurement of a device file is of; empty where there is none."""
    mixers = [mixer for group in stage.groups for mixer in group.layer.mixers]
    found = []
    if any(isinstance(mixer, Mamba2) for mixer in mixers):
        found.append(MAMBA)
    if any(isinstance(mixer, GatedDelta) and mixer.gate_rank for mixer in mixers):
        found.append(KIMI)
    if any(isinstance(mixer, ShortConv) for mixer in mixers):
        found.append(CONV)
    if any(isinstance(mixer, Attention) and mixer.head_dim > WIDEST for mixer in mixers):
        found.append(WIDE)
    if odd := stage.precision.approximated:
        found.append(
            f"weights in another format than most of their kind ({', '.join(odd)}), "
            "taken as most are"
        )
    return NOT_MEASURED + ", ".join(found) if found else ""
