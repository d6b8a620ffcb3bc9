"""What the vLLM tests share: tiny models, tables for them, and a scheduler without a model.

Nothing here imports vLLM until a test that needs it runs.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from driving import Clock

MODEL_LEN = 1024
BATCHED_TOKENS = 512
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 1024, "max_position_embeddings": MODEL_LEN,
    "torch_dtype": "float32",
}  # fmt: skip


class SchedulerRig:
    """vLLM's scheduler without a model: whoever drives it plays the model.

    Args:
        model: a folder with a config.json.
        make: what constructs the scheduler; vLLM's own class by default.
    """

    def __init__(
        self,
        model: Path,
        *,
        make: Callable[..., Any] | None = None,
        pp: int = 1,
        max_num_seqs: int = 16,
        num_blocks: int = 4_000,
        prefix_caching: bool = False,
        asynchronous: bool = False,
        **scheduling: Any,
    ) -> None:
        import torch
        from vllm.config import (
            CacheConfig,
            DeviceConfig,
            ModelConfig,
            ParallelConfig,
            SchedulerConfig,
            VllmConfig,
        )
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import (
            FullAttentionSpec,
            KVCacheConfig,
            KVCacheGroupSpec,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        self.block_size = 16
        model_config = ModelConfig(
            model=str(model), skip_tokenizer_init=True, max_model_len=MODEL_LEN, dtype="float32"
        )
        scheduler_config = SchedulerConfig(
            **{
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": BATCHED_TOKENS,
                "max_model_len": MODEL_LEN,
                "is_encoder_decoder": False,
                "enable_chunked_prefill": True,
                **scheduling,
            }
        )
        cache_config = CacheConfig(block_size=self.block_size, enable_prefix_caching=prefix_caching)
        config = VllmConfig(
            model_config=model_config,
            scheduler_config=scheduler_config,
            cache_config=cache_config,
            parallel_config=ParallelConfig(pipeline_parallel_size=pp),
            device_config=DeviceConfig("cpu"),
        )
        cache_config.block_size = self.block_size
        cache_config.num_gpu_blocks = num_blocks
        scheduler_config.async_scheduling = asynchronous
        spec = FullAttentionSpec(
            block_size=self.block_size, num_kv_heads=4, head_size=16, dtype=torch.float32
        )
        self.config = config
        self.scheduler = (make or Scheduler)(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=num_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=self.block_size,
            log_stats=False,
        )
        self.given: Counter[str] = Counter()
        self.hasher = None
        if prefix_caching:
            from vllm.utils.hashing import get_hash_fn_by_name
            from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

            hash_fn = get_hash_fn_by_name(cache_config.prefix_caching_hash_algo)
            init_none_hash(hash_fn)
            self.hasher = get_request_block_hasher(self.block_size, hash_fn)

    def add(self, name: str, prompt: list[int], max_tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(
                    max_tokens=max_tokens, ignore_eos=True, detokenize=False
                ),
                pooling_params=None,
                block_hasher=self.hasher,
            )
        )

    def abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def schedule(self, budget: int | None = None):
        if budget is not None:
            self.scheduler.max_num_scheduled_tokens = budget
        output = self.scheduler.schedule()
        requests = self.scheduler.requests
        # The model samples for requests whose last known token is in the step.
        sampled = {
            name
            for name in output.num_scheduled_tokens
            if requests[name].num_computed_tokens >= requests[name].num_tokens
        }
        return output, sampled

    def update(self, output, sampled: set[str]) -> set[str]:
        """Give the step's tokens back; returns the requests that ended."""
        before = set(self.scheduler.requests)
        outputs = self.scheduler.update_from_output(output, self.result(output, sampled))
        for client in outputs.values():
            for one in client.outputs:
                self.given[one.request_id] += len(one.new_token_ids)
        return before - set(self.scheduler.requests)

    def result(self, output, sampled: set[str]):
        """What the model's runner would say of a step."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[7] if name in sampled else [] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    @property
    def stale(self) -> set[str]:
        """Preempted requests that vLLM does not admit before their earlier steps are back."""
        return {
            r.request_id for r in self.scheduler.waiting if getattr(r, "num_stale_output_tokens", 0)
        }

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def shared_tokens(self) -> dict[str, int]:
        """Of each running request, tokens in KV blocks that a request ahead of it holds, too."""
        tables = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks
        ahead: set[int] = set()
        shared = {}
        for request in self.scheduler.running:
            held = {block.block_id for block in tables[request.request_id]}
            shared[request.request_id] = len(held & ahead) * self.block_size
            ahead |= held
        return shared

    def hit(self, name: str) -> tuple[int, int]:
        """What the prefix cache holds of a waiting request: (tokens, of them held by nobody)."""
        request = self.scheduler.requests[name]
        found, tokens, _ = self.scheduler.kv_cache_manager.get_computed_blocks(request)
        unheld = sum(block.ref_cnt == 0 for block in found.blocks[0])
        return tokens, unheld * self.block_size


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: config.json alone."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def rig(tiny_llama: Path) -> Callable[..., SchedulerRig]:
    """Makes vLLM schedulers without a model."""
    return partial(SchedulerRig, tiny_llama)


def write_tiny_table(
    path: Path, *, pp: int, tp: int = 1, slow: float = 1.0, **metadata: str
) -> Path:
    """A table with made-up numbers for CONFIG's model: 2 ms a pass and 0.03 ms a token."""
    import numpy as np

    from beamprof.tables.table_file import seal_table, write_table

    cells = [(tokens, 0, 0, 0) for tokens in (1, 16, 64, 128, 256, 512)]
    cells += [(0, 0, b, b * context) for b in (1, 8, 32) for context in (32, 256, 1024)]
    cells += [(chunk, context, 0, 0) for chunk in (64, 256) for context in (256, 1024)]
    cells += [(120, 128, 8, 1024)]
    clocks_mhz = (600, 900, 1200)
    rows = [("forward", clock, cell) for clock in clocks_mhz for cell in cells]
    rows += [("idle", clock, (0, 0, 0, 0)) for clock in clocks_mhz]
    forward = np.array([kind == "forward" for kind, _, _ in rows])
    latency_ms = np.array(
        [
            slow * (2 + 0.03 * (c + b) + 1e-5 * c * k + 1e-4 * s) * 1200 / clock
            for _, clock, (c, k, b, s) in rows
        ]
    )
    columns = {
        "kind": np.array([row[0] for row in rows]),
        "clock_mhz": np.array([row[1] for row in rows]),
        "latency_ms": np.where(forward, latency_ms, 1000.0),
        "energy_j": np.where(forward, 0.1 * latency_ms, 60.0),
        "passes": np.ones(len(rows), dtype=np.int64),
        "source": np.array(["modelled"] * len(rows)),
    }
    for at, name in enumerate(
        ("prefill_tokens", "prefill_context_tokens", "decode_requests", "decode_context_tokens")
    ):
        columns[name] = np.array([row[2][at] for row in rows])
    table = seal_table(
        columns,
        {
            "model": "tiny-llama", "tp": str(tp), "pp": str(pp), "stage_layers": str(4 // pp),
            "device": "cpu", "energy_source": "modelled", **metadata,
        },
    )  # fmt: skip
    write_table(table.columns, table.metadata, path, force=True)
    return path


@pytest.fixture(scope="session")
def tiny_table() -> Callable[..., Path]:
    """Writes tables for the tiny model."""
    return write_tiny_table


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def nap(seconds: float) -> None:
        clock.now_ms += max(1.0, seconds * 1e3)

    fake = SimpleNamespace(
        sleep=nap, monotonic=lambda: clock.now_ms / 1e3, time=lambda: 1e9 + clock.now_ms / 1e3
    )
    for module in ("scheduler", "gate", "embedded"):
        monkeypatch.setattr(f"beam_runtime.engines.vllm.{module}.time", fake)
    return clock


@pytest.fixture
def config(tmp_path: Path, tiny_table: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration for pp 1 that steers; tests write over its table for other layouts."""
    tiny_table(tmp_path / "table.parquet", pp=1)
    file = tmp_path / "beam.toml"
    file.write_text(
        'table = "table.parquet"\npolicy = "steer"\n[slo]\nttft_ms = 500\ntbt_ms = 100\n'
    )
    monkeypatch.setenv("BEAM_CONFIG", str(file))
    return file
