"""AsyncLLM: the engine, and BEAM in it, in a process of their own. One JSON report.

python async_engine.py MODEL
"""

import asyncio
import json
import sys


async def serve(model: str) -> dict:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model, load_format="dummy", skip_tokenizer_init=True, dtype="float32",
            enforce_eager=True, max_model_len=512, max_num_batched_tokens=256, max_num_seqs=16,
            enable_prefix_caching=False, seed=0,
            scheduler_cls="beam_runtime.engines.vllm.make_scheduler",
        )
    )  # fmt: skip

    async def generate(number: int, tokens: int, stop_after: int = 0) -> int:
        params = SamplingParams(
            detokenize=False, ignore_eos=True, max_tokens=tokens, temperature=0.0,
            extra_args={"beam_ttft_ms": 5000},
        )  # fmt: skip
        prompt = {"prompt_token_ids": [1 + number] * (20 + 30 * number)}
        got = 0
        async for output in engine.generate(prompt, params, f"r{number}"):
            got = len(output.outputs[0].token_ids)
            if stop_after and got >= stop_after:
                break  # the client is gone: vLLM aborts the request
        return got

    try:
        call = engine.engine_core.call_utility_async
        for _ in range(1200):  # compiling the search, where nobody has before, takes a minute
            if not (await call("beam_status"))["reason"].startswith("warming up"):
                break
            await asyncio.sleep(0.1)
        got = await asyncio.gather(*(generate(n, 12) for n in range(6)), generate(6, 400, 3))
        for _ in range(100):
            status = await call("beam_status")
            if status["requests"] == 0:
                break
            await asyncio.sleep(0.1)
        changed = await call("beam_change", {"policy": "observe", "slo": {"tbt_ms": 150}})
        again = await generate(7, 5)
        return {"got": got, "status": status, "changed": changed, "again": again}
    finally:
        engine.shutdown()


if __name__ == "__main__":
    print("REPORT " + json.dumps(asyncio.run(serve(sys.argv[1]))))
