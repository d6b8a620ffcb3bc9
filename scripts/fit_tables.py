"""Fit a device file to published tables of whole passes; print every constant and error.

    python scripts/fit_tables.py [DEVICE]      fit, print constants and errors
    python scripts/fit_tables.py --held-out    fit on part, report on the rest: of several models
                                               one at a time, of a single one every third batch
    python scripts/fit_tables.py --check       exit 1 unless the committed file comes out
    python scripts/fit_tables.py --write       write the constants into the file

DEVICE is a100-sxm4-80gb (default), a100-pcie-80gb, or a device file of one's own with --table
TABLE, BEAM's tables measured on that GPU (docs/device-file.md). Needs scipy (the test extra) and
the data folder (--data, default ../shared/data): measured-a100 (three tables: latency, energy),
a100-dvfs-spec (power of a waiting GPU), a100-operators (chunk attention); measured-more-nodes for
the PCIe board.

Start values are round numbers, not the committed ones, so that a held-out table is held out.

The published tables were made with a dummy run whose block table points every request at the same
pages: 38,000 tokens more of context take a time that goes with 1/f and means, at 1410 MHz, 2.6
TB/s, more than this DRAM can deliver. Their KV cache lay in L2. That difference yields
kv_bytes_per_clock. The model itself reads caches from DRAM, as real ones are, and is fitted as it
runs: cells of 40,000 tokens come out slower than published, those of 2,048 a little faster. Both
are printed.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from fitting.sections import replaced as replaced_in
from fitting.sections import values_of as values_in
from fitting.sections import write_constants
from numpy.typing import NDArray
from scipy.optimize import least_squares

from beam_runtime.errors import BeamError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import StepShape
from beamprof.devices.allreduce import message_us
from beamprof.devices.constants import AllReduce
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.forward import forward, pass_ms, utilisation
from beamprof.devices.power import running_w, waiting_w
from beamprof.models.registry import registry, resolve_model
from beamprof.models.shape import StageShape

Array = NDArray[np.float64]

SXM = "a100-sxm4-80gb"
FOLDERS = {SXM: "measured-a100"}  # else measured-more-nodes
TABLES = {  # by device, registry name: (tp, pp, parts of the file's name)
    SXM: {
        "llama3.3-70b": (2, 4, "*Llama-3.3-70B"),
        "qwen2.5-32b": (2, 2, "*Qwen2.5-32B"),
        "qwen2.5-14b": (1, 2, "*Qwen2.5-14B"),
    },
    "a100-pcie-80gb": {"qwen2.5-14b": (1, 1, "*A100 80GB PCIe*Qwen2.5-14B")},
}
LATENCY = {  # constant: where the fit starts
    "gemm.bfloat16.efficiency": 0.9,
    "gemm.bfloat16.load_bytes_per_clock": 30.0,
    "compute.activation_bytes_per_clock": 1000.0,
    "gemm.bfloat16.overlap_exponent": 4.0,
    "launch.kernel_us": 4.0,
    "allreduce.latency_us": 6.0,
    "allreduce.bandwidth_gbps": 75.0,
}
BANDWIDTH_SHARES = (0.5, 0.6, 0.75, 0.9, 1.0)  # of the highest: where the knots start
START_TBPS = 1.7  # the A100s' highest; one's own device starts from its file's
# One table does not tell kernels from DRAM: a fit of both passes the data sheet's bandwidth. The
# kernels are those of the same chip on the other board.
SAME_CHIP = {"a100-pcie-80gb": SXM}
POWER = {
    "power.floor_w": 75.0,
    "power.voltage_slope_per_ghz": 1.0,
    "power.clock_w_per_ghz": 13.0,
    "power.busy_w_per_ghz": 60.0,
    "power.stall_share": 0.5,
    "power.tensor_w_per_ghz": 60.0,
    "power.memory_w_per_tbps": 80.0,
    "power.link_w": 15.0,
    "power.reduce_idle_share": 0.5,
}
SHARES = ("power.stall_share", "power.reduce_idle_share")  # 1 at most
# Not fitted but chosen, with the width, so that the energy-optimal clocks of the A100 come out
# right on average (benchmarks/modelled.py). Boards have their knee at 1.02 to 1.11 GHz.
KNEE, KNEE_WIDTH_GHZ = 1.10, 0.04
ALLREDUCE = ("allreduce.latency_us", "allreduce.bandwidth_gbps")
LINE_BYTES = 2.0**23  # messages of the published tables: up to 512 tokens of 8,192 numbers
FIXED = (
    "attention.bfloat16.efficiency",
    "attention.bfloat16.kv_bytes_per_clock",
)  # not least squares
# From here on a pass may run at its power cap: the clock it reached was not recorded.
CAPPED_SHARE = 0.94
OUTLIER_SCALE = 0.05  # relative errors beyond count linearly, not squared
# Of the numeric derivative, relative: wide first, over the kinks where a tile choice flips. One
# cycle stops at the first kinks that it meets, so that any change of the model led elsewhere;
# cycles are repeated until one gains nothing.
STEPS = (1e-1, 3e-2, 1e-2, 3e-3)
FEW_CLOCKS = 3  # fewer say nothing of what changes with the clock
CYCLES, CONVERGED = 12, 1e-4
IDLE_WEIGHT = 0.5  # of all idle readings together, against all passes together


@dataclass(frozen=True, slots=True)
class Pass:
    """One cell of a published table at all its clocks."""

    model: str
    stage: StageShape
    step: StepShape
    clocks_mhz: Array
    latency_ms: Array
    energy_j: Array


def read_tables(data: Path, device: str = SXM) -> list[Pass]:
    """Every cell of a device's published tables."""
    passes = []
    folder = data / FOLDERS.get(device, "measured-more-nodes")
    for model, (tp, pp, label) in TABLES[device].items():
        (file,) = folder.glob(f"dvfs_profile_{label}*_tp{tp}_pp{pp}_one.csv")
        rows = pl.read_csv(file).filter(pl.col("valid") == 1).sort("clock")
        stage = registry()[model].shard(tp, pp)
        for (batch, context), cell in rows.group_by(
            "batch_size", "total_ctx_len", maintain_order=True
        ):
            decodes = min(60, int(str(batch)))
            step = StepShape(int(str(batch)) - decodes, 0, decodes, int(str(context)))
            clocks = cell["clock"].to_numpy().astype(np.float64)
            energy = cell["energy_consumption"].to_numpy() / 1e3
            passes.append(
                Pass(model, stage, step, clocks, cell["time_taken"].to_numpy() * 1e3, energy)
            )
    return passes


def read_beam_tables(paths: list[Path]) -> list[Pass]:
    """Every cell of BEAM's own tables, at the clocks that were reached."""
    passes = []
    for path in paths:
        table = PerfTable.load(path)
        model = resolve_model(table.model)
        stage = model.shard(table.tp, table.pp)
        columns = pl.DataFrame({name: table.columns[name] for name in table.columns})
        rows = columns.filter(pl.col("kind") == "forward").sort("clock_mhz")
        keys = ("prefill_tokens", "prefill_context_tokens", "decode_requests")
        for numbers, cell in rows.group_by(*keys, "decode_context_tokens", maintain_order=True):
            step = StepShape(*(int(str(number)) for number in numbers))
            reached = cell["clock_reached_mhz"].fill_nan(None).fill_null(cell["clock_mhz"])
            columns_of = (reached, cell["latency_ms"], cell["energy_j"])
            clocks, ms, joules = (c.cast(pl.Float64).to_numpy() for c in columns_of)
            passes.append(Pass(model.name, stage, step, clocks, ms, joules))
    return passes


def replaced(device: Device, constants: dict[str, object]) -> Device:
    """The device with some constants, named 'section.field', replaced."""
    reduce = {name: constants[name] for name in ALLREDUCE if name in constants}
    for path, value in constants.items():
        if path in reduce:
            continue
        section, field = path.rsplit(".", 1)
        device = replaced_in(device, section, {field: value})
    if reduce:
        latency_us, gbps = (float(str(reduce[name])) for name in ALLREDUCE)
        device = replaced_in(device, "allreduce", _line(device.allreduce, latency_us, gbps))
    return device


def _line(reduce: AllReduce, latency_us: float, gbps: float) -> dict[str, object]:
    """All-reduces over 2 GPUs as a line up to LINE_BYTES, and beyond as the file has them.

    What 4 and 8 GPUs take longer is the file's, too: rows of operators (fit_device.py).
    """
    knots = np.union1d(reduce.message_bytes, LINE_BYTES)
    rows = {f"us_{n}": np.interp(knots, reduce.message_bytes, getattr(reduce, f"us_{n}"))
            for n in (2, 4, 8)}  # fmt: skip
    line = latency_us + np.minimum(knots, LINE_BYTES) / (gbps * 1e3)
    two = np.where(knots <= LINE_BYTES, line, np.maximum(line, rows["us_2"]))
    columns = {name: np.maximum.accumulate(two + us - rows["us_2"]) for name, us in rows.items()}
    return {name: tuple(map(float, us)) for name, us in {"message_bytes": knots, **columns}.items()}


def constant(device: Device, path: str) -> float:
    if path in ALLREDUCE:
        ends = np.array([device.allreduce.message_bytes[0], LINE_BYTES])
        us = message_us(device, 2, ends)
        us_per_byte = (us[1] - us[0]) / (ends[1] - ends[0])
        return float(us[0] - us_per_byte * ends[0] if path == ALLREDUCE[0] else 1e-3 / us_per_byte)
    section, field = path.rsplit(".", 1)
    value = values_in(device, section)[field]
    return float(value[0] if isinstance(value, tuple) else value)  # type: ignore[arg-type]


def fit_cached_kv(device: Device, passes: list[Pass]) -> tuple[Device, dict[str, float]]:
    """KV bytes that one SM takes in per clock, from cells that differ only in their context."""
    rates = []
    for short in passes:
        for long in passes:
            same = (long.model, long.step.tokens) == (short.model, short.step.tokens)
            more = long.step.decode_context_tokens - short.step.decode_context_tokens
            if same and more > 0:
                kv_bytes = short.stage.kv_bytes_per_token * more
                clocks = (long.latency_ms - short.latency_ms) * 1e3 * short.clocks_mhz
                rates.append(kv_bytes / device.compute.sms / np.median(clocks))
    name = "attention.bfloat16.kv_bytes_per_clock"
    sizes = len(device.attention["bfloat16"].head_dims)
    return replaced(device, {name: (float(np.median(rates)),) * sizes}), {
        name: float(np.std(rates))
    }


def fit_attention(device: Device, data: Path) -> tuple[Device, dict[str, float]]:
    """Chunk attention from the growth of a measured stage with its context."""
    file = data / "a100-operators" / "aiconfigurator_a100_stage_llama3-70b_tp2_pp4.csv"
    stage = registry()["llama3-70b"].shard(2, 4)
    peak = device.compute.sms * device.compute.tensor_flops_per_clock * device.clocks.max_mhz
    shares = []
    for (chunk,), rows in pl.read_csv(file).filter(pl.col("B") == 0).group_by("C"):
        ms_per_token = np.polyfit(rows["K"].to_numpy(), rows["ms"].to_numpy(), 1)[0]
        flops = stage.attention_flops_per_pair * float(str(chunk))
        shares.append(flops / (ms_per_token * 1e3) / peak)
    name = "attention.bfloat16.efficiency"
    sizes = len(device.attention["bfloat16"].head_dims)
    return replaced(device, {name: (float(np.mean(shares)),) * sizes}), {
        name: float(np.std(shares))
    }


def fit_latency(device: Device, passes: list[Pass]) -> tuple[Device, dict[str, float]]:
    """Time constants: least squares of log(modelled / measured), all positive.

    A handful of clocks does not tell the bandwidth at every knot: one's own device keeps its file's
    fall with the clock, times a factor at the lowest and one at the highest of the measured clocks,
    or, of fewer than FEW_CLOCKS, one factor.
    """
    knots = device.memory.clocks_mhz
    several = any(cell.stage.tp > 1 for cell in passes)
    start_at = {name: at for name, at in LATENCY.items() if several or name not in ALLREDUCE}
    if device.name in SAME_CHIP:
        sister, start_at = resolve_device(SAME_CHIP[device.name]), {}
        kernels = {name: constant(sister, name) for name in LATENCY if name not in ALLREDUCE}
        device = replaced(device, dict(kernels))

    def build(x: Array) -> Device:
        values = np.exp(x)
        constants: dict[str, object] = dict(zip(start_at, map(float, values), strict=False))
        bandwidth_tbps = values[len(start_at) :]
        if own:
            factors = np.interp(knots, ends_mhz, bandwidth_tbps)
            bandwidth_tbps = factors * device.memory.bandwidth_tbps
        constants["memory.bandwidth_tbps"] = tuple(map(float, bandwidth_tbps))
        return replaced(device, constants)

    def residuals(x: Array) -> Array:
        candidate = build(x)
        parts = []
        for cell in passes:
            power_w = cell.energy_j / cell.latency_ms * 1e3 / cell.stage.tp
            kept = power_w < CAPPED_SHARE * device.power.cap_w
            modelled = pass_ms(candidate, cell.stage, cell.step, cell.clocks_mhz[kept])
            parts.append(np.log(modelled / cell.latency_ms[kept]))
        return np.concatenate(parts)

    own, clocks = device.name not in TABLES, measured_clocks(passes)
    ends_mhz = clocks[[0, -1]] if clocks.size >= FEW_CLOCKS else clocks[:1]
    shares = np.interp(np.linspace(0, 1, len(knots)), np.linspace(0, 1, 5), BANDWIDTH_SHARES)
    start_tbps = np.ones(ends_mhz.size) if own else START_TBPS * shares
    start = np.log([*start_at.values(), *start_tbps])
    upper = np.full(start.size, np.inf)
    if start_at:
        upper[0] = 0.0  # an efficiency
    x = np.minimum(start, upper - 1e-6)
    cost = np.inf
    for _ in range(CYCLES):
        for step in STEPS:
            fit = least_squares(
                residuals, x, bounds=(-np.inf, upper), loss="soft_l1", f_scale=OUTLIER_SCALE,
                diff_step=step, max_nfev=30,
            )  # fmt: skip
            x = fit.x
        if fit.cost > cost * (1 - CONVERGED):
            break
        cost = fit.cost
    names = (*start_at, *(f"memory.bandwidth_tbps[{i}]" for i in range(len(knots))))
    errors = np.exp(fit.x) * _standard_errors(fit.jac, fit.fun)
    if own:
        of_knots = np.interp(knots, ends_mhz, errors[len(start_at) :])
        errors = np.append(errors[: len(start_at)], of_knots * device.memory.bandwidth_tbps)
    return build(fit.x), dict(zip(names, map(float, errors), strict=True))


def measured_clocks(passes: list[Pass]) -> Array:
    """The clocks that the passes ran at, MHz, ascending, those within 15 MHz as one."""
    return 15 * np.unique(np.round(np.concatenate([cell.clocks_mhz for cell in passes]) / 15))


def fit_power(device: Device, passes: list[Pass], data: Path) -> tuple[Device, dict[str, float]]:
    """Power constants from measured power (energy over latency) and from waiting GPUs."""
    ours = device.name == SXM
    idle_mhz, idle_w = read_idle(data) if ours else (np.zeros(0), np.zeros(0))
    uses = []
    for cell in passes:
        step = cell.step
        if device.name in TABLES:
            step = dataclasses.replace(step, decode_context_tokens=0)  # their KV cache lay in L2
        use = utilisation(device, cell.stage, step, cell.clocks_mhz, cell.latency_ms)
        uses.append((cell, use, cell.energy_j / cell.latency_ms * 1e3 / cell.stage.tp))
    readings = sum(cell.clocks_mhz.size for cell in passes)
    idle_weight = np.sqrt(IDLE_WEIGHT * readings / max(1, idle_mhz.size))
    if device.name in TABLES:  # other GPUs keep the knee of their file
        knee = {"power.knee_ghz": KNEE, "power.knee_width_ghz": KNEE_WIDTH_GHZ}
        device = replaced(device, dict(knee))
    # What one table cannot tell apart stays: a waiting GPU's clock tree, links and all-reduces.
    others = ("power.clock_w_per_ghz", "power.link_w", "power.reduce_idle_share")
    left_out = () if ours else others
    if measured_clocks(passes).size < FEW_CLOCKS:
        left_out += ("power.floor_w", "power.voltage_slope_per_ghz")
    start_at = {name: at for name, at in POWER.items() if name not in left_out}

    def build(x: Array) -> Device:
        return replaced(device, dict(zip(start_at, map(float, x), strict=True)))

    def residuals(x: Array) -> Array:
        candidate = build(x)
        cap_w = candidate.power.cap_w
        parts = [
            np.log(np.minimum(running_w(candidate, cell.clocks_mhz, use), cap_w) / power_w)
            for cell, use, power_w in uses
        ]
        return np.concatenate(
            [*parts, idle_weight * np.log(waiting_w(candidate, idle_mhz) / idle_w)]
        )

    start = np.array(list(start_at.values()))
    most = np.where(np.isin(list(start_at), SHARES), 1.0, np.inf)
    fit = least_squares(
        residuals, start, bounds=(0.0, most), x_scale=np.maximum(start, 0.1), loss="soft_l1",
        f_scale=OUTLIER_SCALE,
    )  # fmt: skip
    return build(fit.x), dict(
        zip(start_at, map(float, _standard_errors(fit.jac, fit.fun)), strict=True)
    )


def read_idle(data: Path) -> tuple[Array, Array]:
    """Clocks, MHz, and watts of an A100 SXM that waits with its clock locked."""
    idle = (
        pl.read_csv(
            data / "a100-dvfs-spec" / "steady_state_from_raw_dcgm.csv", infer_schema_length=None
        )
        .filter(pl.col("n_idle_clk") > 0)
        .group_by("f")
        .agg(pl.col("P_idle_clk").median())
        .sort("f")
    )
    return idle["f"].to_numpy().astype(np.float64), idle["P_idle_clk"].to_numpy()


def _standard_errors(jacobian: Array, residuals: Array) -> Array:
    freedom = residuals.size - jacobian.shape[1]
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * float(residuals @ residuals) / freedom
    return np.sqrt(np.diag(covariance))


def fit(device: Device, passes: list[Pass], data: Path) -> tuple[Device, dict[str, float]]:
    """All constants, and the standard error of each."""
    attention: dict[str, float] = {}
    if device.name == SXM:
        device, attention = fit_attention(device, data)
    cached_kv: dict[str, float] = {}
    if device.name in TABLES:  # BEAM's own caches are separate ones
        device, cached_kv = fit_cached_kv(device, passes)
    device, latency = fit_latency(device, passes)
    device, power = fit_power(device, passes, data)
    return device, attention | cached_kv | latency | power


def report(device: Device, passes: list[Pass], title: str) -> None:
    """MAPE and bias of latency and energy: of all cells, and by context."""
    for context in (None, *sorted({cell.step.decode_context_tokens for cell in passes})):
        latency, energy = [], []
        for cell in passes:
            if context in (None, cell.step.decode_context_tokens):
                result = forward(device, cell.stage, cell.step, cell.clocks_mhz)
                latency.append(result.latency_ms / cell.latency_ms - 1)
                energy.append(result.energy_j / cell.energy_j - 1)
        label = title if context is None else f"    context {context:,}"
        print(f"{label:24} latency {_error(latency)}   energy {_error(energy)}")


def _error(errors: list[Array]) -> str:
    percent = np.concatenate(errors) * 100
    return f"{np.abs(percent).mean():5.2f} % (bias {percent.mean():+5.2f})"


def values_of(device: Device) -> dict[str, float]:
    """Every fitted constant by name."""
    values = {name: constant(device, name) for name in FIXED + tuple(LATENCY)}
    for i, value in enumerate(device.memory.bandwidth_tbps):
        values[f"memory.bandwidth_tbps[{i}]"] = value
    return values | {name: constant(device, name) for name in POWER}


def held_out(device: Device, passes: list[Pass], data: Path) -> None:
    """Fit on part of the passes, report on the rest."""
    models = sorted({cell.model for cell in passes})
    parts = {model: [cell for cell in passes if cell.model == model] for model in models}
    if len(models) == 1:
        batches = sorted({cell.step.tokens for cell in passes})
        parts = {
            f"every third batch from {batches[i]}": [
                cell for cell in passes if cell.step.tokens in batches[i::3]
            ]
            for i in range(3)
        }
    for name, apart in parts.items():
        fitted, _ = fit(device, [cell for cell in passes if cell not in apart], data)
        report(fitted, apart, f"held out: {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit a device file to published tables.")
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("device", nargs="?", default=SXM, help="a device, or a device file")
    parser.add_argument("--table", type=Path, action="append", default=[], help="BEAM's tables")
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--held-out", action="store_true", help="fit on part, report on the rest")
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    parser.add_argument("--write", action="store_true", help="write the constants into the file")
    asked = parser.parse_args()
    if not asked.table and asked.device not in TABLES:
        print(f"error: no tables of {asked.device}\nhint: --table TABLE", file=sys.stderr)
        return 2
    if not asked.table and not (asked.data / "measured-a100").is_dir():
        print(f"error: no measured-a100 in {asked.data}\nhint: --data", file=sys.stderr)
        return 2
    try:
        committed = resolve_device(asked.device)
        own = read_beam_tables(asked.table)
    except BeamError as error:
        print(f"error: {error.message}\nhint: {error.hint or '--table TABLE'}", file=sys.stderr)
        return 2
    passes = own or read_tables(asked.data, asked.device)
    if asked.held_out:
        held_out(committed, passes, asked.data)
        return 0
    device, errors = fit(committed, passes, asked.data)
    drifted = []
    for name, value in values_of(device).items():
        was = values_of(committed)[name]
        error = f"± {errors[name]:8.2g}" if name in errors else "  not fitted"
        print(f"{name:36} {value:10.4g}  {error}   committed {was:.4g}")
        if was and abs(value / was - 1) > 0.02:
            drifted.append(name)
    for model in dict.fromkeys(cell.model for cell in passes):
        report(device, [cell for cell in passes if cell.model == model], model)
    if asked.write:
        shipped = Path(__file__).parents[1] / "beamprof" / "devices" / f"{asked.device}.toml"
        path = Path(asked.device) if asked.device.endswith(".toml") else shipped
        sections = ["memory", "launch", "compute", "gemm.bfloat16", "attention.bfloat16", "power"]
        write_constants(path, device, [*sections, "allreduce"])
    if asked.check and drifted:
        print(f"not as committed: {', '.join(drifted)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
