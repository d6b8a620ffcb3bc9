"""Why these knobs: from what a search tried to a Decision that explains itself."""

from dataclasses import dataclass

from beam_runtime.printable import in_ms
from beam_runtime.types import SAME_MS, Alternative, Decision, Forecast, Knobs


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate that was played.

    Attributes:
        knobs: the setting.
        energy_j: over equal work, with the price of a clock change.
        ttft_excess_ms: worst TTFT + margin - SLO.
        tbt_excess_ms: the same for TBT.
        broken: requests expected to lose a promise, those to come included.
        request_id: whose SLO it misses, if it misses one.
    """

    knobs: Knobs
    energy_j: float
    ttft_excess_ms: float
    tbt_excess_ms: float
    broken: float
    request_id: str | None

    @property
    def feasible(self) -> bool:
        """Whether it keeps every SLO, margins included, and nobody to come waits too long."""
        return self.broken == 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        knobs: the setting it takes.
        forecast: of these knobs.
        energy_j: what it was compared by.
        violation: requests expected to lose a promise; 0 where all margins are kept.
        tried: every candidate that was played.
    """

    knobs: Knobs
    forecast: Forecast
    energy_j: float
    violation: float
    tried: tuple[Tried, ...]


def decision(found: Found, decided_ms: float, note: str = "") -> Decision:
    """The decision, what else was looked at, and why each of those was refused."""
    others = {t.knobs: t for t in found.tried if t.knobs != found.knobs}
    alternatives = tuple(
        Alternative(t.knobs, t.energy_j, _refused(t, found), None if t.feasible else t.request_id)
        for t in sorted(others.values(), key=lambda t: t.energy_j)
    )
    why = _why(found, alternatives) + note
    return Decision(found.knobs, found.forecast, why, alternatives, decided_ms)


def _why(found: Found, alternatives: tuple[Alternative, ...]) -> str:
    forecast = found.forecast
    if forecast.broken > 0.0:
        worst = forecast.tbt_worst if forecast.tbt_excess_ms > SAME_MS else forecast.ttft_worst
        missed = _missed(forecast.ttft_excess_ms, forecast.tbt_excess_ms, worst)
        return f"nothing keeps every SLO; this misses least ({missed})"
    cheaper = next((a for a in alternatives if a.energy_j < found.energy_j), None)
    if cheaper is None:
        return f"the least energy, {found.energy_j:.0f} J"
    return (
        f"the least energy that keeps every SLO, {found.energy_j:.0f} J; cheaper, "
        f"{cheaper.energy_j:.0f} J: {_said(cheaper.knobs)}: {cheaper.refused}"
    )


def _refused(tried: Tried, found: Found) -> str:
    more_j = tried.energy_j - found.energy_j
    if tried.feasible or (found.forecast.broken > 0.0 and more_j >= 0.0):
        return f"{more_j:+.1f} J"
    return _missed(tried.ttft_excess_ms, tried.tbt_excess_ms, tried.request_id)


def _missed(ttft_excess_ms: float, tbt_excess_ms: float, request_id: str | None) -> str:
    late_tbt = tbt_excess_ms > SAME_MS
    if not late_tbt and ttft_excess_ms <= SAME_MS:
        return "whoever comes next waits too long behind the queue"
    excess_ms = tbt_excess_ms if late_tbt else ttft_excess_ms
    return (
        f"{'TBT' if late_tbt else 'TTFT'} of {request_id} {in_ms(excess_ms)} late, margin included"
    )


def _said(knobs: Knobs) -> str:
    batches = "microbatch" if knobs.microbatches == 1 else "microbatches"
    return (
        f"{knobs.clock_mhz} MHz, chunk {knobs.chunk_tokens}, {knobs.microbatches} {batches}, "
        f"pace {knobs.pace_ms:.0f} ms"
    )
