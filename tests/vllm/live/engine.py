"""One real engine in this process, several runs; prints one JSON object for the tests to judge.

    python engine.py MODEL PP {plain|beam}

Run as a script: vLLM allows one engine per process.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

REQUESTS = 14


def workload():
    from vllm import SamplingParams

    rng = random.Random(11)
    prompts, params = [], []
    for _ in range(REQUESTS):
        tokens = [rng.randrange(1, 1000) for _ in range(rng.randint(5, 120))]
        prompts.append({"prompt_token_ids": tokens})
        params.append(
            SamplingParams(
                detokenize=False, ignore_eos=True, max_tokens=rng.randint(20, 60), temperature=0.0
            )
        )
    return prompts, params


class Recorder:
    """Wraps the scheduler's schedule(): what was in each step, how many were in flight."""

    def __init__(self, core) -> None:
        self.core = core
        self.batches = []
        self.deepest = 0
        original = core.scheduler.schedule

        def schedule(*args, **kwargs):
            output = original(*args, **kwargs)
            if output.num_scheduled_tokens:
                self.batches.append(sorted(output.num_scheduled_tokens.values()))
                queue = core.batch_queue or ()
                flying = sum(1 for _, one, _ in queue if one.num_scheduled_tokens)
                self.deepest = max(self.deepest, flying + 1)
            return output

        core.scheduler.schedule = schedule


def run(llm, name: str) -> dict:
    core = llm.llm_engine.engine_core.engine_core
    recorder = Recorder(core)
    prompts, params = workload()
    begin_s = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin_s
    del core.scheduler.schedule  # the class's own again
    return {
        "name": name,
        "tokens": [list(one.outputs[0].token_ids) for one in outputs],
        "batches": recorder.batches,
        "deepest": recorder.deepest,
        "seconds": seconds,
    }


def aborted(llm) -> dict:
    """Abort one of three requests after its first steps."""
    prompts, _ = workload()
    from vllm import SamplingParams

    params = SamplingParams(detokenize=False, ignore_eos=True, max_tokens=20, temperature=0.0)
    engine = llm.llm_engine
    for number in range(3):
        engine.add_request(f"abort-{number}", prompts[number], params)
    done, steps = {}, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = len(output.outputs[0].token_ids)
        steps += 1
        if steps == 6:
            engine.abort_request(["abort-1"])
    return done


def ordered(llm, knobs, name: str) -> dict:
    """A run under orders that a test gives; a stand-in keeps what the controller is told."""
    from collections import Counter

    from beam_runtime.control.orders import Orders
    from beam_runtime.types import Correction, Rules

    class Director:
        def __init__(self) -> None:
            self.told = Counter()
            self.orders = Orders(knobs, Rules(), True, "a test's", Correction())

        def __getattr__(self, hook):
            if hook.startswith("_"):
                raise AttributeError(hook)
            return lambda *args, **kwargs: self.told.update([hook])

    beam = llm.llm_engine.engine_core.engine_core.scheduler.beam
    real, director = beam.controller, Director()
    beam.connect(director)
    result = run(llm, name)
    result["aborted"] = aborted(llm)
    result["told"] = dict(director.told)
    result["failure"] = beam.failure
    beam.connect(real)
    return result


def main() -> None:
    model, pp, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if pp > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    from vllm import LLM

    options = {}
    if mode == "beam":
        options["scheduler_cls"] = "beam_runtime.engines.vllm.make_scheduler"
    llm = LLM(
        model=str(model), load_format="dummy", skip_tokenizer_init=True, dtype="float32",
        enforce_eager=True, max_model_len=512, max_num_batched_tokens=256, max_num_seqs=16,
        pipeline_parallel_size=pp, enable_prefix_caching=False, block_size=32,
        num_gpu_blocks_override=30, seed=0, **options,
    )  # fmt: skip
    if pp > 1:
        llm.collective_rpc("execute_dummy_batch")
    if mode == "beam":  # the few steps below would be over before there is a search
        controller = llm.llm_engine.engine_core.engine_core.scheduler.beam.controller
        while controller.warming_up:
            time.sleep(0.01)
    runs = [run(llm, "first")]
    report = {"runs": runs}
    if mode == "beam":
        from beam_runtime.types import Knobs

        beam = llm.llm_engine.engine_core.engine_core.scheduler.beam
        status = beam.controller.status
        report["status"] = {
            "steering": status.steering,
            "reason": status.reason,
            "decisions": status.counts.decisions,
            "odd_events": status.odd_events,
            "events": status.counts.events,
        }
        if os.environ.get("BEAM_POLICY") != "observe":
            runs.append(ordered(llm, Knobs(1200, 64, 1), "chunk 64"))
            runs.append(ordered(llm, Knobs(1200, 256, pp), "microbatches"))
            runs.append(ordered(llm, Knobs(1200, 256, 1, 30.0), "paced"))
        report["failure"] = beam.failure
        beam.close()
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()
