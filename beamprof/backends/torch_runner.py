"""Run a prepared pass: on a CPU by the clock on the wall, on CUDA by events on the GPU."""

import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import torch

from beam_runtime.types import StepShape
from beamprof.backends.torch_pass import Stage

GRAPH_LIMIT_TOKENS = 512  # vLLM captures batches up to this many tokens
GRAPH_WARM_PASSES = 3  # PyTorch asks for some passes on a side stream before a capture


class CpuRunner:
    """Runs at once, each pass between two readings of the clock."""

    runs_ahead = False

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._run: Callable[[], object] | None = None
        self._done: deque[list[float]] = deque()

    def prepare(self, step: StepShape) -> None:
        """Random inputs and caches of the step."""
        self._run = None
        self._run = self._stage.ready(step).run

    def enqueue(self, passes: int) -> None:
        """Run them."""
        if self._run is None:
            raise RuntimeError("prepare comes before enqueue")
        latencies_ms = []
        with torch.inference_mode():
            for _ in range(passes):
                begun_s = time.perf_counter()
                self._run()
                latencies_ms.append((time.perf_counter() - begun_s) * 1e3)
        self._done.append(latencies_ms)

    def collect(self) -> list[float]:
        """Milliseconds of the oldest passes that were run."""
        return self._done.popleft()

    def close(self) -> None:
        """Free the pass."""
        self._run = None


class CudaRunner:
    """Hands passes to the GPU's queue, with an event between each two.

    Decode batches and short passes run as CUDA graphs, as vLLM runs them; longer ones are
    launched kernel by kernel, and where launching takes longer than the GPU needs, that shows.
    """

    runs_ahead = True

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._run: Callable[[], object] | None = None
        self._queued: deque[list[torch.cuda.Event]] = deque()

    def prepare(self, step: StepShape) -> None:
        """Random inputs and caches of the step; the graph of a decode batch."""
        self.close()
        with torch.inference_mode(), torch.cuda.device(self._stage.device):
            ready = self._stage.ready(step)
            eager = step.prefill_tokens > 0 and step.tokens > GRAPH_LIMIT_TOKENS
            self._run = ready.run if eager else _graph_of(ready.run)

    def enqueue(self, passes: int) -> None:
        """Queue them, one event more than passes."""
        if self._run is None:
            raise RuntimeError("prepare comes before enqueue")
        events = [torch.cuda.Event(enable_timing=True) for _ in range(passes + 1)]
        with torch.inference_mode(), torch.cuda.device(self._stage.device):
            events[0].record()
            for event in events[1:]:
                self._run()
                event.record()
        self._queued.append(events)

    def collect(self) -> list[float]:
        """Milliseconds between the events of the oldest passes in the queue."""
        events = self._queued.popleft()
        events[-1].synchronize()
        return [begin.elapsed_time(end) for begin, end in pairwise(events)]

    def close(self) -> None:
        """Wait for the queue, free pass and graph."""
        if self._queued:
            torch.cuda.synchronize(self._stage.device)
        self._queued.clear()
        self._run = None
        torch.cuda.empty_cache()


def _graph_of(run: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARM_PASSES):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads (NCCL's watchdog) may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept  # the graph writes into it: it must outlive every replay

    return replay
