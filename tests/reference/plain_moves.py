"""The two moves of an engine on paper: a step enters its pipeline, the oldest one comes back."""

from dataclasses import replace

from plain_pipeline import Pass
from plain_schedule import Step, cached_tokens

from beam_runtime.types import RequestState, Snapshot, StepInFlight


def issue(state: Snapshot, step: Step, route: tuple[Pass, ...]) -> Snapshot:
    """The engine with one step more in its pipeline.

    Args:
        state: the engine before.
        step: what the composer chose.
        route: its passes, one per stage; empty where nothing was left of the step.
    """
    tokens = dict.fromkeys(step.decodes, 1) | dict(step.chunks)
    waiting = {r.request_id: r for r in state.waiting}
    block_size = state.limits.block_size
    joining = [_admitted(waiting.pop(name), block_size) for name in step.admitted]
    lost = [r for r in state.running if r.request_id in step.preempted]
    running = [r for r in state.running if r.request_id not in step.preempted]
    depth = len(state.in_flight) + 1
    running = [
        replace(
            r, computed_tokens=r.computed_tokens + tokens[r.request_id], steps_ahead=depth
        )
        if r.request_id in tokens else r
        for r in (*running, *joining)
    ]  # fmt: skip
    in_flight, free_ms = state.in_flight, state.stage_free_ms
    if route:
        complete = [
            r.request_id for r in running if r.request_id in tokens and not r.pending_tokens
        ]
        in_flight = (*in_flight, StepInFlight(route[-1].end_ms, tuple(complete)))
        free_ms = tuple(one.end_ms for one in route)
    return replace(
        state,
        running=tuple(running),
        waiting=(*(_preempted(r) for r in lost), *waiting.values()),
        in_flight=in_flight,
        stage_free_ms=free_ms,
        free_blocks=state.free_blocks - step.blocks,
    )


def finish(state: Snapshot, now_ms: float) -> Snapshot:
    """The engine after its oldest step came back: its requests have one token more."""
    returned = set(state.in_flight[0].request_ids)

    def received(request: RequestState) -> RequestState:
        if request.steps_ahead:
            request = replace(request, steps_ahead=request.steps_ahead - 1)
        if request.request_id not in returned:
            return request
        first_ms = now_ms if request.first_token_ms is None else request.first_token_ms
        return replace(
            request,
            generated_tokens=request.generated_tokens + 1,
            first_token_ms=first_ms,
            last_token_ms=now_ms,
        )

    return replace(
        state,
        running=tuple(map(received, state.running)),
        waiting=tuple(map(received, state.waiting)),
        in_flight=state.in_flight[1:],
    )


def _admitted(request: RequestState, block_size: int) -> RequestState:
    cached = cached_tokens(request, block_size)
    return replace(request, computed_tokens=cached, cached_tokens=cached)


def _preempted(request: RequestState) -> RequestState:
    return replace(request, computed_tokens=0, cached_tokens=0, unheld_tokens=0)
