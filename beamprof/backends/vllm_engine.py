"""vLLM in a process of its own, one step at a time: the far end of vllm_process.

    <- {"model": ..., "layers": ..., ...}       options, once
    -> {"version": ..., "blocks": ..., ...}     the engine is up
    <- {"do": "prepare", ...craft}              -> {}
    <- {"do": "run", "passes": 20}              -> {"pass_ms": [...], "gap_ms": [...], ...}
    -> {"error": {"message": ...}}              in place of any answer

One JSON object a line: orders on stdin, answers on what was stdout; whatever vLLM prints goes to
stderr. The end of stdin ends the process, so it never outlives who started it.
"""

import json
import os
import random
import sys
import time
from typing import Any

from beam_runtime.types import StepShape
from beamprof.backends.vllm_cells import CONTEXT_KEY, Craft
from beamprof.backends.vllm_watch import Step, StepWatch
from beamprof.errors import BackendError

# What passes are timed by: the wall's clock, or, where a CPU engine has to share its core, the
# time that this thread had of it.
_CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
# Chunks that wait in vLLM's queue; each is a prompt of its own.
MOST_QUEUED = 16
# Steps of another shape that may come between those asked for.
PATIENCE_STEPS = 8
FRUITLESS_ROWS = 3
# Tokens that a decode may give beyond its timed ones, so that none ends while it is timed.
SPARE_TOKENS = 16


class Engine:
    """One vLLM engine in this process.

    Args:
        options: see vllm_process.VllmProcess.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM

        self._now_s = _CLOCKS[options["clock"]]
        self._llm = LLM(**_arguments(options))
        engine = self._llm.llm_engine
        core = getattr(getattr(engine, "engine_core", None), "engine_core", None)
        self._engine: Any = engine
        self._scheduler: Any = getattr(core, "scheduler", None)
        _check(engine, self._scheduler)
        cache = engine.vllm_config.cache_config
        self.blocks, self.block_size = int(cache.num_gpu_blocks), int(cache.block_size)
        self._watch = StepWatch(self._scheduler, self._now_s)
        self._words = _words(
            engine.vllm_config.model_config.get_vocab_size(), options["max_model_len"]
        )
        self._craft: Craft | None = None
        self._added: list[str] = []
        self._number = 0
        self._left = 0  # steps until the decodes are admitted anew
        self._untimed = 0  # steps to come back that say nothing of a pass
        self._paused = True
        self._returned = 0
        self._last: StepShape | None = None

    def prepare(self, craft: Craft) -> None:
        """Make room for a cell. BackendError if its KV blocks are more than there are."""
        self._clear()
        needed = craft.blocks(self.block_size)
        if needed >= self.blocks:  # one block is vLLM's own
            raise BackendError(
                f"the cell needs {needed} KV-cache blocks of {self.block_size} tokens, vLLM has "
                f"{self.blocks - 1}",
                hint="shorten it with --max-decodes or --max-context, or give the model more "
                "GPUs with --tp",
            )
        self._craft = craft

    def run(self, passes: int) -> dict[str, Any]:
        """Time so many passes of the prepared cell."""
        craft = self._craft
        if craft is None:
            raise BackendError("prepare comes before run")
        begun_s, before = self._now_s(), self._returned
        self._pause()
        timed: list[Step] = []
        fruitless = 0
        while len(timed) < passes:
            found = self._row(craft, passes - len(timed))
            timed += found
            fruitless = 0 if found else fruitless + 1
            if fruitless == FRUITLESS_ROWS:
                raise BackendError(
                    "vLLM does not schedule this cell as asked",
                    cause=f"expected {craft}, found {self._last}",
                    hint="report this vLLM: its scheduler is one that BEAM does not know",
                )
        return {
            "pass_ms": [step.pass_ms for step in timed],
            "gap_ms": [step.gap_ms for step in timed if step.gap_ms is not None],
            "wall_ms": (self._now_s() - begun_s) * 1e3,
            "steps": self._returned - before,
        }

    # Inside

    def _row(self, craft: Craft, passes: int) -> list[Step]:
        """At most so many steps of the cell in a row; admits decodes and queues chunks first."""
        if craft.contexts and self._left <= 0:
            self._admit(craft)
        wanted = min(passes, self._left) if craft.contexts else passes
        if craft.chunk_tokens:
            wanted = min(wanted, MOST_QUEUED)
            while len(self._scheduler.waiting) < wanted + 2:
                self._add(craft.chunk_context_tokens, craft.chunk_tokens, 1)
            self._pause()
        self._scheduler.max_num_scheduled_tokens = craft.budget_tokens
        timed: list[Step] = []
        for _ in range(wanted + PATIENCE_STEPS):
            if len(timed) >= wanted or not self._engine.has_unfinished_requests():
                break
            timed += [step for step in self._step() if craft.fits(step.shape)]
        return timed

    def _pause(self) -> None:
        """Time has gone by between two steps: what is in flight, or follows it, cannot be timed."""
        in_flight = len(self._watch.steps)
        self._untimed = in_flight + 1 if in_flight else 0
        self._paused = True

    def _step(self) -> list[Step]:
        """One step of the engine; those that came back in it and can be timed."""
        self._engine.step()
        timed = []
        while self._watch.steps and self._watch.steps[0].done_s is not None:
            step = self._watch.steps.pop(0)
            if self._paused:
                step.gap_ms, self._paused = None, False
            if self._untimed:
                self._untimed -= 1
            else:
                timed.append(step)
            self._returned += 1
            self._left -= 1
            self._last = step.shape
        return timed

    def _admit(self, craft: Craft) -> None:
        """New decodes, and the step that admits them; what is in flight comes back first."""
        self._clear()
        self._scheduler.max_num_scheduled_tokens = self._most_tokens
        for context in craft.contexts:
            self._add(context, 1, craft.steps + SPARE_TOKENS)
        self._left = craft.steps + 1
        while self._left > craft.steps:
            self._step()

    @property
    def _most_tokens(self) -> int:
        return int(self._engine.vllm_config.scheduler_config.max_num_batched_tokens)

    def _add(self, context: int, tokens: int, answer: int) -> None:
        from vllm import SamplingParams

        self._number += 1
        name = f"beam-{self._number}"
        params = SamplingParams(
            temperature=0.0, max_tokens=answer, ignore_eos=True, detokenize=False,
            extra_args={"kv_transfer_params": {CONTEXT_KEY: context}},
        )  # fmt: skip
        self._engine.add_request(
            name, {"prompt_token_ids": self._words[: context + tokens]}, params
        )
        self._added.append(name)

    def _clear(self) -> None:
        """Nothing runs, waits or is in flight."""
        self._engine.abort_request(self._added)
        self._added = []
        while self._engine.has_unfinished_requests() or self._watch.steps:
            self._step()
        self._left = self._untimed = 0


def _words(vocabulary: int, count: int) -> list[int]:
    """A prompt as long as any; the same in every run."""
    draw = random.Random(0)
    return [draw.randrange(vocabulary) for _ in range(count)]


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """LLM's arguments. Everything that is not said here is as ``vllm serve`` would have it."""
    return {
        "model": options["model"],
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": options["dtype"],
        "tensor_parallel_size": options["tp"],
        "max_model_len": options["max_model_len"],
        "max_num_batched_tokens": options["max_batched_tokens"],
        "max_num_seqs": options["max_seqs"],
        "enable_prefix_caching": False,
        # Contexts of the sweep's longest cells, and what decodes grow beyond them.
        "hf_overrides": {
            "num_hidden_layers": options["layers"],
            "max_position_embeddings": options["max_positions"],
        },
        "kv_transfer_config": {
            "kv_connector": "ContextConnector",
            "kv_connector_module_path": "beamprof.backends.vllm_connector",
            "kv_role": "kv_both",
        },
        **options["more"],
    }


def _check(engine: Any, scheduler: Any) -> None:
    """Raises BackendError naming what this vLLM lacks."""
    names = ("schedule", "update_from_output", "requests", "max_num_scheduled_tokens", "connector")
    lost = [f"Scheduler.{name}" for name in names if getattr(scheduler, name, None) is None]
    lost += [
        f"LLMEngine.{name}"
        for name in ("add_request", "abort_request", "step", "has_unfinished_requests")
        if not hasattr(engine, name)
    ]
    if lost:
        raise _misfit(", ".join(lost))


def _misfit(lacks: str) -> BackendError:
    import vllm

    return BackendError(
        f"this vLLM ({vllm.__version__}) lacks what BEAM needs: {lacks}",
        hint="the vllm backend is known to fit vLLM 0.11 to 0.33; report this build, or use "
        "--backend torch",
    )


def _started(options: dict[str, Any]) -> Engine:
    from dataclasses import fields

    from vllm.config import KVTransferConfig

    if "kv_connector_module_path" not in {one.name for one in fields(KVTransferConfig)}:
        raise _misfit("KVTransferConfig.kv_connector_module_path")
    return Engine(options)


def _report(options: dict[str, Any], engine: Engine) -> dict[str, Any]:
    import vllm
    from vllm.platforms import current_platform

    gpu = current_platform.is_cuda()
    return {
        "version": vllm.__version__,
        "blocks": engine.blocks,
        "block_size": engine.block_size,
        "uuids": [current_platform.get_device_uuid(at) for at in range(options["tp"])]
        if gpu else [],
    }  # fmt: skip


def _answer(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "prepare":
        fields = {**order["craft"], "contexts": tuple(order["craft"]["contexts"])}
        engine.prepare(Craft(**fields))
        return {}
    return engine.run(int(order["passes"]))


def _error(error: Exception) -> dict[str, Any]:
    if isinstance(error, BackendError):
        fields = {"message": error.message, "cause": error.cause, "hint": error.hint}
        return {"error": fields, "fatal": False}
    text = f"{type(error).__name__}: {error}"
    return {"error": {"message": "vLLM failed", "cause": text, "hint": None}, "fatal": True}


def main() -> None:
    """Serve orders until stdin ends."""
    # vLLM prints; answers need a channel of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    options = json.loads(sys.stdin.readline())
    try:
        engine = _started(options)
        say(_report(options, engine))
    except Exception as error:
        say(_error(error))
        raise
    for line in sys.stdin:
        try:
            say(_answer(engine, json.loads(line)))
        except Exception as error:
            said = _error(error)
            say(said)
            if said["fatal"]:
                raise


if __name__ == "__main__":
    main()
