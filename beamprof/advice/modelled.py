"""A table of a model on a GPU that nobody has measured: from its device file, kept nowhere."""

import tempfile
from pathlib import Path

from beam_runtime.table.perf_table import PerfTable
from beamprof.errors import BackendError
from beamprof.profiler.profile import ProfileRequest, profile
from beamprof.profiler.spec import resolve_spec


def modelled_table(model: str, device: str, *, tp: int = 1, pp: int = 1) -> PerfTable:
    """What `beam profile --backend modelled` would write.

    Raises:
        ModelShapeError, DeviceError: an unknown name, or a split that does not divide.
        BackendError: nothing came of it.
    """
    flags = {"model": model, "device": device, "tp": tp, "pp": pp, "backend": "modelled"}
    with tempfile.TemporaryDirectory(prefix="beam-advise-") as folder:
        request = ProfileRequest(resolve_spec(flags), output=Path(folder) / "table.parquet")
        made = profile(request).table
    if made is None:
        raise BackendError(f"no table of {model} on {device} could be modelled")
    return made
