"""The same batch twice in one real engine: contexts called cached, and contexts really prefilled.

    python profile_steps.py OPTIONS

Prints one JSON report: what was scheduled in each case, the KV blocks behind it, and the times.
"""

import json
import os
import sys
from statistics import median

DECODES, CHUNK, CHUNK_CONTEXT = (100, 101, 130), 48, 96
PASSES = 15


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from beam_runtime.types import StepShape
    from beamprof.backends.vllm_cells import craft
    from beamprof.backends.vllm_engine import Engine

    engine = Engine(json.loads(sys.argv[1]))
    scheduler = engine._scheduler
    seen = []
    inner = scheduler.schedule

    def schedule(*args, **kwargs):
        """Keeps [tokens, context, KV blocks] of each request in a step."""
        output = inner(*args, **kwargs)
        batch = []
        for name, tokens in output.num_scheduled_tokens.items():
            blocks = sum(map(len, scheduler.kv_cache_manager.get_block_ids(name)))
            batch.append([tokens, scheduler.requests[name].num_computed_tokens - tokens, blocks])
        seen.append(sorted(batch))
        return output

    scheduler.schedule = schedule

    # Called cached.
    shape = StepShape(CHUNK, CHUNK_CONTEXT, len(DECODES), sum(DECODES))
    crafted = craft(shape)
    engine.prepare(crafted)
    times_ms = engine.run(PASSES)["pass_ms"]
    cached = list(seen)

    # Really prefilled: the decodes' prompts in one step, the chunk's prompt in two.
    seen.clear()
    engine._clear()
    for context in crafted.contexts:
        engine._add(0, context, 40)
    scheduler.max_num_scheduled_tokens = sum(crafted.contexts)
    engine._step()
    prefilled_ms = []
    for _ in range(PASSES):
        engine._add(0, CHUNK_CONTEXT + CHUNK, 1)
        scheduler.max_num_scheduled_tokens = len(DECODES) + CHUNK_CONTEXT
        engine._step()
        scheduler.max_num_scheduled_tokens = len(DECODES) + CHUNK
        prefilled_ms += [step.pass_ms for step in engine._step()]
    report = {
        "cached": cached,
        "prefilled": seen,
        "cached_ms": median(times_ms),
        "prefilled_ms": median(prefilled_ms),
    }
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()
