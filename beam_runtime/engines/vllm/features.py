"""What BEAM needs of the vLLM it finds itself in, told from the attributes that are there.

Versions are not compared: vLLM renames things between any two of them, and people run their
own builds. What is missing is named, and BEAM stays out.
"""

from dataclasses import dataclass
from typing import Any

# Stable from 0.11 to 0.33 (read in the sources of 0.11.2, 0.16.0, 0.24.0, 0.32.0 and 0.33.0).
_SCHEDULER_METHODS = (
    "schedule",
    "update_from_output",
    "add_request",
    "finish_requests",
    "has_requests",
    "shutdown",
)
_SCHEDULER_ATTRIBUTES = ("running", "waiting", "requests", "max_num_scheduled_tokens")
_REQUEST_ATTRIBUTES = (
    "request_id",
    "num_prompt_tokens",
    "num_tokens",
    "num_output_tokens",
    "num_computed_tokens",
    "arrival_time",
)
_STEP_ATTRIBUTES = ("num_scheduled_tokens", "total_num_scheduled_tokens")
_TOKEN_ATTRIBUTES = ("request_id", "new_token_ids", "finish_reason")


@dataclass(frozen=True, slots=True)
class Features:
    """Optional abilities.

    Attributes:
        eligible_step: a request can be hidden for a step by its next_decode_eligible_step
            (0.24 and newer); otherwise it is taken out of the running list for the step.
        pollable: EngineCore can be told to come back in a millisecond while steps are in
            flight; otherwise just-in-time issue is off.
    """

    eligible_step: bool
    pollable: bool


def missing(
    scheduler_class: type, request_class: type, step_class: type, token_class: type
) -> tuple[str, ...]:
    """Names that BEAM needs on these classes and that are not there.

    Args:
        scheduler_class: the one to be hooked.
        request_class: vLLM's Request.
        step_class: what schedule() returns.
        token_class: what update_from_output() says of one request.
    """
    needed = (
        ("Scheduler", scheduler_class, _SCHEDULER_METHODS),
        ("Request", request_class, _REQUEST_ATTRIBUTES),
        ("SchedulerOutput", step_class, _STEP_ATTRIBUTES),
        ("EngineCoreOutput", token_class, _TOKEN_ATTRIBUTES),
    )
    return tuple(
        f"{title}.{name}"
        for title, owner, names in needed
        for name in names
        if not _has_attribute(owner, name)
    )


def missing_on(scheduler: Any) -> tuple[str, ...]:
    """The same for what only an instance has."""
    lost = [f"Scheduler.{name}" for name in _SCHEDULER_ATTRIBUTES if not hasattr(scheduler, name)]
    config = getattr(scheduler, "scheduler_config", None)
    if not hasattr(config, "long_prefill_token_threshold"):
        lost.append("Scheduler.scheduler_config.long_prefill_token_threshold")
    pool = getattr(getattr(scheduler, "kv_cache_manager", None), "block_pool", None)
    if not hasattr(pool, "get_num_free_blocks"):
        lost.append("Scheduler.kv_cache_manager.block_pool.get_num_free_blocks")
    return tuple(lost)


# With kv_role "kv_both" these only move KV blocks to this machine's memory and back. Any other may
# bring them from another engine, where a prompt is none to compute.
LOCAL_CONNECTORS = ("OffloadingConnector", "SimpleCPUOffloadConnector")


def unsupported(vllm_config: Any) -> tuple[str, ...]:
    """Ways of serving that BEAM does not steer, in words."""
    reasons = []
    if getattr(vllm_config, "speculative_config", None) is not None:
        reasons.append("speculative decoding: a step's decodes are more than one token each")
    model = getattr(vllm_config, "model_config", None)
    if getattr(model, "runner_type", "generate") != "generate":
        reasons.append("a pooling model: it decodes nothing")
    if getattr(vllm_config, "diffusion_config", None) or getattr(model, "is_diffusion", False):
        reasons.append("a diffusion model: it does not decode token by token")
    if getattr(model, "is_encoder_decoder", False):
        reasons.append("an encoder-decoder model: tables do not describe its cross-attention")
    sched = getattr(vllm_config, "scheduler_config", None)
    # BEAM's chunk caps a step's tokens: what vLLM does not cut to fit would wait for ever.
    if not getattr(sched, "enable_chunked_prefill", True):
        reasons.append("prompts that are not cut (chunked prefill is off)")
    if getattr(sched, "disable_chunked_mm_input", False) and getattr(
        model, "is_multimodal_model", False
    ):
        reasons.append("images that are not cut (disable_chunked_mm_input)")
    parallel = getattr(vllm_config, "parallel_config", None)
    reasons.extend(
        f"{phase} context parallelism: tables do not describe it"
        for phase in ("decode", "prefill")
        if getattr(parallel, f"{phase}_context_parallel_size", 1) > 1
    )
    if getattr(vllm_config, "ec_transfer_config", None) is not None:
        reasons.append("encoder outputs from another engine")
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    role, connector = getattr(transfer, "kv_role", None), getattr(transfer, "kv_connector", None)
    if role in ("kv_consumer", "kv_producer"):
        reasons.append("prefill and decode on different engines")
    elif role is not None and connector not in LOCAL_CONNECTORS:
        reasons.append(f"KV blocks that may come from another engine ({connector})")
    return tuple(reasons)


def unsupported_on(scheduler: Any) -> tuple[str, ...]:
    """The same, for what only the scheduler knows."""
    if getattr(scheduler, "need_mamba_block_aligned_split", False):
        return ("prompts that are cut at whole Mamba blocks only (mamba_cache_mode align)",)
    return ()


def features(request_class: type, engine_core_class: type | None) -> Features:
    """What else this vLLM can do."""
    return Features(
        eligible_step=_has_attribute(request_class, "next_decode_eligible_step"),
        pollable=engine_core_class is not None
        and all(hasattr(engine_core_class, name) for name in ("step", "step_with_batch_queue")),
    )


def _has_attribute(owner: type, name: str) -> bool:
    """Whether the class, its fields or its __init__ give instances that attribute."""
    if hasattr(owner, name) or any(name in vars(c).get("__annotations__", {}) for c in owner.mro()):
        return True
    code = getattr(vars(owner).get("__init__"), "__code__", None)
    return code is not None and name in code.co_names
