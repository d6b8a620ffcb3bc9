"""Which replica of a data-parallel group this engine is, and what of the configuration is its own.

vLLM tells each engine of a dense group that it is alone (a world of one); its index in the group
stays. Such engines share nothing, so each has a BEAM of its own:

    [clock] gpus    those of the list that this engine's ranks run on
    metrics_port    the port in the file + its index
    log             {rank} in the name is its index; without it, from the second on, .rankN is added

Engines of a group that compute together (mixtures of experts) are refused in limits.py.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beam_runtime.clocks.places import node_of
from beam_runtime.engines.config import EmbeddedConfig

_LOG = logging.getLogger("beam_runtime.vllm")
_RANK = "{rank}"


@dataclass(frozen=True, slots=True)
class Replica:
    """An engine's place in its group.

    Attributes:
        rank: its index in the group; 0 where there is none.
        local_rank: its index on this node.
        in_group: whether it has siblings.
        gpus: how many it runs on.
        assigned: which, by NVML index, where vLLM says so.
    """

    rank: int
    local_rank: int
    in_group: bool
    gpus: int
    assigned: tuple[int, ...] | None

    @classmethod
    def of(cls, vllm_config: Any) -> "Replica":
        """As vLLM's parallel configuration has it in the engine's process."""
        parallel = vllm_config.parallel_config
        local = getattr(parallel, "data_parallel_rank_local", None)
        rank = int(getattr(parallel, "data_parallel_index", 0) or 0)
        tp = getattr(parallel, "tensor_parallel_size", 1)
        pp = getattr(parallel, "pipeline_parallel_size", 1)
        assigned = getattr(parallel, "assigned_physical_gpu_ids", None)
        return cls(
            rank=rank,
            local_rank=rank if local is None else int(local),
            # The first of a dense group has no index that tells, but the group's ports.
            in_group=rank > 0 or bool(getattr(parallel, "_data_parallel_master_port_list", None)),
            gpus=int(tp) * int(pp),
            assigned=None if assigned is None else tuple(assigned),
        )

    def own(
        self, config: EmbeddedConfig, environment: Mapping[str, str] = os.environ
    ) -> EmbeddedConfig:
        """The configuration with what is this replica's in it."""
        log = config.log
        if log is not None and _RANK in log.name:
            log = log.with_name(log.name.replace(_RANK, str(self.rank)))
        if not self.in_group:
            return replace(config, log=log)
        if log is not None and self.rank and log == config.log:
            log = _numbered(log, self.rank)
        port = config.metrics_port
        if port:  # 0 is any free one
            port += self.rank
        gpus = self._own_gpus(config.gpus, environment)
        return replace(config, log=log, metrics_port=port, gpus=gpus)

    def _own_gpus(
        self, named: Sequence[str | int], environment: Mapping[str, str]
    ) -> tuple[str | int, ...]:
        """Of the GPUs that the file names for the whole node, this engine's."""
        if not named:
            return ()
        seen = _visible(environment)
        mine: Sequence[str | int] = ()
        if any(node_of(gpu) for gpu in named):
            why = "[clock.nodes] cannot say which replica's they are"
        elif self.assigned is not None and all(isinstance(gpu, int) for gpu in named):
            mine, why = self.assigned, f"it runs on {_text(self.assigned)}"
        elif seen is not None and len(seen) == self.gpus:
            mine, why = seen, f"CUDA_VISIBLE_DEVICES is {_text(seen)}"
        else:
            begin = self.local_rank * self.gpus
            mine = named[begin : begin + self.gpus]
            why = f"the list has {len(named)} and it needs {self.gpus} from number {begin} on"
        if len(mine) == self.gpus and set(mine) <= set(named):
            return tuple(mine)
        _LOG.warning(
            "clocks of data-parallel replica %d stay as they are: which of [clock] gpus %s are "
            "its own? %s", self.rank, _text(named), why,
        )  # fmt: skip
        return ()


def _visible(environment: Mapping[str, str]) -> tuple[str | int, ...] | None:
    """CUDA_VISIBLE_DEVICES; None where it is not set."""
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(int(name) if name.isdecimal() and len(name) < 10 else name for name in names)


def _numbered(log: Path, rank: int) -> Path:
    return log.with_name(f"{log.stem}.rank{rank}{log.suffix}")


def _text(gpus: Sequence[str | int]) -> str:
    return ", ".join(map(str, gpus)) or "none"
