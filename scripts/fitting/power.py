"""Fit power constants to operators whose power was measured (rows of 0.2 ms and more).

Dense GEMMs and attention are fitted. Routed experts are held out, all of them: half their rows sit
at the limit, and among the others one shape reads 145 W at 0.28 ms and 434 W at 0.31. The clock in
force is not recorded: below the limit it is the highest, at the limit the power is the
limit. A sample that was taken while the power still rose reads low; the robust loss leaves it out.
"""

from collections.abc import Sequence

import numpy as np
from fitting.operators import Rows
from fitting.sections import replaced
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array
from beamprof.devices.power import Utilisation, running_w

POWER = {  # constant: start, least, most
    "busy_w_per_ghz": (20.0, 0.5, 150.0),
    "tensor_w_per_ghz": (100.0, 1.0, 500.0),
    "memory_w_per_tbps": (80.0, 10.0, 250.0),
    "attention_share": (0.3, 0.01, 1.0),
}
NOT_FITTED = ("MoE",)
SAMPLE = 1500
OUTLIER_SCALE = 0.1
NEIGHBOURS = 4
LIMIT_SHARE = 0.988  # boards at their limit read 686 to 692 W of 700


def modelled_w(device: Device, rows: Rows, at: np.ndarray) -> Array:
    """Power of rows, held at the limit."""
    assert rows.work is not None
    flops, moved = (column[at] for column in rows.work(device))
    if rows.family == "attention":
        flops = flops * device.power.attention_share
    us = rows.measured_us[at]
    top = np.full(us.size, float(device.clocks.max_mhz))
    peak = device.compute.sms * device.compute.tensor_flops_per_clock * top
    tbps = moved / us / 1e6
    use = Utilisation(
        tensor_share=np.minimum(flops / us / peak, 1.0),
        dram_tbps=np.minimum(tbps, device.memory.bandwidth_tbps[-1] * 1.1),
        dram_share=np.minimum(tbps / device.memory.bandwidth_tbps[-1], 1.0),
        linked=False,
    )
    return np.minimum(running_w(device, top, use), device.power.cap_w * LIMIT_SHARE)


def fit_power(device: Device, families: list[Rows], names: Sequence[str] = tuple(POWER)) -> Device:
    """Least squares of log(modelled / measured) power over rows that are not held out."""
    families = [rows for rows in families if rows.family not in NOT_FITTED]
    rng = np.random.default_rng(0)
    samples = [rng.permutation(np.flatnonzero(~rows.held_out))[:SAMPLE] for rows in families]

    def build(x: Array) -> Device:
        return replaced(device, "power", dict(zip(names, map(float, np.exp(x)), strict=True)))

    def residuals(x: Array) -> Array:
        built = build(x)
        parts = [
            np.log(modelled_w(built, rows, at) / rows.power_w[at])  # type: ignore[index]
            for rows, at in zip(families, samples, strict=True)
        ]
        return np.concatenate(parts)

    start, least, most = np.log(np.array([POWER[name] for name in names])).T
    best = least_squares(
        residuals, start, bounds=(least, most), loss="soft_l1", f_scale=OUTLIER_SCALE
    )
    return build(best.x)


def power_errors(device: Device, rows: Rows) -> Array:
    """Modelled over measured power less 1, of every row."""
    return np.asarray(modelled_w(device, rows, np.arange(rows.measured_us.size)) / rows.power_w - 1)


def neighbour_errors(device: Device, rows: Rows) -> Array:
    """The median of the rows nearest in FLOPs, bytes and time, less 1: how far readings themselves
    go with these three, which are all that a law of power is given.
    """
    assert rows.work is not None
    assert rows.power_w is not None
    columns = np.log(np.stack([*rows.work(device), rows.measured_us], axis=1))
    _, nearest = cKDTree(columns).query(columns, k=NEIGHBOURS + 1)
    return np.asarray(np.median(rows.power_w[nearest[:, 1:]], axis=1) / rows.power_w - 1)
