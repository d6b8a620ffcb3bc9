"""A setting of the ladder in words, and what a person types for it."""

from dataclasses import dataclass
from shlex import quote

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.devices.assumed import NODE_GPUS
from beamprof.models.registry import registry_name

AS_IT_IS, ONE_CLOCK, FLAGS, BEAM = "as it is", "one clock", "vLLM's flags", "BEAM"


@dataclass(frozen=True, slots=True)
class Setting:
    """Clock, chunk and most sequences; the clock is None where BEAM chooses."""

    clock_mhz: int | None
    chunk_tokens: int
    max_num_seqs: int


def setting_words(setting: Setting, table: PerfTable) -> str:
    """`510 MHz, chunk 512, 256 sequences`."""
    if setting.clock_mhz is None:
        return "clock, chunk, microbatches and pace at each event"
    highest = setting.clock_mhz == table.clocks_mhz[-1]
    clock = "highest clock" if highest else f"{setting.clock_mhz} MHz"
    return f"{clock}, chunk {setting.chunk_tokens:,}, {setting.max_num_seqs:,} sequences"


def commands(
    name: str, setting: Setting, today: Setting, table: PerfTable, slo: Slo, model: str = ""
) -> tuple[str, ...]:
    """What to type for a rung; nothing where it sets what is set already.

    Args:
        name: of the rung.
        setting: what it sets.
        today: how the server runs now, at its highest clock.
        table: whose model, layout and GPUs.
        slo: what BEAM is to keep.
        model: what `beam profile` is told of it; empty: the table's name.
    """
    if setting.clock_mhz is None:
        return _beam(setting, table, slo, model)
    nodes = _gpus(table) > NODE_GPUS
    gpus = "" if nodes else f" -i {','.join(map(str, range(_gpus(table))))}"
    where = "   # on each node" if nodes else ""
    lower = setting.clock_mhz != today.clock_mhz
    lock = f"sudo nvidia-smi{gpus} -lgc {setting.clock_mhz},{setting.clock_mhz}{where}"
    undo = f"sudo nvidia-smi{gpus} -rgc   # to undo it{', on each node' if nodes else ''}"
    flags = name == FLAGS and (setting.chunk_tokens, setting.max_num_seqs) != (
        today.chunk_tokens, today.max_num_seqs,
    )  # fmt: skip
    return (
        *([lock] if lower else []),
        *([f"vllm serve MODEL{_layout(table)}{_steps(setting)}"] if flags else []),
        *([undo] if lower else []),
    )


def _beam(setting: Setting, table: PerfTable, slo: Slo, model: str) -> tuple[str, ...]:
    if _several(table, "dp"):
        return ("# BEAM does not steer the engines of a data-parallel group together",)
    nodes = _gpus(table) > NODE_GPUS
    gpus = [] if nodes else list(range(_gpus(table)))
    lines = [
        'table = "table.parquet"', 'policy = "observe"', "[slo]", *_slo(slo), "[clock]",
        f"gpus = {gpus}",
    ]  # fmt: skip
    written = "".join(f"{line}\\n" for line in lines)
    return (
        "pip install .   # a checkout of BEAM, into vLLM's environment",
        _profile(table, model),
        f"printf '{written}' > beam.toml",
        *(["# several nodes: [clock.nodes] names their GPUs, docs/vllm.md says how"] * nodes),
        f"BEAM_CONFIG=$PWD/beam.toml vllm serve MODEL{_layout(table)}{_steps(setting)} "
        "--scheduler-cls beam_runtime.engines.vllm.make_scheduler",
        "BEAM_POLICY=steer ...   # the same, once its predictions have held for a day",
    )


def _profile(table: PerfTable, model: str) -> str:
    """What measures such a table. A name that only its own folder knows cannot be typed."""
    named = model or table.model
    known = model or registry_name(table.model) is not None
    where = "on the server" + ("" if known else f"; DIR holds the config.json of {named}")
    experts = "".join(f" --ep {count}" for count in filter(None, [_several(table, "ep")]))
    return (
        f"beam profile --model {quote(named) if known else 'DIR'} --tp {table.tp} --pp {table.pp}"
        f"{experts}{_kv_cache(table)} -o table.parquet   # {where}"
    )


def _gpus(table: PerfTable) -> int:
    return table.tp * table.pp * (_several(table, "dp") or 1)


def _several(table: PerfTable, key: str) -> int | None:
    """Who shares a layer's experts: ``ep`` GPUs, ``dp`` groups; None where it is not several."""
    text = table.metadata.get(key) or ""
    return int(text) if text.isdecimal() and int(text) > 1 else None


def _kv_cache(table: PerfTable) -> str:
    """The flag of `beam profile` and of vLLM, where the cache has a format of its own."""
    precision = table.model_shape.get("precision")
    kept = precision.get("kv") if isinstance(precision, dict) else None
    usual = table.model_shape.get("dtype")
    return f" --kv-cache-dtype {quote(str(kept))}" if kept and usual and kept != usual else ""


def _slo(slo: Slo) -> list[str]:
    """The lines of beam.toml that promise what was asked for."""
    named = {
        "ttft_ms": slo.ttft_ms, "tbt_ms": slo.tbt_ms, "tpot_ms": slo.tpot_ms, "e2e_ms": slo.e2e_ms,
        "tbt_share": None if slo.tbt_share == 1.0 else slo.tbt_share,
        "least_tokens_per_s": slo.least_tokens_per_s, "max_slowdown": slo.max_slowdown,
    }  # fmt: skip
    return [f"{name} = {value:.12g}" for name, value in named.items() if value is not None]


def _layout(table: PerfTable) -> str:
    sizes = (
        ("--tensor-parallel-size", table.tp), ("--pipeline-parallel-size", table.pp),
        ("--data-parallel-size", _several(table, "dp") or 1),
    )  # fmt: skip
    split = "".join(f" {flag} {size}" for flag, size in sizes if size > 1)
    experts = " --enable-expert-parallel" if _several(table, "ep") else ""
    return f"{split}{experts}{_kv_cache(table)}"


def _steps(setting: Setting) -> str:
    return f" --max-num-batched-tokens {setting.chunk_tokens} --max-num-seqs {setting.max_num_seqs}"
