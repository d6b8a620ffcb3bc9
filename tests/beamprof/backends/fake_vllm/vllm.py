"""A vLLM on paper, for tests of what drives one: it schedules as vLLM does and computes nothing.

FAKE_VLLM says how it misbehaves: "deep" keeps two steps in flight, as async scheduling does;
"deaf" hears nothing of contexts; "too old" and "dies" and "refuses" do what they say.
"""

import os
import sys
import time
from collections import deque
from dataclasses import make_dataclass
from types import SimpleNamespace

MODE = os.environ.get("FAKE_VLLM", "")
__version__ = "0.0.fake"
BLOCK_SIZE, BLOCKS = 16, 400
PASS_S, HOST_S = 0.002, 0.001

# Its submodules, as far as anybody looks at them.
fields = ["kv_connector"] if MODE == "too old" else ["kv_connector", "kv_connector_module_path"]
sys.modules["vllm.config"] = SimpleNamespace(
    KVTransferConfig=make_dataclass("KVTransferConfig", fields)
)
sys.modules["vllm.platforms"] = SimpleNamespace(
    current_platform=SimpleNamespace(is_cuda=lambda: False)
)


class SamplingParams:
    def __init__(self, *, max_tokens, extra_args, **_) -> None:
        self.max_tokens = max_tokens
        self.context = extra_args["kv_transfer_params"]["beam_context_tokens"]


class Request:
    def __init__(self, name, prompt, params) -> None:
        self.request_id = name + "-0f0f"  # vLLM appends a random part
        self.num_prompt_tokens = self.num_tokens = len(prompt)
        self.num_computed_tokens = 0 if MODE == "deaf" else params.context
        self.left = params.max_tokens


class Scheduler:
    connector = object()

    def __init__(self, budget, seats) -> None:
        self.max_num_scheduled_tokens, self.seats = budget, seats
        self.requests, self.running, self.waiting = {}, [], deque()

    def schedule(self, *_):
        time.sleep(HOST_S)
        budget, scheduled = self.max_num_scheduled_tokens, {}
        for request in self.running:
            # With steps in flight a token counts before it is there, as vLLM's placeholders do.
            if request.left > 0 and budget:
                pending = max(1, request.num_tokens - request.num_computed_tokens)
                scheduled[request.request_id] = min(budget, pending)
                budget -= scheduled[request.request_id]
        while self.waiting and budget and len(self.running) < self.seats:
            request = self.waiting.popleft()
            self.running.append(request)
            tokens = min(budget, request.num_tokens - request.num_computed_tokens)
            scheduled[request.request_id] = tokens
            budget -= tokens
        for name, tokens in scheduled.items():
            request = self.requests[name]
            request.num_computed_tokens += tokens
            request.left -= request.num_computed_tokens >= request.num_tokens
        return SimpleNamespace(num_scheduled_tokens=scheduled)

    def update_from_output(self, output, *_):
        for name in output.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is None:
                continue
            if request.num_computed_tokens >= request.num_tokens:
                request.num_tokens += 1
            if request.left <= 0:
                self.drop(name)
        return {}

    def drop(self, name) -> None:
        request = self.requests.pop(name)
        self.running = [one for one in self.running if one is not request]
        self.waiting = deque(one for one in self.waiting if one is not request)


class LLMEngine:
    def __init__(self, budget, seats) -> None:
        self.scheduler = Scheduler(budget, seats)
        core = SimpleNamespace(scheduler=self.scheduler)
        self.engine_core = SimpleNamespace(engine_core=core)
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(num_gpu_blocks=BLOCKS, block_size=BLOCK_SIZE),
            model_config=SimpleNamespace(get_vocab_size=lambda: 50),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=budget),
        )
        self.flying = deque()

    def add_request(self, name, prompt, params) -> None:
        request = Request(name, prompt["prompt_token_ids"], params)
        self.scheduler.requests[request.request_id] = request
        self.scheduler.waiting.append(request)

    def abort_request(self, names) -> None:
        for request_id in list(self.scheduler.requests):
            if request_id.split("-0f")[0] in names:
                self.scheduler.drop(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self.scheduler.requests)

    def step(self) -> None:
        if MODE == "dies":
            os.write(2, b"out of memory, or so\n")
            os._exit(3)
        depth = 2 if MODE == "deep" else 1
        if self.scheduler.requests:
            output = self.scheduler.schedule()
            start_s = max(time.perf_counter(), self.flying[-1][1] if self.flying else 0.0)
            self.flying.append((output, start_s + PASS_S))
            if len(self.flying) < depth:
                return
        if self.flying:
            output, back_s = self.flying.popleft()
            time.sleep(max(0.0, back_s - time.perf_counter()))
            self.scheduler.update_from_output(output, None)


class LLM:
    def __init__(self, **arguments) -> None:
        print("vLLM prints whatever it likes to stdout")
        if MODE == "refuses":
            raise ValueError("no such model")
        self.llm_engine = LLMEngine(arguments["max_num_batched_tokens"], arguments["max_num_seqs"])
        if MODE == "stripped":
            self.llm_engine.scheduler.connector = None
