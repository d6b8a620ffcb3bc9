"""Power and host constants from whole servers of two models: Llama-3.1 8B and 70B of mlenergy-v3.

    python scripts/fit_servers.py h100-sxm [--write]

No operator of these GPUs was measured with its power, and no operator holds the host's time. Both
are fitted to the rows of two models, all others are held out (benchmarks/servers.py). The host's
time is what the modelled passes and the sampler's sort leave of the measured step (requests in
flight over tokens per second); the GPU waits meanwhile, and sorts at its limit: power tells the two
apart. Power is fitted at the measured step time, so that an error of the modelled time does not
hide in it. --write puts the power constants into the device file; the engine's are printed for
benchmarks/server_steps.py.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import server_steps
import servers
from fitting.sections import replaced, write_constants

from beam_runtime.types import StepShape
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.forward import utilisation
from beamprof.devices.power import Utilisation, running_w, waiting_w

POWER = {  # constant: start, least, most
    "busy_w_per_ghz": (40.0, 5.0, 150.0),
    "tensor_w_per_ghz": (150.0, 20.0, 500.0),
    "memory_w_per_tbps": (60.0, 40.0, 200.0),
    "reduce_idle_share": (0.5, 0.05, 1.0),
}
# Dense servers do not tell SMs from DRAM; H200's operators do, and the die is the same.
CARRIED = {"h100-sxm": ("h200-sxm", ("busy_w_per_ghz", "memory_w_per_tbps"))}
GPU_BOUND = 0.4  # rows whose modelled passes are a smaller share of the step speak of the front end
UNIT = server_steps.Engine(0.0, 0.0, 1.0)
ENGINE = ((0.5, 0.01, 0.2), (0.0, 0.0, 0.0), (10.0, 0.2, 2.0))  # start, least, most
LIMIT_SHARE = 0.985  # what boards at their limit read of it


@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """The measured steps that power and the engine's time are fitted to, in columns."""

    servers: list[server_steps.Server]
    took_ms: np.ndarray
    busy_ms: np.ndarray  # the modelled passes and LM heads
    power_w: np.ndarray  # measured, of one GPU
    logit_ms: np.ndarray  # of sorting at 1 ns a logit
    decodes: np.ndarray
    uses: list[Utilisation]


def read_steps(data: Path, name: str, device: Device) -> Steps:
    """FITTED's rows on a device whose passes take a good part of the step."""
    top = np.array([float(device.clocks.max_mhz)])
    kept, uses, numbers = [], [], []
    for server, measured, gpu, _ in servers.mlenergy(data):
        if (gpu, server.model) not in servers.FITTED or server.device != name:
            continue
        stage = server_steps.stage_of(server)
        took_ms = server.requests / measured["tokens/s"] * 1e3
        bare = dataclasses.replace(server, engine=server_steps.Engine(0.0, 0.0, 0.0))
        busy_ms = server_steps.predict(bare).mean_itl_ms
        if busy_ms < GPU_BOUND * took_ms:
            continue
        decodes = round(server.requests)
        chunk = round(server.requests / server.output_tokens * server.prompt_tokens)
        step = StepShape(chunk, 0, decodes, round(decodes * server.context_tokens))
        uses.append(utilisation(device, stage, step, top, np.array([min(busy_ms, took_ms)])))
        sorted_ms = server_steps.sorting_ms(dataclasses.replace(server, engine=UNIT), decodes)
        numbers.append((took_ms, busy_ms, measured["power"] / server.tp, sorted_ms, decodes))
        kept.append(server)
    return Steps(kept, *np.array(numbers).reshape(-1, 5).T, uses)


def modelled(
    device: Device, engine: server_steps.Engine, steps: Steps
) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of each step, and watts at its measured time."""
    top = np.array([float(device.clocks.max_mhz)])
    waits_ms = engine.step_ms + engine.request_ms * steps.decodes
    sorts_ms = engine.sort_ns * steps.logit_ms
    most = device.power.cap_w * LIMIT_SHARE
    running = np.array([min(float(running_w(device, top, use)[0]), most) for use in steps.uses])
    passes_ms = np.clip(steps.took_ms - sorts_ms, 0.0, steps.busy_ms)
    idle_ms = np.maximum(steps.took_ms - sorts_ms - passes_ms, 0.0)  # what is left over, it waits
    joules = passes_ms * running + sorts_ms * server_steps.sorting_w(device)
    joules = joules + idle_ms * float(waiting_w(device, top)[0])
    return steps.busy_ms + waits_ms + sorts_ms, joules / steps.took_ms


def fit(
    device: Device, bounds: dict[str, tuple[float, float, float]], steps: Steps
) -> tuple[Device, server_steps.Engine]:
    """Least squares of the logarithms of time and power together."""

    def build(x: np.ndarray) -> tuple[Device, server_steps.Engine]:
        values = dict(zip(bounds, map(float, np.exp(x[: len(bounds)])), strict=True))
        return replaced(device, "power", values), server_steps.Engine(*map(float, x[len(bounds) :]))

    def residuals(x: np.ndarray) -> np.ndarray:
        times_ms, power_w = modelled(*build(x), steps)
        return np.concatenate([np.log(times_ms / steps.took_ms), np.log(power_w / steps.power_w)])

    start, least, most = np.array(list(bounds.values())).T
    best = least_squares(
        residuals, (*np.log(start), *ENGINE[0]), bounds=((*np.log(least), *ENGINE[1]),
        (*np.log(most), *ENGINE[2])), loss="soft_l1", f_scale=0.1, x_scale="jac",
    )  # fmt: skip
    return build(best.x)


def main() -> int:
    parser = argparse.ArgumentParser(description="Power and host time from whole servers.")
    parser.add_argument("device")
    parser.add_argument("--data", type=Path, default=servers.DATA)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    device, bounds = resolve_device(asked.device), dict(POWER)
    if asked.device in CARRIED:
        source, names = CARRIED[asked.device]
        carried = {name: getattr(resolve_device(source).power, name) for name in names}
        device = replaced(device, "power", dict(carried))
        bounds = {name: triple for name, triple in bounds.items() if name not in names}
    steps = read_steps(asked.data, asked.device, device)
    if not steps.servers:
        print(f"error: no rows of {asked.device} to fit on", file=sys.stderr)
        return 2
    fitted, engine = fit(device, bounds, steps)
    for name in POWER:
        print(f"{name:20} {getattr(fitted.power, name):10.4g}")
    print(engine)
    times_ms, power_w = modelled(fitted, engine, steps)
    times, powers = times_ms / steps.took_ms - 1, power_w / steps.power_w - 1
    for server, time, power in zip(steps.servers, times, powers, strict=True):
        print(f"  {server.model[-24:]:24} x{server.tp} N {server.requests:5.0f}  "
              f"step {time:+4.0%}  power {power:+4.0%}")  # fmt: skip
    print(f"MAPE: step {np.abs(times).mean():.1%}, power {np.abs(powers).mean():.1%}")
    if asked.write:
        path = Path(__file__).parents[1] / "beamprof" / "devices" / f"{asked.device}.toml"
        write_constants(path, fitted, ["power"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
