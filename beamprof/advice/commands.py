"""A setting of the ladder in words, and what a person types for it."""

from dataclasses import dataclass

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo

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
    name: str, setting: Setting, today: Setting, table: PerfTable, slo: Slo
) -> tuple[str, ...]:
    """What to type for a rung; nothing where it sets what is set already.

    Args:
        name: of the rung.
        setting: what it sets.
        today: how the server runs now, at its highest clock.
        table: whose model, layout and GPUs.
        slo: what BEAM is to keep.
    """
    if setting.clock_mhz is None:
        return _beam(setting, table, slo)
    gpus = ",".join(map(str, range(table.tp * table.pp)))
    lower = setting.clock_mhz != today.clock_mhz
    lock = f"sudo nvidia-smi -i {gpus} -lgc {setting.clock_mhz},{setting.clock_mhz}"
    undo = f"sudo nvidia-smi -i {gpus} -rgc   # to undo it"
    flags = name == FLAGS and (setting.chunk_tokens, setting.max_num_seqs) != (
        today.chunk_tokens, today.max_num_seqs,
    )  # fmt: skip
    return (
        *([lock] if lower else []),
        *([f"vllm serve MODEL{_layout(table)}{_steps(setting)}"] if flags else []),
        *([undo] if lower else []),
    )


def _beam(setting: Setting, table: PerfTable, slo: Slo) -> tuple[str, ...]:
    lines = [
        'table = "table.parquet"', 'policy = "observe"', "[slo]", *_slo(slo), "[clock]",
        f"gpus = {list(range(table.tp * table.pp))}",
    ]  # fmt: skip
    written = "".join(f"{line}\\n" for line in lines)
    return (
        "pip install .   # a checkout of BEAM, into vLLM's environment",
        f"beam profile --model {table.model} --tp {table.tp} --pp {table.pp} "
        "-o table.parquet   # on the server",
        f"printf '{written}' > beam.toml",
        f"BEAM_CONFIG=$PWD/beam.toml vllm serve MODEL{_layout(table)}{_steps(setting)} "
        "--scheduler-cls beam_runtime.engines.vllm.make_scheduler",
        "BEAM_POLICY=steer ...   # the same, once its predictions have held for a day",
    )


def _slo(slo: Slo) -> list[str]:
    """The lines of beam.toml that promise what was asked for."""
    named = {
        "ttft_ms": slo.ttft_ms, "tbt_ms": slo.tbt_ms, "tpot_ms": slo.tpot_ms, "e2e_ms": slo.e2e_ms,
        "tbt_share": None if slo.tbt_share == 1.0 else slo.tbt_share,
        "least_tokens_per_s": slo.least_tokens_per_s, "max_slowdown": slo.max_slowdown,
    }  # fmt: skip
    return [f"{name} = {value:.12g}" for name, value in named.items() if value is not None]


def _layout(table: PerfTable) -> str:
    sizes = (("--tensor-parallel-size", table.tp), ("--pipeline-parallel-size", table.pp))
    return "".join(f" {flag} {size}" for flag, size in sizes if size > 1)


def _steps(setting: Setting) -> str:
    return f" --max-num-batched-tokens {setting.chunk_tokens} --max-num-seqs {setting.max_num_seqs}"
