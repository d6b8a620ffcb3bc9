"""The tensor-parallel ranks of a stage, when started under torchrun.

    rank 0      decides; tells the others what to prepare and how many passes to run
    the others  follow() until rank 0 stops them

Passes meet in their all-reduces (NCCL on GPUs, gloo on CPUs); orders travel by gloo.
"""

import os
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from beam_runtime.errors import BeamError
from beam_runtime.types import StepShape
from beamprof.backends.measuring import StageRunner
from beamprof.errors import BackendError


class Ranks:
    """This process among the ranks of one stage.

    Args:
        place: "cuda" or "cpu".
    """

    def __init__(self, place: str) -> None:
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if place == "cuda":
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if place == "cuda" else "gloo")
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._orders = dist.new_group(backend="gloo")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reduce(self, partial: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        dist.all_reduce(partial)
        return partial

    def gather(self, mine: Any) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        everybodys: list[Any] = [None] * self.size
        dist.all_gather_object(everybodys, mine, group=self._orders)
        return everybodys

    def agree(self, error: BeamError | None) -> None:
        """Go on only if nobody failed.

        Raises:
            BackendError: some rank failed; its words are the cause.
        """
        failures = self.gather(None if error is None else str(error))
        for rank, words in enumerate(failures):
            if words is not None:
                if rank == self.rank and error is not None:
                    raise error
                raise BackendError(f"rank {rank} of {self.size} failed", cause=words)

    def order(self, what: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """Rank 0 says what to do; the others hear it."""
        box: list[Any] = [what]
        dist.broadcast_object_list(box, src=0, group=self._orders)
        heard: tuple[Any, ...] = box[0]
        return heard

    def close(self) -> None:
        """Leave the group. May be called twice."""
        if dist.is_initialized():
            dist.destroy_process_group()


class LeadingRunner:
    """Rank 0's StageRunner: gives every order to the others before it obeys itself."""

    def __init__(self, ranks: Ranks, own: StageRunner) -> None:
        self._ranks = ranks
        self._own = own

    @property
    def runs_ahead(self) -> bool:
        """As the runner itself."""
        return self._own.runs_ahead

    def prepare(self, step: StepShape) -> None:
        """Everybody prepares; BackendError if one cannot."""
        self._ranks.order(("prepare", step))
        _prepare(self._ranks, self._own, step)

    def enqueue(self, passes: int) -> None:
        """Everybody runs so many passes."""
        self._ranks.order(("run", passes))
        self._own.enqueue(passes)

    def collect(self) -> list[float]:
        """This rank's times: the all-reduces make every rank as slow as the slowest."""
        return self._own.collect()

    def close(self) -> None:
        """Send the others home."""
        self._ranks.order(("stop",))
        self._own.close()


def follow(ranks: Ranks, own: StageRunner) -> None:
    """Do what rank 0 says until it stops.

    Raises:
        BackendError: a rank could not prepare a pass.
    """
    waiting = 0
    while True:
        verb, *rest = ranks.order()
        if verb == "stop":
            own.close()
            return
        if verb == "prepare":
            for _ in range(waiting):
                own.collect()
            waiting = 0
            try:
                _prepare(ranks, own, rest[0])
            except BackendError:
                continue  # rank 0 got the same error and decides what comes next
        if verb == "run":
            own.enqueue(rest[0])
            waiting += 1
            if waiting > 2:  # rank 0 is one batch ahead of the one it waits for
                own.collect()
                waiting -= 1


def _prepare(ranks: Ranks, own: StageRunner, step: StepShape) -> None:
    failure: BeamError | None = None
    try:
        own.prepare(step)
    except BeamError as error:
        failure = error
    ranks.agree(failure)
