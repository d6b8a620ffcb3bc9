"""Power and host constants from whole servers of two models: Llama-3.1 8B and 70B of mlenergy-v3.

    python scripts/fit_servers.py h100-sxm [--write]

No operator of these GPUs was measured with its power, and no operator holds the host's time. Both
are fitted to the rows of two models, all others are held out (benchmarks/servers.py). The host's
time is what the modelled passes and the sampler's sort leave of the measured step (requests in
flight over tokens per second); the GPU waits meanwhile, and sorts at its limit: power tells the two
apart. Power is fitted at the measured step time, so that an error of the modelled time does not
hide in it. Dense servers do not tell SMs from DRAM from tensor cores (rows in memory's bounds are
all alike): each constant starts from what another device's operators say, and is drawn back to it
as far as the rows leave it open. --write puts the power constants into the device file; the
engine's are printed for benchmarks/server_steps.py.
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

from beamprof.devices.device import Device, resolve_device
from beamprof.devices.power import running_w, waiting_w

# Where constants start, and how far, as a logarithm, rows may draw them before they need one row's
# worth of evidence. Hopper's start: dense operators of the H200, of the same die (fit_device.py
# --power), where GEMMs at the limit do not tell of tensor cores. Another generation's: Hopper's.
HOPPER = "h100-sxm"
OPERATORS = {"busy_w_per_ghz": 37.9, "tensor_w_per_ghz": 150.0, "memory_w_per_tbps": 52.6}
OPEN = {"busy_w_per_ghz": 0.3, "tensor_w_per_ghz": 1.0, "memory_w_per_tbps": 0.3}
OPEN_ELSEWHERE = 1.0
SAME_DIE = {"h100-sxm": "h200-sxm"}
ROW_SPREAD = 0.05  # a row's power, as a logarithm: what boards of one kind differ by
# Rows whose modelled passes are a smaller share of the step wait for the front end: their times do
# not tell the GPU's constants (through the clock that the limit leaves), nor the engine's.
GPU_BOUND, ENGINE_BOUND = 0.5, 0.4
UNIT = server_steps.Engine(0.0, 0.0, 1.0)
ENGINE = ((0.5, 0.01, 0.2), (0.0, 0.0, 0.0), (10.0, 0.2, 2.0))  # start, least, most


@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """The measured steps that power and the engine's time are fitted to, in columns.

    Attributes:
        power_w: measured, of one GPU. logit_ms: of sorting at 1 ns a logit.
        filled: share of the step that the modelled passes fill.
    """

    servers: list[server_steps.Server]
    took_ms: np.ndarray
    power_w: np.ndarray
    logit_ms: np.ndarray
    decodes: np.ndarray
    filled: np.ndarray


def read_steps(data: Path, name: str, device: Device) -> Steps:
    """FITTED's rows on a device."""
    kept, numbers = [], []
    for server, measured, gpu, _ in servers.mlenergy(data):
        if (gpu, server.model) not in servers.FITTED or server.device != name:
            continue
        took_ms = server.requests / measured["tokens/s"] * 1e3
        busy_ms = sum(chance * ms for chance, ms, _ in passes_of(device, server))
        decodes = round(server.requests)
        sorted_ms = server_steps.sorting_ms(dataclasses.replace(server, engine=UNIT), decodes)
        filled = busy_ms / took_ms
        numbers.append((took_ms, measured["power"] / server.tp, sorted_ms, decodes, filled))
        kept.append(server)
    return Steps(kept, *np.array(numbers).reshape(-1, 5).T)


def passes_of(device: Device, server: server_steps.Server) -> list[tuple[float, float, float]]:
    """Steps by how many prompts start in them: how often, milliseconds and watts of the passes and
    the LM head at the clock that the limit leaves.
    """
    stage, found = server_steps.stage_of(server), []
    for count, chance in zip(*server_steps.prompt_chances(server), strict=True):
        step = server_steps.step_shape(server, int(count))
        mhz = server_steps.clock_in_force(device, stage, server, step)
        ms = server_steps.busy_ms(device, stage, server, step, mhz)
        watt = running_w(device, mhz, server_steps.use_of(device, stage, server, step, mhz, ms))
        found.append((float(chance), float(ms[0]), float(watt[0])))
    return found


def modelled(
    device: Device, engine: server_steps.Engine, steps: Steps
) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of each step, and watts at its measured time."""
    top = np.array([float(device.clocks.max_mhz)])
    passes = [np.array(passes_of(device, server)).T for server in steps.servers]
    busy_ms = np.array([chance @ ms for chance, ms, _ in passes])
    busy_j = np.array([chance @ (ms * watt) for chance, ms, watt in passes])
    waits_ms = engine.step_ms + engine.request_ms * steps.decodes
    sorts_ms = engine.sort_ns * steps.logit_ms
    # Passes that are modelled too long are cut to what is left; what too short ones leave over, the
    # GPU waits.
    share = np.clip((steps.took_ms - sorts_ms) / busy_ms, 0.0, 1.0)
    idle_ms = np.maximum(steps.took_ms - sorts_ms - share * busy_ms, 0.0)
    joules = share * busy_j + sorts_ms * server_steps.sorting_w(device)
    joules = joules + idle_ms * float(waiting_w(device, top)[0])
    return busy_ms + waits_ms + sorts_ms, joules / steps.took_ms


def fit(
    device: Device, prior: dict[str, float], steps: Steps, least_filled: float
) -> tuple[Device, server_steps.Engine]:
    """Least squares of the logarithms of time, of power, and of constants over their prior; without
    a prior the engine's constants alone.
    """
    names = list(prior)
    start = np.log(np.array(list(prior.values())))
    of_die = device.name == HOPPER
    opened = np.array([OPEN[name] if of_die else OPEN_ELSEWHERE for name in names])

    def build(x: np.ndarray) -> tuple[Device, server_steps.Engine]:
        values = dict(zip(names, map(float, np.exp(x[: len(names)])), strict=True))
        return replaced(device, "power", values), server_steps.Engine(*map(float, x[len(names) :]))

    def residuals(x: np.ndarray) -> np.ndarray:
        times_ms, power_w = modelled(*build(x), steps)
        late = np.log(times_ms / steps.took_ms)[steps.filled > least_filled]
        off = np.log(power_w / steps.power_w)
        return np.concatenate([late, off, (x[: len(names)] - start) / opened * ROW_SPREAD])

    wide = np.full(len(names), 3.0)
    best = least_squares(
        residuals, (*start, *ENGINE[0]), bounds=((*(start - wide), *ENGINE[1]),
        (*(start + wide), *ENGINE[2])), loss="soft_l1", f_scale=0.1, x_scale="jac",
    )  # fmt: skip
    return build(best.x)


def prior_of(device: Device) -> dict[str, float]:
    """Hopper's from its operators; another device's from Hopper's: by SM, by FLOP, by byte."""
    if device.name == HOPPER:
        return OPERATORS
    hopper = resolve_device(HOPPER)
    sms = device.compute.sms / hopper.compute.sms
    flops = sms * device.compute.tensor_flops_per_clock / hopper.compute.tensor_flops_per_clock
    return {
        "busy_w_per_ghz": hopper.power.busy_w_per_ghz * sms,
        "tensor_w_per_ghz": hopper.power.tensor_w_per_ghz * flops,
        "memory_w_per_tbps": hopper.power.memory_w_per_tbps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Power and host time from whole servers.")
    parser.add_argument("device")
    parser.add_argument("--data", type=Path, default=servers.DATA)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    # SMs of a GPU that waits for others do nothing; dense servers of 2 to 4 GPUs hardly tell.
    device = replaced(resolve_device(asked.device), "power", {"reduce_idle_share": 1.0})
    prior = prior_of(device)
    device = replaced(device, "power", dict(prior))  # what the file says so far has no say in it
    steps = read_steps(asked.data, asked.device, device)
    if not steps.servers:
        print(f"error: no rows of {asked.device} to fit on", file=sys.stderr)
        return 2
    fitted, _ = fit(device, prior, steps, GPU_BOUND)
    steps = read_steps(asked.data, asked.device, fitted)
    _, engine = fit(fitted, {}, steps, ENGINE_BOUND)
    for name, start in prior.items():
        print(f"{name:20} {getattr(fitted.power, name):10.4g}   from {start:.4g}")
    print(engine)
    times_ms, power_w = modelled(fitted, engine, steps)
    times, powers = times_ms / steps.took_ms - 1, power_w / steps.power_w - 1
    for server, time, power in zip(steps.servers, times, powers, strict=True):
        print(f"  {server.model[-24:]:24} x{server.tp} N {server.requests:5.0f}  "
              f"step {time:+4.0%}  power {power:+4.0%}")  # fmt: skip
    print(f"MAPE: step {np.abs(times).mean():.1%}, power {np.abs(powers).mean():.1%}")
    if asked.write:
        folder = Path(__file__).parents[1] / "beamprof" / "devices"
        write_constants(folder / f"{asked.device}.toml", fitted, ["power"])
        twin = SAME_DIE.get(asked.device)
        if twin:
            values = {name: getattr(fitted.power, name) for name in (*prior, "reduce_idle_share")}
            same = replaced(resolve_device(twin), "power", dict(values))
            write_constants(folder / f"{twin}.toml", same, ["power"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
