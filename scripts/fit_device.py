"""Fit a device file to measured operators; print every family's error, held-out shapes apart.

    python scripts/fit_device.py h100-sxm             fit, print constants and errors
    python scripts/fit_device.py h100-sxm --errors    errors of the committed file, nothing fitted
    python scripts/fit_device.py mine.toml --operators DIR --write    fit a file of one's own

Operators come in aiconfigurator's form (--operators, default: the system's folder under
../shared/data/operators-aiconfigurator/latency), or in LLMServingSim's, a folder for each model. A
fifth of the shapes is never fitted: by (n, k) of GEMMs, heads of attention, whole models of MoE.
The A100's GEMMs and power are fitted to whole tables instead: scripts/fit_tables.py. Needs scipy
(the test extra).
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from fitting.llmservingsim import read_models
from fitting.operators import KNOTS_BYTES, MIN_US, Rows, allreduce_rows, read_rows
from fitting.power import NEIGHBOURS, NOT_FITTED, POWER, fit_power, neighbour_errors, power_errors
from fitting.rising import rising
from fitting.sections import errors, fit_section, replaced, values_of, write_constants

from beamprof.devices.device import Device, resolve_device
from beamprof.devices.gemm import Array

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "operators-aiconfigurator" / "latency"
SYSTEMS = {
    "h100-sxm": "h100_sxm", "h200-sxm": "h200_sxm", "b200": "b200_sxm", "l40s": "l40s",
    "a100-sxm4-80gb": "a100_sxm",
}  # fmt: skip
# Whole tables decide these of the A100, and, after this script, all-reduces over 2 (fit_tables.py).
FROM_TABLES = {"a100-sxm4-80gb": ("gemm.bfloat16",)}
# Servers decide these of power (fit_servers.py); its start is what operators say of the second and
# third. GEMMs at the limit say nothing of the first.
FROM_SERVERS = {"h200-sxm": ("tensor_w_per_ghz", "busy_w_per_ghz", "memory_w_per_tbps")}


def fit_operators(device: Device, families: list[Rows], skipped: tuple[str, ...]) -> Device:
    """Section by section; bf16's GEMMs with the DRAM bandwidth, which the others rest on."""
    sections = defaultdict(list)
    for rows in families:
        sections[rows.section].append(rows)
    first = ("gemm.bfloat16",)  # with it comes the bandwidth
    for section in sorted(sections, key=lambda name: name not in first):
        members = sections[section]
        if section in skipped:
            continue
        if section == "allreduce":
            device = fit_allreduce(device, members[0])
            continue
        device = fit_section(device, section, members, bandwidth=section == "gemm.bfloat16")
        print(f"fitted {section}", file=sys.stderr)
    return device


def fit_allreduce(device: Device, rows: Rows) -> Device:
    """The knots are measured rows that are not held out, made never to fall with size."""
    assert rows.knots is not None
    values: dict[str, object] = {"message_bytes": KNOTS_BYTES}
    for gpus, measured in rows.knots.items():
        values[f"us_{gpus}"] = tuple(map(float, rising(np.interp(KNOTS_BYTES, *measured))))
    return replaced(device, "allreduce", values)


def report(device: Device, families: list[Rows]) -> dict[str, tuple[float, float, int]]:
    """MAPE of every family: rows fitted, rows held out."""
    by_family: dict[str, list[tuple[Array, np.ndarray]]] = defaultdict(list)
    on_a_node: list[tuple[Array, np.ndarray]] = []
    for rows in families:
        long = rows.measured_us >= MIN_US
        every = np.abs(errors(device, rows))
        error, held = every[long], rows.held_out[long]
        if not error.size:
            continue
        by_family[rows.family].append((error, held))
        if rows.of_a_node is not None:
            on_a_node.append((error[rows.of_a_node[long]], held[rows.of_a_node[long]]))
        print(
            f"  {rows.family:12} {rows.section:20} {error.size:6} rows   fitted "
            f"{_mean(error[~held])}   held out {_mean(error[held])}   "
            f"median {np.median(error):5.1%}   shorter rows {_mean(every[~long])}"
        )
    print()
    found, everything = {}, []
    for family, parts in by_family.items():
        error = np.concatenate([e for e, _ in parts])
        held = np.concatenate([h for _, h in parts])
        everything.append(error)
        found[family] = (float(error[~held].mean()), float(error[held].mean()), error.size)
        print(
            f"{device.name} {family:12} {error.size:7} rows of 20 us and more   MAPE fitted "
            f"{_mean(error[~held])}   held out {_mean(error[held])}"
        )
    if on_a_node:
        error, held = (np.concatenate(column) for column in zip(*on_a_node, strict=True))
        print(
            f"{device.name} {'- on a node':12} {error.size:7} rows of MoE on 8 GPUs at most   MAPE "
            f"fitted {_mean(error[~held])}   held out {_mean(error[held])}"
        )
    print(f"{device.name} {'all':12} {sum(e.size for e in everything):7} rows   MAPE "
          f"{np.concatenate(everything).mean():.1%}")  # fmt: skip
    return found


def power(device: Device, folder: Path, asked: argparse.Namespace) -> int:
    """Fit and report the power constants."""
    families = [rows for rows in read_rows(folder, with_power=True) if rows.work is not None]
    families = [r for r in families if r.power_w is not None and _has_section(device, r.section)]
    if not families:
        print(f"error: no powers in {folder}\nhint: --operators DIR", file=sys.stderr)
        return 2
    if not asked.errors:
        kept = FROM_SERVERS.get(device.name, ())
        for given in (kept[:1], kept) if kept else ((),):
            names = [name for name in POWER if name not in given]
            fitted = fit_power(device, families, names)
            print({name: _short(values_of(fitted, "power")[name]) for name in names})
        device = fitted
        if asked.write:
            write_constants(_file_of(asked.device), device, ["power"])
    every = []
    for rows in families:
        error = np.abs(power_errors(device, rows))
        near = np.abs(neighbour_errors(device, rows))
        held = rows.held_out | (rows.family in NOT_FITTED)
        every.append((error, held, near))
        print(
            f"  power {rows.section:20} {error.size:6} rows   fitted "
            f"{_mean(error[~held])}   held out {_mean(error[held])}   "
            f"median {np.median(error):5.1%}   neighbours {near.mean():5.1%}"
        )
    error, held, near = (np.concatenate(column) for column in zip(*every, strict=True))
    print(f"{device.name} power of operators of 0.2 ms and more: MAPE fitted "
          f"{error[~held].mean():.1%}, held out {_mean(error[held])}; the {NEIGHBOURS} rows "
          f"nearest in FLOPs, bytes and time tell each row to {near.mean():.1%}")  # fmt: skip
    return 0


def _file_of(device: str) -> Path:
    shipped = Path(__file__).parents[1] / "beamprof" / "devices" / f"{device}.toml"
    return Path(device) if device.endswith(".toml") else shipped


def _mean(error: Array) -> str:
    return f"{error.mean():6.1%}" if error.size else "     -"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit a device file to measured operators.")
    parser.add_argument("device", help="a device that ships, or a device file")
    parser.add_argument("--operators", type=Path, help="folder of operators")
    parser.add_argument("--errors", action="store_true", help="fit nothing")
    parser.add_argument("--only", help="one section, e.g. gemm.fp8")
    parser.add_argument("--power", action="store_true", help="power, from a folder that has it")
    parser.add_argument("--write", action="store_true", help="write the constants into the file")
    asked = parser.parse_args()
    folder = asked.operators or DATA / SYSTEMS.get(asked.device, asked.device)
    if asked.device == "rtx-pro-6000" and not asked.operators:
        folder = DATA.parents[1] / "served-rtxpro6000"
    if not folder.is_dir():
        print(f"error: no operators in {folder}\nhint: --operators DIR", file=sys.stderr)
        return 2
    device = resolve_device(asked.device)
    if asked.power:
        return power(device, folder, asked)
    several = list(folder.glob("*/operators_meta.yaml"))  # LLMServingSim's, a folder for a model
    families = read_models(folder) if several else [*read_rows(folder), *allreduce_rows(folder)]
    families = [rows for rows in families if _has_section(device, rows.section)]
    if asked.only:
        families = [rows for rows in families if rows.section.startswith(asked.only)]
    if not families:
        print(f"error: {folder} holds no family that {device.name} has", file=sys.stderr)
        return 2
    if not asked.errors:
        device = fit_operators(device, families, FROM_TABLES.get(device.name, ()))
        sections = sorted({rows.section for rows in families} | {"memory"})
        for section in sections:
            print(section, {k: _short(v) for k, v in values_of(device, section).items()})
        if asked.write:
            write_constants(_file_of(asked.device), device, sections)
    report(device, families)
    return 0


def _has_section(device: Device, section: str) -> bool:
    room, _, form = section.partition(".")
    part = getattr(device, room)
    return part is not None and (not form or form in part)


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
