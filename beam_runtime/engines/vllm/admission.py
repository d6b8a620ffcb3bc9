"""Which waiting requests vLLM could admit now, told as its scheduler tells it; nothing is changed.

vLLM passes over a request whose grammar is being compiled, whose KV blocks are on their way, whose
LoRA adapter has no slot, whose earlier output is still in flight, or whose next input is not there
yet. A grammar that is ready, or could not be compiled, and blocks that have arrived wait for vLLM
to look at the request: those count as admissible, so that a step leaves room for that look.
"""

from collections.abc import Iterator
from typing import Any


class Admission:
    """Looks at one scheduler's queues.

    Args:
        scheduler: vLLM's.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        config = getattr(scheduler, "lora_config", None)
        self._max_loras: int | None = getattr(config, "max_loras", None)

    def queue(self) -> Iterator[Any]:
        """Requests that do not run, in the order in which vLLM looks at them."""
        scheduler = self._scheduler
        yield from getattr(scheduler, "kv_holding_waiting", ())
        yield from getattr(scheduler, "skipped_waiting", ())  # where blocked ones are kept apart
        yield from scheduler.waiting

    def admissible(self) -> Iterator[Any]:
        """Those of them that nothing but tokens, KV blocks or seats keeps waiting."""
        loras: set[int] | None = None
        for request in self.queue():
            if _is_blocked(request, self._scheduler):
                continue
            if self._max_loras is not None and (lora := getattr(request, "lora_request", None)):
                loras = self._running_loras() if loras is None else loras
                if len(loras) >= self._max_loras and lora.lora_int_id not in loras:
                    continue
                loras.add(lora.lora_int_id)
            yield request

    def loading(self) -> bool:
        """Whether KV blocks are on their way, which vLLM learns of by running steps."""
        scheduler = self._scheduler
        if getattr(scheduler, "connector", None) is None:
            return False
        return any(_status(request) == "WAITING_FOR_REMOTE_KVS" for request in self.queue())

    def open(self) -> bool:
        """Whether vLLM admits anybody at all: it is not paused, and a seat is free."""
        scheduler = self._scheduler
        pause = getattr(scheduler, "_pause_state", None)
        if getattr(pause, "name", "UNPAUSED") != "UNPAUSED":
            return False
        seats = getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs)
        taken = len(scheduler.running) + getattr(scheduler, "num_waiting_for_streaming_input", 0)
        return bool(taken < seats)

    def _running_loras(self) -> set[int]:
        running = self._scheduler.running
        return {request.lora_request.lora_int_id for request in running if request.lora_request}


def _status(request: Any) -> str:
    """By name: the enumeration is vLLM's, and some of its names come and go."""
    return getattr(request.status, "name", "")


def has_next_input(session: Any) -> bool:
    """Whether a streaming session that has answered goes straight on to its next input."""
    return _status(session) in ("WAITING", "PREEMPTED")


def _is_blocked(request: Any, scheduler: Any) -> bool:
    if getattr(request, "num_stale_output_tokens", 0) and not getattr(
        request, "drop_stale_output", False
    ):
        return True
    match _status(request):
        case "WAITING_FOR_REMOTE_KVS":
            arrived = getattr(scheduler, "finished_recving_kv_req_ids", ())
            return request.request_id not in arrived
        case "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR" | "WAITING_FOR_FSM":  # the older name
            compiled = getattr(request.structured_output_request, "grammar", None)
            return compiled is None
        case "WAITING_FOR_STREAMING_REQ":
            return True
    return False
