"""A decision in words: the state, the knobs, what they promise, what was refused and why."""

from dataclasses import dataclass

from beam_runtime.emulator.forecast import LOOKAHEAD_MS, decode_phase, play
from beam_runtime.emulator.pipeline import ClockPlan, Pipeline, clock_index
from beam_runtime.emulator.schedule import total_tokens
from beam_runtime.emulator.steady import steady
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Alternative, Decision, Forecast, Knobs, Rules, Snapshot


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens computed within a forecast's horizon, and the joules for one.

    Attributes:
        prompt_tokens: of prompts.
        output_tokens: of answers.
        energy_per_token_j: all energy of the horizon, idle power included, over both; None
            where no token is computed.
    """

    prompt_tokens: float
    output_tokens: float
    energy_per_token_j: float | None


def work(
    state: Snapshot, knobs: Knobs, forecast: Forecast, cost: StepCost, rules: Rules | None = None
) -> Work:
    """What is done within the horizon; plays the emulator, so not for the serving path.

    Args:
        state: the engine.
        knobs: the setting.
        forecast: what was forecast of it.
        cost: step costs; their idle power must be known.
        rules: the composer's.
    """
    rules = rules or Rules()
    pipeline = Pipeline(
        cost, state.limits, state.correction, ClockPlan.asking_for(knobs.clock_mhz, state)
    )
    played = play(state, knobs, pipeline, rules, LOOKAHEAD_MS)
    end = played.prefill.state
    rest_ms = max(0.0, forecast.horizon_ms - played.prefill.span_ms / state.limits.pp)
    after = steady(
        decode_phase(end), knobs.microbatches, knobs.pace_ms, cost, state.limits,
        state.correction, rules,
    )  # fmt: skip
    rate = float(after.tokens_per_ms[clock_index(cost, knobs.clock_mhz)])
    prompts = _prompt_tokens_left(state) - _prompt_tokens_left(end)
    outputs = played.prefill.decodes + rate * rest_ms
    tokens = prompts + outputs
    energy_j = forecast.active_energy_j + forecast.idle_energy_j
    return Work(prompts, outputs, energy_j / tokens if tokens else None)


def explain(state: Snapshot, decision: Decision, cost: StepCost | None = None) -> str:
    """A few lines for a person. Plays the emulator, so not for the serving path.

    Args:
        state: what the decision was made for.
        decision: what was decided.
        cost: step costs, for joules per token; their idle power must be known
            (idle_power.with_idle_power sees to it).
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
            lines.append(f"{name:<10}{abs(excess_ms):.0f} ms {side} SLO less margin ({whose})")
    energy_j = forecast.active_energy_j + forecast.idle_energy_j
    text = f"energy    {energy_j:.0f} J in the next {forecast.horizon_ms:.0f} ms"
    if cost is not None:
        done = work(state, decision.knobs, forecast, cost)
        if done.energy_per_token_j is not None:
            text += f", {done.energy_per_token_j:.2f} J/token"
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


def _prompt_tokens_left(state: Snapshot) -> int:
    return sum(r.pending_tokens for r in (*state.running, *state.waiting) if r.pending_tokens > 1)
