"""What BEAM needs of a vLLM, each thing in turn taken away; no vLLM is needed for it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from beam_runtime.engines.vllm import features as vllm_features
from beam_runtime.engines.vllm.features import (
    Features,
    features,
    missing,
    missing_on,
    unsupported,
    unsupported_on,
)


def scheduler_class(without: str = "") -> type:
    names = {*vllm_features._SCHEDULER_METHODS} - {without}
    return type("Scheduler", (), {name: lambda self: None for name in names})


def request_class(without: str = "") -> type:
    """Some are properties, some are set in __init__, as in vLLM."""

    class Request:
        def __init__(self) -> None:
            self.request_id = ""
            self.num_prompt_tokens = self.num_computed_tokens = 0
            self.arrival_time = 0.0

        num_tokens = property(lambda self: 0)
        num_output_tokens = property(lambda self: 0)

    class Poorer:
        def __init__(self) -> None:
            pass

    if not without:
        return Request
    for name in {*vllm_features._REQUEST_ATTRIBUTES} - {without}:
        setattr(Poorer, name, 0)
    return Poorer


@dataclass
class Step:
    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int


@dataclass
class Token:
    request_id: str
    new_token_ids: list[int]
    finish_reason: object = None


def test_nothing_is_missing_where_everything_is_there() -> None:
    assert missing(scheduler_class(), request_class(), Step, Token) == ()


@pytest.mark.parametrize("name", vllm_features._SCHEDULER_METHODS)
def test_a_missing_method_is_named(name: str) -> None:
    found = missing(scheduler_class(name), request_class(), Step, Token)
    assert found == (f"Scheduler.{name}",)


@pytest.mark.parametrize("name", vllm_features._REQUEST_ATTRIBUTES)
def test_a_missing_attribute_of_requests_is_named(name: str) -> None:
    found = missing(scheduler_class(), request_class(name), Step, Token)
    assert found == (f"Request.{name}",)


def test_missing_fields_of_steps_and_tokens_are_named() -> None:
    bare = type("Bare", (), {})
    assert missing(scheduler_class(), request_class(), bare, Token) == (
        "SchedulerOutput.num_scheduled_tokens",
        "SchedulerOutput.total_num_scheduled_tokens",
    )
    assert missing(scheduler_class(), request_class(), Step, bare) == (
        "EngineCoreOutput.request_id",
        "EngineCoreOutput.new_token_ids",
        "EngineCoreOutput.finish_reason",
    )


def scheduler(**other: Any) -> SimpleNamespace:
    pool = SimpleNamespace(get_num_free_blocks=lambda: 0)
    there = dict.fromkeys(vllm_features._SCHEDULER_ATTRIBUTES, 0)
    manager = SimpleNamespace(block_pool=pool)
    config = SimpleNamespace(long_prefill_token_threshold=0)
    own = {"kv_cache_manager": manager, "scheduler_config": config}
    return SimpleNamespace(**{**there, **own, **other})


@pytest.mark.parametrize("name", vllm_features._SCHEDULER_ATTRIBUTES)
def test_a_missing_attribute_of_the_scheduler_is_named(name: str) -> None:
    one = scheduler()
    assert missing_on(one) == ()
    delattr(one, name)
    assert missing_on(one) == (f"Scheduler.{name}",)


def test_a_missing_limit_of_prompts_is_named() -> None:
    expected = ("Scheduler.scheduler_config.long_prefill_token_threshold",)
    assert missing_on(scheduler(scheduler_config=SimpleNamespace())) == expected


def test_a_block_pool_elsewhere_is_named() -> None:
    expected = ("Scheduler.kv_cache_manager.block_pool.get_num_free_blocks",)
    assert missing_on(scheduler(kv_cache_manager=SimpleNamespace())) == expected
    assert missing_on(scheduler(kv_cache_manager=None)) == expected


def test_abilities_that_are_not_needed_are_told_from_the_classes() -> None:
    old = features(request_class(), None)
    assert old == Features(eligible_step=False, pollable=False)
    newer = type("Request", (), {"next_decode_eligible_step": 0})
    core = type("EngineCore", (), {"step": None, "step_with_batch_queue": None})
    assert features(newer, core) == Features(eligible_step=True, pollable=True)
    half = type("EngineCore", (), {"step": None})
    assert features(newer, half) == Features(eligible_step=True, pollable=False)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"model_config": SimpleNamespace(runner_type="pooling")}, "a pooling model"),
        ({"kv_transfer_config": SimpleNamespace(kv_role="kv_producer")}, "different engines"),
        ({"ec_transfer_config": object()}, "encoder outputs from another engine"),
        ({"diffusion_config": object()}, "a diffusion model"),
        ({"model_config": SimpleNamespace(is_diffusion=True)}, "a diffusion model"),
        ({"model_config": SimpleNamespace(is_encoder_decoder=True)}, "an encoder-decoder model"),
        ({"scheduler_config": SimpleNamespace(enable_chunked_prefill=False)}, "chunked prefill"),
        (
            {
                "model_config": SimpleNamespace(is_multimodal_model=True),
                "scheduler_config": SimpleNamespace(disable_chunked_mm_input=True),
            },
            "images that are not cut",
        ),
        (
            {"parallel_config": SimpleNamespace(decode_context_parallel_size=2)},
            "decode context parallelism",
        ),
        (
            {"parallel_config": SimpleNamespace(prefill_context_parallel_size=2)},
            "prefill context parallelism",
        ),
    ],
)
def test_ways_of_serving_that_are_not_steered_are_named(config: dict[str, Any], said: str) -> None:
    (reason,) = unsupported(SimpleNamespace(**config))
    assert said in reason
    assert unsupported(SimpleNamespace()) == ()


def test_uncut_images_matter_to_models_that_see_images_alone() -> None:
    text = SimpleNamespace(is_multimodal_model=False)
    sched = SimpleNamespace(disable_chunked_mm_input=True, enable_chunked_prefill=True)
    assert unsupported(SimpleNamespace(model_config=text, scheduler_config=sched)) == ()


def test_whole_mamba_blocks_are_told_by_the_scheduler() -> None:
    (reason,) = unsupported_on(SimpleNamespace(need_mamba_block_aligned_split=True))
    assert "whole Mamba blocks" in reason
    assert unsupported_on(SimpleNamespace(need_mamba_block_aligned_split=False)) == ()
    assert unsupported_on(SimpleNamespace()) == ()


@pytest.mark.parametrize(
    ("connector", "role", "stays_out"),
    [
        ("NixlConnector", "kv_both", True),
        ("MooncakeConnector", "kv_both", True),
        ("MultiConnector", "kv_both", True),
        ("SomebodysOwn", "kv_both", True),
        ("NixlConnector", "kv_consumer", True),
        ("OffloadingConnector", "kv_both", False),
        (None, None, False),
    ],
)
def test_kv_blocks_from_another_engine(
    connector: str | None, role: str | None, stays_out: bool
) -> None:
    transfer = None if role is None else SimpleNamespace(kv_role=role, kv_connector=connector)
    config = SimpleNamespace(
        speculative_config=None,
        kv_transfer_config=transfer,
        model_config=SimpleNamespace(runner_type="generate"),
    )
    assert bool(unsupported(config)) == stays_out
