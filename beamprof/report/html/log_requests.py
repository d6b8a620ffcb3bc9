"""What a decision log says of single requests: promises kept and joules, by SLO class."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from beamprof.report.html.log_values import number, number_or_none
from beamprof.report.html.number_words import percent, significant
from beamprof.report.html.part import Grid, Section

_HEADS = (
    "class", "requests", "kept", "J/request mean", "p50", "p99", "J/token", "TTFT p50 ms", "p99",
    "longest gap p50 ms", "p99",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    """One request that has its last token.

    Attributes:
        slo_class: empty where the engine knows none.
        late: a promise to it was broken.
        ttft_ms, longest_gap_ms: None where it had none.
        generated_tokens: of its answer.
        active_energy_j: its share of the steps that it was in, by the table.
    """

    slo_class: str
    late: bool
    ttft_ms: float | None
    longest_gap_ms: float | None
    generated_tokens: int
    active_energy_j: float


def done_requests(records: Iterable[Mapping[str, Any]]) -> tuple[Done, ...]:
    """From the log's ``request`` records."""
    return tuple(
        Done(
            str(one.get("slo_class") or ""),
            bool(one["late"]),
            number_or_none(one.get("ttft_ms")),
            number_or_none(one.get("longest_gap_ms")),
            int(number(one["generated_tokens"])),
            number(one["active_energy_j"]),
        )
        for one in records
    )


def requests_section(done: tuple[Done, ...]) -> Section | None:
    """Goodput first, then what readers got and what it took; None where no request is told of."""
    if not done:
        return None
    names = sorted({one.slo_class for one in done})
    rows = [_row("all", done)]
    if len(names) > 1:
        rows += [
            _row(name or "default", tuple(one for one in done if one.slo_class == name))
            for name in names
        ]
    return Section(
        "Requests", "Kept: those with every promise kept. Joules: of the steps that a request was "
        "in, shared by the tokens it had in them, as the table has it; idling is not in it.",
        Grid((), _HEADS, tuple(rows)),
    )  # fmt: skip


def goodput(done: tuple[Done, ...]) -> float:
    """Share of requests with every promise kept, 0 to 1."""
    return 1.0 - sum(one.late for one in done) / len(done)


def mean_j(done: tuple[Done, ...]) -> float:
    """Active energy of a request."""
    return sum(one.active_energy_j for one in done) / len(done)


def _row(name: str, done: tuple[Done, ...]) -> tuple[str, ...]:
    energy_j = [one.active_energy_j for one in done]
    tokens = sum(one.generated_tokens for one in done)
    return (
        name,
        f"{len(done):,}",
        percent(goodput(done)),
        significant(mean_j(done)),
        *(significant(float(one)) for one in np.percentile(energy_j, (50, 99))),
        significant(sum(energy_j) / tokens) if tokens else "",
        *_two(one.ttft_ms for one in done),
        *_two(one.longest_gap_ms for one in done),
    )


def _two(values: Iterable[float | None]) -> tuple[str, str]:
    known = [value for value in values if value is not None]
    if not known:
        return "", ""
    p50, p99 = np.percentile(known, (50, 99)).tolist()
    return f"{p50:,.0f}", f"{p99:,.0f}"
