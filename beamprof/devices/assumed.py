"""What of a stage is modelled without measurements of its own, in words for people and tables."""

from beamprof.devices.device import Device
from beamprof.models.layers import Attention
from beamprof.models.recurrent import GatedDelta, Mamba2, ShortConv
from beamprof.models.shape import StageShape

NOT_MEASURED = "not measured: "  # what follows it in a table's accuracy is from here
MAMBA = "Mamba-2 layers (taken as gated delta nets with states as large)"
KIMI = "Kimi's delta attention (taken as gated delta nets, which forget by head)"
CONV = "short convolutions (taken as elementwise traffic)"
WIDE = "heads of more than 256 numbers (as fast as those of 256)"
NODE_GPUS = 8  # of the nodes that all-reduces were measured in
WIDEST = 256  # of the operators that were fitted


def assumed(stage: StageShape, device: Device) -> str:
    """What of a stage no measurement of a device's file is of; empty where there is none."""
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
    groups = {stage.tp, stage.tp * stage.dp} - {1}
    found += filter(None, (_reduces(device, gpus) for gpus in sorted(groups)))
    return NOT_MEASURED + ", ".join(found) if found else ""


def _reduces(device: Device, gpus: int) -> str:
    """All-reduces over so many GPUs, where they were measured over fewer."""
    reduce = device.allreduce
    if gpus > NODE_GPUS:
        return f"all-reduces over {gpus} GPUs (as over {NODE_GPUS} of one node)"
    if gpus > 4 and reduce.us_8 == reduce.us_4 != reduce.us_2:
        return f"all-reduces over {gpus} GPUs (as over 4)"
    same = reduce.us_8 if gpus > 4 else reduce.us_4
    return f"all-reduces over {gpus} GPUs (as over 2)" if gpus > 2 and same == reduce.us_2 else ""
