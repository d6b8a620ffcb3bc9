"""N clients of one server, each with one request in flight: vLLM's steps, one after the other.

A step decodes for all that run and prefills what fits of those that wait, first come first served.
Benchmarks ask for outputs of one length, so those that start together end together, and their
successors' prompts arrive together: most first tokens wait for other prompts. That is why the mean
over arrivals at random says half of a benchmark's TTFT.

The replay's plant plays the same loop (Site.concurrency) on a table: vLLM's rows of
served-configurations came out 10.2 / 18.2 % off in TPOT / TTFT instead of 9.6 / 18.7 %, and steps
with four decodes of gpt-oss-120b, 4 ms long, 0.35 ms longer. These steps are priced one by one.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop; lengths in tokens.

    Attributes:
        jitter_tokens: by so much answers that start together drift apart until they end.
        front_ms: from an answer's end to the next request's arrival at the scheduler.
        back_ms: from a first token to its client; counts as TTFT.
    """

    clients: int
    prompt_tokens: int
    output_tokens: int
    budget_tokens: int
    jitter_tokens: float = 10.0
    front_ms: float = 3.0
    back_ms: float = 12.0
    rounds: int = 10


@dataclass(slots=True)
class _Request:
    sent_ms: float
    prompt_left: int
    output_tokens: int
    left: int = 0
    first_ms: float = 0.0


def serve(load: Load, step_ms: Callable[[int, int], float], seed: int = 0) -> tuple[float, float]:
    """Mean TPOT and TTFT, milliseconds; ``step_ms`` takes prompt tokens and decodes of a step."""
    rng = np.random.default_rng(seed)
    coming: list[tuple[float, int]] = []
    requests: list[_Request] = []
    total = load.clients * load.rounds

    def send(now_ms: float) -> None:
        if len(requests) == total:
            return
        length = load.output_tokens + load.jitter_tokens * (rng.random() - 0.5)
        requests.append(_Request(now_ms, load.prompt_tokens, max(1, round(length))))
        heapq.heappush(coming, (now_ms + load.front_ms, len(requests) - 1))

    for _ in range(load.clients):
        send(0.0)
    waiting: deque[_Request] = deque()
    running: list[_Request] = []
    ended: list[tuple[float, float]] = []
    now_ms = 0.0
    while len(ended) < total:
        while coming and coming[0][0] <= now_ms:
            waiting.append(requests[heapq.heappop(coming)[1]])
        if not waiting and not running:
            now_ms = coming[0][0]
            continue
        steps, chunk, started = 1, 0, []
        if waiting:
            left = load.budget_tokens - len(running)
            while waiting and left > 0:
                took = min(left, waiting[0].prompt_left)
                waiting[0].prompt_left -= took
                left, chunk = left - took, chunk + took
                if not waiting[0].prompt_left:
                    started.append(waiting.popleft())
        one_ms = step_ms(chunk, len(running))
        if not chunk:
            steps = min(request.left for request in running)
            if coming:
                steps = min(steps, max(1, int(np.ceil((coming[0][0] - now_ms) / one_ms))))
        now_ms += steps * one_ms
        for request in running:
            request.left -= steps
        for request in started:
            request.first_ms, request.left = now_ms, request.output_tokens - 1
        running += started
        for request in [r for r in running if r.left <= 0]:
            more = max(1, request.output_tokens - 1)
            ended.append(((now_ms - request.first_ms) / more, request.first_ms - request.sent_ms))
            send(now_ms)
        running = [r for r in running if r.left > 0]
    tpot, ttft = np.array(ended).mean(axis=0)
    return float(tpot), float(ttft) + load.back_ms


def grid(
    step_ms: Callable[[int, int], float], budget_tokens: int, clients: int
) -> Callable[[int, int], float]:
    """The same between a few chunks and batches, by bilinear interpolation: steps are many."""
    chunks = np.unique([0, *np.geomspace(64, budget_tokens, 9).astype(int)])
    batches = np.unique([0, *np.geomspace(1, max(clients, 2), 5).round().astype(int)])
    table = np.array([
        [step_ms(int(c), int(n)) if c or n else 0.0 for n in batches] for c in chunks
    ])  # fmt: skip

    def at(chunk: int, decodes: int) -> float:
        i = min(max(int(np.searchsorted(chunks, chunk, side="right")) - 1, 0), chunks.size - 2)
        j = min(max(int(np.searchsorted(batches, decodes, side="right")) - 1, 0), batches.size - 2)
        u = (chunk - chunks[i]) / (chunks[i + 1] - chunks[i])
        v = (decodes - batches[j]) / (batches[j + 1] - batches[j])
        low = (1 - u) * table[i, j] + u * table[i + 1, j]
        high = (1 - u) * table[i, j + 1] + u * table[i + 1, j + 1]
        return float((1 - v) * low + v * high)

    return at
