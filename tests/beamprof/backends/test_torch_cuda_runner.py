"""CudaRunner's bookkeeping, on a CUDA that is stood in for: events on a simulated clock."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from beam_runtime.types import StepShape  # noqa: E402
from beamprof.backends import torch_runner  # noqa: E402
from beamprof.backends.torch_runner import CudaRunner  # noqa: E402


class FakeCuda:
    """A GPU whose every pass takes ``pass_ms``; events remember when they were reached."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.pass_ms = 4.0
        self.synchronised_at_ms: list[float] = []
        self.graphs = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_ms = cuda.now_ms

            def synchronize(self) -> None:
                cuda.synchronised_at_ms.append(self.at_ms)

            def elapsed_time(self, later: "Event") -> float:
                return later.at_ms - self.at_ms

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(
            torch.cuda, "synchronize", lambda _: self.synchronised_at_ms.append(self.now_ms)
        )
        monkeypatch.setattr(torch_runner, "_graph_of", self.graph_of)

    def graph_of(self, run: Any) -> Any:
        self.graphs += 1
        return run

    def run(self) -> None:
        self.now_ms += self.pass_ms


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def runner_on(cuda: FakeCuda) -> CudaRunner:
    stage = SimpleNamespace(device="cuda:0", ready=lambda step: SimpleNamespace(run=cuda.run))
    return CudaRunner(stage)


def test_each_pass_is_timed_between_its_two_events(cuda: FakeCuda) -> None:
    runner = runner_on(cuda)
    runner.prepare(StepShape(1024))
    runner.enqueue(3)
    cuda.pass_ms = 5.0
    runner.enqueue(2)
    assert cuda.synchronised_at_ms == []  # handing over does not wait
    assert runner.collect() == [4.0, 4.0, 4.0]
    assert cuda.synchronised_at_ms == [12.0]  # waits for its own last event, not for the queue
    assert runner.collect() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("step", "captured"),
    [
        (StepShape(0, 0, 1, 100), 1),
        (StepShape(0, 0, 900, 9000), 1),
        (StepShape(480, 0, 32, 100), 1),
        (StepShape(481, 0, 32, 100), 0),
        (StepShape(2048), 0),
    ],
)
def test_decodes_and_short_passes_are_captured(
    cuda: FakeCuda, step: StepShape, captured: int
) -> None:
    runner_on(cuda).prepare(step)
    assert cuda.graphs == captured


def test_a_new_pass_waits_for_what_is_queued_and_forgets_it(cuda: FakeCuda) -> None:
    runner = runner_on(cuda)
    runner.prepare(StepShape(1024))
    runner.enqueue(2)
    runner.prepare(StepShape(2048))
    assert cuda.synchronised_at_ms == [8.0]
    runner.enqueue(1)
    assert len(runner.collect()) == 1
    runner.close()
    with pytest.raises(RuntimeError, match="prepare"):
        runner.enqueue(1)
