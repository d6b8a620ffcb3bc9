"""A beam.toml held against this machine and its own table, before an engine is started with it."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from beam_runtime.clocks.places import node_of
from beam_runtime.control.decision_log import read_log
from beam_runtime.engines.config import EmbeddedConfig
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
    config = EmbeddedConfig.load(path)
    table, first = _table(config)
    found = [Check("policy", None, _POLICIES[str(config.policy)]), first]
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
    here = [gpu for gpu in config.gpus if not node_of(gpu)]
    known = {gpu.uuid for gpu in gpus} | {gpu.index for gpu in gpus}
    missing = [str(gpu) for gpu in here if gpu not in known]
    if missing:
        yield Check("clock", False, f"GPUs not on this machine: {', '.join(missing)}",
                    "nvidia-smi -L lists them")  # fmt: skip
    elif len(set(config.gpus)) < len(config.gpus):
        yield Check("clock", False, "a GPU is named twice", "name each once")
    else:
        yield Check("clock", True, _gpu_count(len(config.gpus)))
    if table is not None and len(config.gpus) != table.tp * table.pp:
        yield Check(
            "GPUs",
            False,
            f"{_gpu_count(len(config.gpus))} named, the table is for {table.tp * table.pp} "
            f"(tp {table.tp} x pp {table.pp})",
            "name every GPU of one replica",
        )


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
    yield Check("metrics", True, f"{where}, changes {'with' if token else 'without'} a token")
