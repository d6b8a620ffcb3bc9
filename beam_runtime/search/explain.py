"""A decision in words: the state, the knobs, what they promise, what was refused and why."""

from beam_runtime.emulator.moment import total_tokens
from beam_runtime.printable import in_ms
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Alternative, Decision, Knobs, Snapshot


def explain(state: Snapshot, decision: Decision, cost: StepCost | None = None) -> str:
    """A few lines for a person.

    Args:
        state: what the decision was made for.
        decision: what was decided.
        cost: not needed any more.
    """
    lines = [
        f"state     {describe_state(state)}",
        f"knobs     {describe_knobs(decision.knobs)}",
        f"because   {decision.why}",
    ]
    forecast = decision.forecast
    for name, excess_ms, whose in (
        ("TTFT", forecast.ttft_excess_ms, forecast.ttft_worst),
        ("TBT", forecast.tbt_excess_ms, forecast.tbt_worst),
    ):
        if whose is not None:
            side = "inside" if excess_ms <= 0.0 else "over"
            lines.append(f"{name:<10}{in_ms(abs(excess_ms))} {side} SLO less margin ({whose})")
    energy_j = forecast.active_energy_j + forecast.idle_energy_j
    text = f"energy    {energy_j:.0f} J in the next {forecast.horizon_ms:.0f} ms"
    if forecast.energy_per_token_j is not None:
        text += f", {forecast.energy_per_token_j:.2f} J/token"
    lines.append(text)
    refused = cheapest_refused(decision)
    if refused is not None:
        lines.append(f"refused   {describe_knobs(refused.knobs)}: {refused.refused}")
    return "\n".join(lines)


def cheapest_refused(decision: Decision) -> Alternative | None:
    """The cheapest candidate that would have broken an SLO."""
    broken = [one for one in decision.alternatives if one.request_id is not None]
    return min(broken, key=lambda one: one.energy_j, default=None)


def describe_state(state: Snapshot) -> str:
    """Who waits and who runs."""
    waiting = sum(total_tokens(r) for r in state.waiting)
    context = sum(r.computed_tokens for r in state.running)
    return (
        f"{len(state.waiting)} waiting ({waiting:,} tokens), {len(state.running)} running "
        f"({context:,} tokens of context), {state.knobs.clock_mhz} MHz"
    )


def describe_knobs(knobs: Knobs) -> str:
    """The four settings."""
    batches = "microbatch" if knobs.microbatches == 1 else "microbatches"
    return (
        f"{knobs.clock_mhz} MHz, chunk {knobs.chunk_tokens}, {knobs.microbatches} {batches}, "
        f"pace {knobs.pace_ms:.0f} ms"
    )
