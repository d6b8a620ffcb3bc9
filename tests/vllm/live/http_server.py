"""What a server with BEAM is asked over plain HTTP on the loopback interface."""

import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection


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


def spoken_to(port: int, control_port: int) -> dict:
    """Streams of one class, one hung up on, a promise changed, a senseless one refused."""
    beam = f"http://127.0.0.1:{control_port}"
    before = json.loads(get(f"{beam}/status"))
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
    return {
        "chunks": chunks, "before": before, "status": status, "changed": changed,
        "refused": refused, "metrics": get(f"{beam}/metrics"),
    }  # fmt: skip
