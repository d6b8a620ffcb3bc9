"""Replicas of a data-parallel group, as vLLM's own configuration has them in each process."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.engines.vllm.replica import Replica

CONFIG = EmbeddedConfig(
    gpus=(0, 1, 2, 3), metrics_port=9464, log=Path("/var/log/beam.{rank}.jsonl")
)


def engine(rank: int | None, *, tp: int = 2, **more: Any) -> SimpleNamespace:
    """What is left of the group in the process of one rank; None = there was no group."""
    parallel = SimpleNamespace(
        tensor_parallel_size=tp, pipeline_parallel_size=1, data_parallel_size=1,
        data_parallel_index=rank or 0, data_parallel_rank_local=rank or 0,
        _data_parallel_master_port_list=[] if rank is None else [29500], **more,
    )  # fmt: skip
    return SimpleNamespace(parallel_config=parallel)


def own(rank: int | None, config: EmbeddedConfig = CONFIG, **more: Any) -> EmbeddedConfig:
    environment = more.pop("environment", {})
    return Replica.of(engine(rank, **more)).own(config, environment)


def test_each_replica_has_gpus_port_and_log_of_its_own() -> None:
    first, second = own(0), own(1)
    assert (first.gpus, second.gpus) == ((0, 1), (2, 3))
    assert (first.metrics_port, second.metrics_port) == (9464, 9465)
    assert first.log == Path("/var/log/beam.0.jsonl")
    assert second.log == Path("/var/log/beam.1.jsonl")


def test_a_log_without_the_rank_in_its_name_is_not_shared() -> None:
    config = replace(CONFIG, log=Path("decisions.jsonl"))
    assert own(0, config).log == Path("decisions.jsonl")
    assert own(1, config).log == Path("decisions.rank1.jsonl")


def test_an_engine_alone_keeps_the_file_as_it_is() -> None:
    assert own(None) == replace(CONFIG, log=Path("/var/log/beam.0.jsonl"))


def test_what_vllm_assigned_goes_before_the_order_of_the_list() -> None:
    config = replace(CONFIG, gpus=(3, 2, 1, 0))
    assert own(1, config).gpus == (1, 0)
    assert own(1, config, assigned_physical_gpu_ids=[2, 3]).gpus == (2, 3)


def test_a_process_that_sees_only_its_own_gpus_takes_those() -> None:
    uuids = tuple(f"GPU-{letter}" for letter in "abcd")
    config = replace(CONFIG, gpus=uuids)
    seen = {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-d"}
    # Alone on its node's list, with an index of the whole cluster: as Ray starts it.
    assert own(5, config, environment=seen).gpus == ("GPU-c", "GPU-d")
    assert own(5, environment={"CUDA_VISIBLE_DEVICES": "2,3"}).gpus == (2, 3)


@pytest.mark.parametrize(
    ("rank", "gpus", "more"),
    [
        (1, (0, 1), {}),
        (1, (0, 1, 2), {}),
        (1, (0, 1, 2, 3), {"assigned_physical_gpu_ids": [4, 5]}),
        (0, (0, 1), {"environment": {"CUDA_VISIBLE_DEVICES": "4,5"}}),
        (0, (0, "node2:4938/0"), {}),
    ],
)
def test_clocks_are_left_alone_where_it_is_not_clear_whose_gpus_they_are(
    caplog: pytest.LogCaptureFixture, rank: int, gpus: Any, more: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING, logger="beam_runtime.vllm"):
        assert own(rank, replace(CONFIG, gpus=gpus), **more).gpus == ()
    (line,) = caplog.messages
    assert f"replica {rank}" in line


@pytest.mark.filterwarnings("default")  # of vLLM and torch, where it is imported first
def test_vllm_s_own_configuration_still_tells_the_rank() -> None:
    pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
    from vllm.config import ParallelConfig

    found = []
    for rank in range(2):
        parallel = ParallelConfig(data_parallel_size=2)
        # As run_engine_core does in the engine's process.
        parallel.data_parallel_rank_local = parallel.data_parallel_index = rank
        parallel.reconfigure_for_independent_dp_rank()
        assert parallel.data_parallel_size == 1, "each is told that it is alone"
        replica = Replica.of(SimpleNamespace(parallel_config=parallel))
        found.append(replica.own(replace(CONFIG, gpus=(0, 1)), {}))
    assert [one.gpus for one in found] == [(0,), (1,)]
    assert [one.metrics_port for one in found] == [9464, 9465]
    alone = Replica.of(SimpleNamespace(parallel_config=ParallelConfig()))
    assert not alone.in_group
