"""Fit one section of a device file to rows, and write constants into the file."""

import dataclasses
import re
from pathlib import Path

import numpy as np
from fitting.operators import MIN_US, Rows
from scipy.optimize import least_squares

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array

SAMPLE = 2500  # rows of each family and format in one fit
SHORT_WEIGHT = 0.5  # of rows that are mostly launch: a decode of few tokens is a sum of such
OUTLIER_SCALE = 0.1  # relative errors beyond count linearly, not squared


def replaced(device: Device, section: str, values: dict[str, object]) -> Device:
    """The device with constants of one section ("memory", "gemm.fp8") replaced."""
    room, _, form = section.partition(".")
    if not form:
        part = dataclasses.replace(getattr(device, room), **values)
        return dataclasses.replace(device, **{room: part})
    kernels = dict(getattr(device, room))
    kernels[form] = dataclasses.replace(kernels[form], **values)
    return dataclasses.replace(device, **{room: kernels})


def values_of(device: Device, section: str) -> dict[str, object]:
    """A section's constants."""
    room, _, form = section.partition(".")
    part = getattr(device, room)
    return dataclasses.asdict(part[form] if form else part)


def fit_section(device: Device, section: str, families: list[Rows], bandwidth: bool) -> Device:
    """Least squares of log(modelled / measured) over the rows that are not held out.

    A constant that is a tuple (efficiency by head size) is fitted entry by entry. ``bandwidth``:
    the DRAM bandwidth is fitted as well, all its knots by one factor.
    """
    bounds: dict[str, tuple[float, float, float]] = {}
    for rows in families:
        bounds |= rows.constants
    if not bounds:
        return device
    current = values_of(device, section)
    names = [
        (name, i)
        for name in bounds
        for i in range(len(current[name]) if isinstance(current[name], tuple) else 1)  # type: ignore[arg-type]
    ]
    rng = np.random.default_rng(0)
    samples = []
    for rows in families:
        fitted = np.flatnonzero(~rows.held_out)
        samples.append(rng.permutation(fitted)[:SAMPLE])
    knots = np.array(device.memory.bandwidth_tbps)

    def build(x: Array) -> Device:
        values: dict[str, object] = {}
        for (name, i), value in zip(names, np.exp(x[: len(names)]), strict=True):
            if isinstance(current[name], tuple):
                entries = list(values.get(name, current[name]))  # type: ignore[call-overload]
                entries[i] = float(value)
                values[name] = tuple(entries)
            else:
                values[name] = float(value)
        built = replaced(device, section, values)
        if bandwidth:
            scaled = tuple(map(float, knots / knots[-1] * np.exp(x[-1])))
            built = replaced(built, "memory", {"bandwidth_tbps": scaled})
        return built

    def residuals(x: Array) -> Array:
        built = build(x)
        return np.concatenate([
            np.log(rows.predict(built, at) / rows.measured_us[at])
            * np.where(rows.measured_us[at] < MIN_US, SHORT_WEIGHT, 1.0)
            for rows, at in zip(families, samples, strict=True)
        ])  # fmt: skip

    triples = [bounds[name] for name, _ in names]
    if bandwidth:
        top = float(knots[-1])
        triples.append((top, top * 0.6, top * 1.3))
    start, least, most = np.log(np.array(triples)).T
    best = least_squares(
        residuals, start, bounds=(least, most), loss="soft_l1", f_scale=OUTLIER_SCALE,
        diff_step=1e-2, max_nfev=40,
    )  # fmt: skip
    return build(best.x)


def errors(device: Device, rows: Rows) -> Array:
    """Modelled over measured less 1, of every row."""
    everything = np.arange(rows.measured_us.size)
    parts = [
        rows.predict(device, at) for at in np.array_split(everything, 1 + everything.size // 4000)
    ]
    return np.asarray(np.concatenate(parts) / rows.measured_us - 1)


def write_constants(path: Path, device: Device, sections: list[str]) -> None:
    """Put the sections' numbers into a device file; comments and order stay as they are."""
    lines = path.read_text("utf-8").splitlines()
    section = ""
    for i, line in enumerate(lines):
        header = re.match(r"\[([\w.]+)\]", line)
        if header:
            section = header[1]
        entry = re.match(r"(\w+) = [^#]*?(\s*#.*)?$", line)
        if not entry or section not in sections:
            continue
        value = values_of(device, section).get(entry[1])
        if value is not None:
            lines[i] = f"{entry[1]} = {_written(value)}{entry[2] or ''}"
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)
