"""A beam.toml held against this machine and its own table, before an engine is started with it."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from beam_runtime.clocks.gpu_identity import is_pci_address, normal_pci_address
from beam_runtime.clocks.layout import check_model
from beam_runtime.clocks.places import node_of
from beam_runtime.control.decision_log import read_log
from beam_runtime.engines.config import POLICY_VARIABLE, EmbeddedConfig, EmbeddedPolicy
from beam_runtime.errors import BeamError
from beam_runtime.search.slowdown import out_of_reach
from beam_runtime.search.stance import stance_for
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo
from beamprof.doctor.checks import Check
from beamprof.doctor.gpus import Gpu
from beamprof.slo import slo_text


def config_checks(path: Path, gpus: Sequence[Gpu]) -> tuple[Check, ...]:
    """What an engine with this file would do, and what stands in its way. Nothing is set.

    Args:
        path: the file; relative names in it are beside it.
        gpus: those that are here.

    Raises:
        BeamError: it cannot be read, or has a field that is not understood.
    """
    asked = os.environ.get(POLICY_VARIABLE)
    config = EmbeddedConfig.load(path, asked)
    by = f" (by {POLICY_VARIABLE})" if asked else ""
    found = [Check("policy", None, f"{_POLICIES[str(config.policy)]}{by}")]
    if config.policy is EmbeddedPolicy.OFF:  # nothing else is looked at by an engine either
        return tuple(found)
    table, first = _table(config)
    found.append(first)
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        lambda: _slos(config, table),
        lambda: _gpus(config, table, gpus),
        lambda: _log(config),
        lambda: _metrics(config),
    )
    for part in parts:
        found += part()
    return tuple(found)


_POLICIES = {
    "off": "off: the engine is left alone",
    "observe": "observe: BEAM predicts and logs, and touches nothing",
    "steer": "steer: BEAM sets its knobs",
}


def _table(config: EmbeddedConfig) -> tuple[PerfTable | None, Check]:
    if config.table is None:
        return None, Check("table", False, "none is named", 'table = "FILE.parquet" at the top')
    try:
        table = PerfTable.load(config.table)
        StepCost.from_table(table)
    except BeamError as error:
        return None, Check("table", False, error.message, error.hint or "beam table check FILE")
    return table, Check(
        "table", True,
        f"{table.model} tp{table.tp} pp{table.pp} on {table.device}, {' and '.join(table.sources)}",
    )  # fmt: skip


def _slos(config: EmbeddedConfig, table: PerfTable | None) -> Iterator[Check]:
    if table is None:
        return
    cost = with_idle_power(StepCost.from_table(table), config.idle_power_w, lambda text: None)
    limits = EngineLimits(pp=table.pp, host_gap_ms=table.host_gap_ms)
    promised: dict[str, Slo] = {"slo": config.slo}
    promised |= {f"slo.{name}": slo for name, slo in config.classes.items()}
    for name, slo in promised.items():
        hopeless = stance_for(cost, limits, slo).hopeless
        if floor := out_of_reach(cost, limits, slo):
            yield Check(f"{name}.least_tokens_per_s", None, floor, "ask for fewer")
        yield Check(
            name, not hopeless, slo_text(slo) + (f": {hopeless}" if hopeless else ""),
            "promise more time, or serve on faster GPUs" if hopeless else "",
        )  # fmt: skip


def _gpus(config: EmbeddedConfig, table: PerfTable | None, gpus: Sequence[Gpu]) -> Iterator[Check]:
    if not config.gpus:
        yield Check("clock", None, "no GPU is named: clocks stay as they are",
                    "gpus = [...] under [clock], all of the replica")  # fmt: skip
        return
    known = {
        name: gpu for gpu in gpus for name in (gpu.uuid, gpu.index, gpu.pci_address) if name != ""
    }
    named = [(gpu, known.get(_normal(gpu))) for gpu in config.gpus if not node_of(gpu)]
    missing = [str(name) for name, gpu in named if gpu is None]
    here = [gpu for _, gpu in named if gpu is not None]
    elsewhere = [gpu for gpu in config.gpus if node_of(gpu)]
    sliced = [gpu for gpu in here if gpu.mig]
    if missing:
        yield Check("clock", False, f"GPUs not on this machine: {', '.join(missing)}",
                    "nvidia-smi -L lists them")  # fmt: skip
    elif len({gpu.index for gpu in here}) < len(here) or len(set(elsewhere)) < len(elsewhere):
        yield Check("clock", False, "a GPU is named twice", "name each once")
    elif sliced:
        yield Check("clock", False, f"GPU {sliced[0].index} is cut into MIG slices",
                    f"nvidia-smi -i {sliced[0].index} -mig 0, or name no GPUs")  # fmt: skip
    else:
        yield Check("clock", True, _gpu_count(len(config.gpus)))
    if table is not None:
        try:
            names = [gpu.name for gpu in here if gpu.name]
            check_model(names, table.metadata.get("gpu_name", ""), table.device)
        except BeamError as error:
            yield Check("GPUs", False, error.message, error.hint or "")
    if table is not None and len(config.gpus) != table.tp * table.pp:
        yield Check(
            "GPUs",
            False,
            f"{_gpu_count(len(config.gpus))} named, the table is for {table.tp * table.pp} "
            f"(tp {table.tp} x pp {table.pp})",
            "name every GPU of one replica",
        )


def _normal(gpu: str | int) -> str | int:
    """The name as the driver has it: a PCI address may be written in several ways."""
    return normal_pci_address(gpu) if isinstance(gpu, str) and is_pci_address(gpu) else gpu


def _gpu_count(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def _log(config: EmbeddedConfig) -> Iterator[Check]:
    if config.log is None:
        yield Check("log", None, "no decision log is kept", 'log = "decisions.jsonl"')
        return
    trouble, remedy = _log_trouble(config.log)
    yield Check("log", not remedy, f"{config.log}{trouble}", remedy)


def _log_trouble(log: Path) -> tuple[str, str]:
    """Why no controller could go on with this log, and what helps; both empty where one could."""
    if "\0" in str(log):
        return ": no file has such a name", "name another file"
    if log.is_dir():
        return " is a folder", f'name a file in it: log = "{log / "decisions.jsonl"}"'
    for needed in (log.parent, *([log] if log.exists() else [])):
        if not os.access(needed, os.W_OK):
            return "", f"make {needed} writable"
    if log.is_file() and log.stat().st_size:
        try:
            next(read_log(log), None)
        except BeamError as error:
            return f": {error.message}", "name another file"
    return "", ""


def _metrics(config: EmbeddedConfig) -> Iterator[Check]:
    if config.metrics_port is None:
        yield Check("metrics", None, "served nowhere", "metrics_port = 9464")
        return
    where = f"{config.metrics_address}:{config.metrics_port}"
    try:
        token = config.read_token()
    except BeamError as error:
        yield Check("metrics", False, error.message, error.hint or "see that it can be read")
        return
    if trouble := _unserved(config.metrics_address, config.metrics_port):
        yield Check("metrics", None, f"{where}: {trouble}, nothing would be served there",
                    "another metrics_port or metrics_address")  # fmt: skip
    elif token:
        yield Check("metrics", True, f"{where}, changes with a token")
    elif ip_address(config.metrics_address).is_loopback:
        yield Check("metrics", True, f"{where}, changes without a token")
    else:
        yield Check("metrics", True, f"{where}, no changes: no token is configured")


def _unserved(address: str, port: int) -> str:
    """Why nobody could listen there now; empty where one could."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address, port))
    except OSError as error:
        return error.strerror or str(error)
    return ""
