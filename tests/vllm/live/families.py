"""An engine of any tiny model in this process, without and with BEAM. One JSON report.

python families.py MODEL plain|beam     BEAM_CONFIG names the file
"""

import json
import os
import sys
import time


def main() -> None:
    model, mode = sys.argv[1:3]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    options = {}
    if mode == "beam":
        options["scheduler_cls"] = "beam_runtime.engines.vllm.make_scheduler"
    llm = LLM(
        model=model, load_format="dummy", skip_tokenizer_init=True, dtype="float32",
        enforce_eager=True, max_model_len=512, max_num_batched_tokens=128, max_num_seqs=8,
        enable_prefix_caching=False, seed=0, **options,
    )  # fmt: skip
    report = {}
    beam = None
    if mode == "beam":
        beam = llm.llm_engine.engine_core.engine_core.scheduler.beam
        while beam.controller.warming_up:
            time.sleep(0.01)
    prompts = [{"prompt_token_ids": [(5 + 7 * at) % 1000 for at in range(n)]}
               for n in (1, 20, 90, 150, 300, 33, 64, 200)]  # fmt: skip
    sampling = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0, detokenize=False)
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    report["tokens"] = [list(one.outputs[0].token_ids) for one in answers]
    if beam is not None:
        status = beam.controller.status
        report |= {
            "failure": beam.failure, "steering": status.steering, "reason": status.reason,
            "decisions": status.counts.decisions, "events": status.counts.events,
        }  # fmt: skip
        beam.close()
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()
