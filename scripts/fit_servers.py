"""Power and host constants from whole servers of two models: Llama-3.1 8B and 70B of mlenergy-v3.

    python scripts/fit_servers.py h100-sxm [--write]

No operator of these GPUs was measured with its power, and no operator holds the host's time. Both
are fitted to the rows of two models, all others are held out (benchmarks/servers.py). Power is
fitted at the measured step time, so that an error of the modelled time does not hide in it; the
host's constants at the modelled pass. --write puts the power constants into the device file; the
host's are printed for benchmarks/servers.py.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares, nnls

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import servers
from fitting.sections import replaced, write_constants

from beam_runtime.types import StepShape
from beamprof.devices.device import resolve_device
from beamprof.devices.forward import utilisation
from beamprof.devices.power import running_w

POWER = {  # constant: start, least, most
    "busy_w_per_ghz": (40.0, 1.0, 150.0),
    "tensor_w_per_ghz": (150.0, 20.0, 500.0),
    "memory_w_per_tbps": (60.0, 10.0, 120.0),
}
LIMIT_SHARE = 0.985  # what boards at their limit read of it


def main() -> int:
    parser = argparse.ArgumentParser(description="Power and host time from whole servers.")
    parser.add_argument("device")
    parser.add_argument("--data", type=Path, default=servers.DATA)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    device = resolve_device(asked.device)
    rows = [
        (server, measured)
        for server, measured, gpu, _ in servers.mlenergy(asked.data)
        if (gpu, server.model) in servers.FITTED and server.device == asked.device
    ]
    if not rows:
        print(f"error: no rows of {asked.device} to fit on", file=sys.stderr)
        return 2
    top = np.array([float(device.clocks.max_mhz)])
    uses, watts, host, behind = [], [], [], []
    for server, measured in rows:
        stage = servers.shape_of(server.model).shard(server.tp, 1, server.ep)
        step_ms = server.requests / measured["tokens/s"] * 1e3
        chunk = server.requests / server.output_tokens * server.prompt_tokens
        decodes = round(server.requests)
        step = StepShape(round(chunk), 0, decodes, round(decodes * server.context_tokens))
        uses.append(utilisation(device, stage, step, top, np.array([step_ms])))
        watts.append(measured["power"] / server.tp)
        bare_ms, _, _ = servers.step_of(server, stage, 0)
        mine = server.host.step_ms + server.host.request_ms * decodes
        host.append(measured["median ITL"] - (bare_ms - mine))
        behind.append((1.0, decodes))

    def residuals(logs: np.ndarray) -> np.ndarray:
        tried = replaced(device, "power", dict(zip(POWER, map(float, np.exp(logs)), strict=True)))
        most = tried.power.cap_w * LIMIT_SHARE
        modelled = [min(float(running_w(tried, top, use)[0]), most) for use in uses]
        return np.log(np.array(modelled) / np.array(watts))

    start, least, most = np.log(np.array(list(POWER.values()))).T
    best = least_squares(residuals, start, bounds=(least, most), loss="soft_l1", f_scale=0.1)
    fitted = dict(zip(POWER, map(float, np.exp(best.x)), strict=True))
    for name, value in fitted.items():
        print(f"{name:20} {value:10.4g}")
    error = np.abs(np.expm1(residuals(best.x)))
    print(f"power of the {error.size} rows at their measured step time: MAPE {error.mean():.1%}")
    # Rows where prompts start in most steps have another median: host time from the others.
    weights = 1 / np.array([measured["median ITL"] for _, measured in rows])
    quiet = np.array([s.requests / s.output_tokens < 0.6 for s, _ in rows])
    design = np.array(behind) * weights[:, None]
    constants, _ = nnls(design[quiet], (np.array(host) * weights)[quiet])
    print(f"host: {constants[0]:.2f} ms a step, {constants[1]:.4f} ms a request")
    if asked.write:
        path = Path(__file__).parents[1] / "beamprof" / "devices" / f"{asked.device}.toml"
        write_constants(path, replaced(device, "power", dict(fitted)), ["power"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
