"""Tokens per second of vLLM's CPU engine while BEAM observes, over those without BEAM.

One engine in one process, in pairs of runs in turns: plain (the scheduler's hooks are there and
idle), and observing (controller, search thread and decision log made anew, as at start). The
order within a pair alternates. Printed is the median of the pairs' ratios; compare with 0.98.
The table is made up, but as slow as this machine: BEAM would not decide by one that is far off.

    python benchmarks/vllm_throughput.py [--json] [--pairs 5] [--layers 8] [--hidden 512]
"""

import argparse
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vllm"))

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# One core is the passes', as a GPU would be apart; OpenMP's threads spin on every core they have.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What write_tiny_table takes a pass of the load below to last, on the mean.
MADE_UP_PASS_MS = 3.0


def engine(folder: Path, layers: int, hidden: int) -> Any:
    """An LLM of dummy weights in this process, made with BEAM's scheduler."""
    from conftest import CONFIG, write_tiny_table
    from vllm import LLM

    shape = {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128,
    }  # fmt: skip
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({**CONFIG, **shape}))
    write_tiny_table(folder / "table.parquet", pp=1)
    (folder / "beam.toml").write_text(
        'table = "table.parquet"\nlog = "decisions.jsonl"\npolicy = "observe"\n'
    )
    os.environ["BEAM_CONFIG"] = str(folder / "beam.toml")
    return LLM(
        model=str(folder / "model"), load_format="dummy", skip_tokenizer_init=True,
        dtype="float32", enforce_eager=True, max_model_len=1024, max_num_batched_tokens=256,
        max_num_seqs=16, enable_prefix_caching=False, block_size=32, seed=0,
        scheduler_cls="beam_runtime.engines.vllm.make_scheduler",
    )  # fmt: skip


def tokens_per_s(llm: Any, requests: int) -> float:
    """The same load every time: prompts of 10 to 200 tokens, answers of 40 to 80."""
    from vllm import SamplingParams

    rng = random.Random(5)
    prompts, params = [], []
    for _ in range(requests):
        length = rng.randint(10, 200)
        prompts.append({"prompt_token_ids": [rng.randrange(1, 1000) for _ in range(length)]})
        params.append(
            SamplingParams(
                detokenize=False, ignore_eos=True, max_tokens=rng.randint(40, 80), temperature=0.0
            )
        )
    begin_s = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin_s
    return sum(len(one.outputs[0].token_ids) for one in outputs) / seconds


def opened(beam: Any) -> Any:
    """``beam`` with its search open: compiling that, once, is no part of serving."""
    while beam.controller.warming_up:
        time.sleep(0.01)
    return beam


def compare(llm: Any, pairs: int, requests: int) -> dict[str, Any]:
    """Runs in pairs, after one of each that warms caches and makes the table fit the machine."""
    from conftest import write_tiny_table

    from beam_runtime.engines.config import EmbeddedConfig
    from beam_runtime.engines.vllm.scheduler import embed

    core = llm.llm_engine.engine_core.engine_core
    scheduler, config = core.scheduler, EmbeddedConfig.from_environment()
    scheduler.beam.close()
    scheduler.beam = None
    seen: list[tuple[int, int, str]] = []

    def plain() -> float:
        return tokens_per_s(llm, requests)

    def observing() -> float:
        beam = scheduler.beam = opened(embed(scheduler, core.vllm_config, config))
        try:
            rate = tokens_per_s(llm, requests)
            status = beam.controller.status
            seen.append((status.counts.decisions, beam.tally.steps, status.reason))
            return rate
        finally:
            beam.close()
            scheduler.beam = None

    observing()
    begin_s = time.perf_counter()
    plain()
    pass_ms = (time.perf_counter() - begin_s) * 1e3 / seen.pop()[1]
    write_tiny_table(config.table, pp=1, slow=pass_ms / MADE_UP_PASS_MS)
    begin_load, rates = os.getloadavg()[0], []
    for number in range(pairs):
        if number % 2:
            after, before = observing(), plain()
        else:
            before, after = plain(), observing()
        rates.append((before, after))
    if fallen := {reason for _, _, reason in seen if reason}:
        raise SystemExit(f"BEAM has stood aside, which costs less: {'; '.join(fallen)}")
    ratios = [after / before for before, after in rates]
    return {
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "plain_tokens_per_s": [before for before, _ in rates],
        "observing_tokens_per_s": [after for _, after in rates],
        "decisions": [decisions for decisions, _, _ in seen],
        "steps": [steps for _, steps, _ in seen],
        "cpus": os.cpu_count(),
        "load": [begin_load, os.getloadavg()[0]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    asked = parser.parse_args()
    logging.getLogger("beam_runtime").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        llm = engine(Path(name), asked.layers, asked.hidden)
        result = compare(llm, asked.pairs, asked.requests)
    if asked.json:
        print(json.dumps(result, indent=2))
        return
    print(f"observing / plain: {result['ratio_median']:.3f}, median of {asked.pairs} pairs")
    print("  " + "  ".join(f"{ratio:.3f}" for ratio in result["ratios"]))
    print(f"  {result['decisions'][-1]} decisions over {result['steps'][-1]} steps in the last run")
    print(
        f"  plain {statistics.median(result['plain_tokens_per_s']):.0f} tokens/s, "
        f"{result['cpus']} cores, load {result['load'][0]:.1f} before and "
        f"{result['load'][1]:.1f} after"
    )


if __name__ == "__main__":
    main()
