"""What vLLM's configuration tells BEAM, and whether a table is for this engine."""

from collections.abc import Callable, Mapping
from typing import Any

from beam_runtime.engines.config import EmbeddedConfig, positive
from beam_runtime.engines.vllm.precision import check_precision
from beam_runtime.errors import BeamError, TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.servable import check_servable
from beam_runtime.types import EngineLimits, Slo

# A table's model_shape beside Hugging Face's names for the same numbers.
_SHAPE = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}


_TIMES = ("beam_ttft_ms", "beam_tbt_ms", "beam_tpot_ms", "beam_e2e_ms")


def engine_limits(vllm_config: Any, scheduler: Any, table: PerfTable) -> EngineLimits:
    """The engine's envelope; host gap and transfer as the table measured them."""
    parallel = vllm_config.parallel_config
    sched = vllm_config.scheduler_config
    pp = parallel.pipeline_parallel_size
    asynchronous = bool(getattr(sched, "async_scheduling", False))
    in_flight = getattr(vllm_config, "max_concurrent_batches", pp + (pp == 1 and asynchronous))
    return EngineLimits(
        pp=pp,
        block_size=int(getattr(scheduler, "block_size", vllm_config.cache_config.block_size)),
        max_num_seqs=sched.max_num_seqs,
        max_batched_tokens=min(sched.max_num_batched_tokens, scheduler.max_num_scheduled_tokens),
        max_model_len=vllm_config.model_config.max_model_len,
        long_prefill_token_threshold=sched.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=bool(
            getattr(sched, "long_prefill_token_threshold_adaptive", False)
        ),
        max_steps_in_flight=max(1, int(in_flight)),
        host_gap_ms=_number(table, "host_gap_ms"),
        transfer_ms=_number(table, "stage_transfer_ms"),
    )


def _number(table: PerfTable, key: str) -> float:
    try:
        return max(0.0, float(table.metadata.get(key) or 0.0))
    except ValueError:
        return 0.0


def load_table(config: EmbeddedConfig, vllm_config: Any) -> PerfTable:
    """The table, checked against the engine's layout and model.

    Raises:
        TableError: none named, unusable, or for another model or layout.
        BeamError: the engine's layout is one that tables do not describe.
    """
    if config.table is None:
        raise TableError("the configuration names no table", hint='table = "FILE.parquet"')
    parallel = vllm_config.parallel_config
    if getattr(parallel, "data_parallel_size", 1) > 1:
        raise BeamError(
            "BEAM does not steer the engines of a data-parallel group together",
            hint="serve each replica as an engine of its own",
        )
    table = PerfTable.load(
        config.table, tp=parallel.tensor_parallel_size, pp=parallel.pipeline_parallel_size
    )
    _same_model(table, vllm_config, str(config.table))
    _same_experts(table, parallel, str(config.table))
    check_precision(table, vllm_config, str(config.table))
    check_servable(table, str(config.table))
    return table


def _same_experts(table: PerfTable, parallel: Any, name: str) -> None:
    """Who shares a layer's experts, where the table says that several GPUs do."""
    groups, gpus = table.metadata.get("dp"), table.metadata.get("ep")
    if groups:
        raise TableError(
            f"{name} is of one of {groups} data-parallel groups, and this engine is alone",
            hint="profile the engine as it is, without --dp",
        )
    if gpus and not getattr(parallel, "enable_expert_parallel", False):
        raise TableError(
            f"{name} is of {gpus} GPUs that share the experts whole, and this engine cuts them",
            hint="profile without --ep, or serve with --enable-expert-parallel",
        )


def _same_model(table: PerfTable, vllm_config: Any, name: str) -> None:
    hf = vllm_config.model_config.hf_text_config
    for ours, theirs in _SHAPE.items():
        expected, found = getattr(hf, theirs, None), table.model_shape.get(ours)
        if expected is not None and found is not None and expected != found:
            raise TableError(
                f"{name} is a table for another model: {table.model} with {ours} {found}, "
                f"this engine serves {vllm_config.model_config.model} with {expected}",
                hint="profile this model: beam profile --model MODEL",
            )


def slo_of(
    config: EmbeddedConfig, misunderstood: Callable[[str], None] = lambda what: None
) -> Callable[[Any, Slo], Slo]:
    """What a request was promised: its extra_args name a class, or say it in milliseconds.

    SamplingParams.extra_args is "vllm_xargs" in an HTTP request:
    {"beam_class": "batch"}, {"beam_ttft_ms": 500}, {"beam_tbt_ms": 50}.
    What is not understood counts as the default: a request is never refused for it, and
    ``misunderstood`` is told of it.
    """

    def promised(request: Any, default: Slo) -> Slo:
        extra = getattr(getattr(request, "sampling_params", None), "extra_args", None)
        if not extra:  # the same object for all of them: whoever keeps columns writes it once
            return default
        base = config.classes.get(str(extra.get("beam_class")), default)
        ttft_ms, *streaming = (_milliseconds(extra.get(name)) for name in _TIMES)
        two = len(streaming) - streaming.count(None) > 1
        if two:
            streaming = [None, None, None]
        if what := _misunderstood(config, extra, two=two):
            misunderstood(what)
        tbt_ms, tpot_ms, e2e_ms = streaming
        return base.revised(ttft_ms=ttft_ms, tbt_ms=tbt_ms, tpot_ms=tpot_ms, e2e_ms=e2e_ms)

    return promised


def _misunderstood(config: EmbeddedConfig, extra: Mapping[str, Any], *, two: bool) -> str:
    """What of a request's own promise is none, in words; empty where all is understood."""
    named = extra.get("beam_class")
    if named is not None and str(named) not in (*config.classes, "default"):
        return f"beam_class {named!r:.60}, known: {', '.join(('default', *config.classes))}"
    for name in _TIMES:
        if extra.get(name) is not None and _milliseconds(extra[name]) is None:
            return f"{name} {extra[name]!r:.60}, expected milliseconds above 0"
    return f"more than one of {', '.join(_TIMES[1:])}" if two else ""


def _milliseconds(value: object) -> float | None:
    """A request's own time, which HTTP may bring as text; None for what is none."""
    try:
        return positive(float(value)) if isinstance(value, str) else positive(value)
    except ValueError:
        return None


def class_of(config: EmbeddedConfig, request: Any) -> str:
    """The SLO class that a request is counted in: one of the configuration's, or ``default``."""
    extra = getattr(getattr(request, "sampling_params", None), "extra_args", None) or {}
    name = str(extra.get("beam_class"))
    return name if name in config.classes else "default"
