"""An engine of any tiny model, under its own settings and under BEAM's orders. One JSON report.

Where BEAM stays out of an engine the report has what it said, and the engine's own run.

python families.py MODEL     BEAM_CONFIG names the file
"""

import json
import logging
import os
import sys
import time
from types import SimpleNamespace

LENGTHS = (1, 20, 90, 150, 300, 33, 64, 200)


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from beam_runtime.control.orders import Orders
    from beam_runtime.types import Correction, Knobs, Rules

    said: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logging.getLogger("beam_runtime").addHandler(Heard())
    llm = LLM(
        model=sys.argv[1], load_format="dummy", skip_tokenizer_init=True, dtype="float32",
        enforce_eager=True, max_model_len=512, max_num_batched_tokens=256, max_num_seqs=8,
        enable_prefix_caching=False, seed=0,
        scheduler_cls="beam_runtime.engines.vllm.make_scheduler",
    )  # fmt: skip
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    prompts = [{"prompt_token_ids": [(5 + 7 * at) % 1000 for at in range(n)]} for n in LENGTHS]
    sampling = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0, detokenize=False)

    def run() -> dict:
        steps, inner = [], scheduler.schedule

        def schedule(*args, **kwargs):
            output = inner(*args, **kwargs)
            if output.total_num_scheduled_tokens:
                steps.append(output.total_num_scheduled_tokens)
            return output

        scheduler.schedule = schedule
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        del scheduler.schedule
        return {"tokens": [list(one.outputs[0].token_ids) for one in answers], "steps": steps}

    beam = getattr(scheduler, "beam", None)
    if beam is None:
        print("REPORT " + json.dumps({"said": said, "own": run()}))
        return
    controller = beam.controller
    while controller.warming_up:
        time.sleep(0.01)

    def under(orders: Orders) -> dict:
        class Director(SimpleNamespace):
            def __getattr__(self, hook):
                if hook.startswith("_"):
                    raise AttributeError(hook)
                return lambda *args, **kwargs: None

        beam.connect(Director(orders=orders))
        return run()

    whole = Knobs(1200, 256, 1)
    report = {
        "said": said,
        "own": under(Orders(whole, Rules.vanilla(), False, "nobody steers", Correction())),
        "chunks": under(Orders(Knobs(1200, 64, 1), Rules(), True, "a test's", Correction())),
        "paced": under(Orders(Knobs(1200, 256, 1, 30.0), Rules(), True, "a test's", Correction())),
    }
    beam.connect(controller)
    report["decided"] = run()
    report["decisions"] = controller.status.counts.decisions
    report["failure"] = beam.failure
    beam.close()
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()
