"""A table of a model on a GPU that nobody has measured: from its device file, kept nowhere."""

import tempfile
from pathlib import Path

from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.device import Device, resolve_device
from beamprof.errors import BackendError, ModelShapeError
from beamprof.models.shape import ModelShape
from beamprof.profiler.prepare import prepare
from beamprof.profiler.profile import ProfileRequest, profile
from beamprof.profiler.spec import resolve_spec
from beamprof.tables.kv_room import kv_room_tokens

# Tensor-parallel GPUs stand in one node; what they cannot hold is split into stages.
_SPLITS = tuple((tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8))


def modelled_table(model: str, device: str, *, tp: int = 1, pp: int = 1) -> PerfTable:
    """What `beam profile --backend modelled` would write, of a server that there can be.

    Raises:
        ModelShapeError, DeviceError: an unknown name, or a split that does not divide.
        BackendError: nothing came of it, or the weights do not fit into the GPUs.
    """
    flags = {"model": model, "device": device, "tp": tp, "pp": pp, "backend": "modelled"}
    with tempfile.TemporaryDirectory(prefix="beam-advise-") as folder:
        request = ProfileRequest(resolve_spec(flags), output=Path(folder) / "table.parquet")
        prepared = prepare(request)
        _check_room(prepared.model, resolve_device(device), tp, pp)
        made = profile(request).table
    if made is None:
        raise BackendError(f"no table of {model} on {device} could be modelled")
    return made


def _check_room(model: ModelShape, device: Device, tp: int, pp: int) -> None:
    """Refuse GPUs that cannot hold their part of the weights."""
    needed, room = model.shard(tp, pp).weight_bytes, device.weight_room_bytes
    if needed <= room:
        return
    larger = [one for one in _SPLITS if one > (tp, pp) and one[0] >= tp and one[1] >= pp]
    fits = [one for one in larger if _fits(model, device, *one)]
    enough = min(fits, key=lambda one: (one[0] * one[1], one[1]), default=None)
    raise BackendError(
        f"{model.name} does not fit: {needed / 1e9:.0f} GB of weights for each GPU, "
        f"{room / 1e9:.0f} GB that {device.name} leaves them",
        cause=f"tp {tp} x pp {pp} are {tp * pp} GPU{'s' if tp * pp > 1 else ''}",
        hint=f"{_flags(*enough, pp)} is enough, {_left(model, device, *enough)}"
        if enough
        else "more GPUs: --tp and --pp",
    )


def _flags(tp: int, pp: int, asked_pp: int) -> str:
    return f"--tp {tp}" + (f" --pp {pp}" if pp != asked_pp or pp > 1 else "")


def _left(model: ModelShape, device: Device, tp: int, pp: int) -> str:
    stage = model.shard(tp, pp)
    tokens = kv_room_tokens(device, stage.weight_bytes, stage.kv_bytes_per_token)
    return f"and leaves {tokens:,} tokens of KV cache"


def _fits(model: ModelShape, device: Device, tp: int, pp: int) -> bool:
    try:
        return model.shard(tp, pp).weight_bytes <= device.weight_room_bytes
    except ModelShapeError:
        return False
