"""A replay as people see it: one sentence, then the ladder of policies."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beamprof.replay.ladder import ReplayReport, Rung
from beamprof.report.page import block, fitted_block, heading, next_command, plain_table, sentence
from beamprof.units import format_duration, format_energy

# A policy that breaks more promises than this beside vanilla is no answer, however little it needs.
AS_GOOD_POINTS = 1.0


def show_replay(report: ReplayReport, following: str, console: Console) -> None:
    """`beam replay`."""
    sentence(console, answer(report))
    slo = report.options.slo
    block(
        console,
        f"{report.model} tp{report.tp} pp{report.pp} on {report.device}; {report.requests:,} "
        f"requests in {format_duration(report.duration_s)}; "
        f"SLO TTFT {format_duration(slo.ttft_ms / 1e3)}, TBT {format_duration(slo.token_ms / 1e3)}",
    )
    heading(console, "Energy", "all GPUs, idling included until the trace ends")
    shares = ("idle %", "decode %", "prefill %")
    fitted_block(console, _energy(report), (*shares, "W", "J/token"))
    heading(console, "Latency", "attainment in %, then percentage points beside vanilla")
    fitted_block(console, _latency(report), ("", "p99 ms", "TBT p50 ms", "TTFT p50 ms"))
    if report.vanilla.attainment.impossible:
        block(
            console,
            f"{report.vanilla.attainment.impossible} prompts are too long for the TTFT SLO even "
            "alone at the highest clock",
        )
    for reason, count in report.dropped.items():
        block(console, f"{count:,} {reason.replace('_', ' ')}")
    for path in report.paths:
        console.print(Text("wrote ", "dim").append(str(path), "not dim"), soft_wrap=True)
    next_command(console, following)


def answer(report: ReplayReport) -> str:
    """The sentence that stands first: the cheapest policy that is as good as vanilla."""
    keeping = [r for r in report.rungs if min(r.ttft_points, r.tbt_points) >= -AS_GOOD_POINTS]
    best = min(keeping, key=lambda rung: rung.to_vanilla)
    m = best.metrics
    if best is report.rungs[0]:
        saving = any(rung.to_vanilla < 1 for rung in report.rungs[1:])
        least = " and keeps vanilla's promises" if saving else ""
        return f"Nothing saves energy{least}: vanilla needs {format_energy(m.energy_j)}."
    return (
        f"{m.policy} needs {format_energy(m.energy_j)}, {100 * best.to_vanilla:.0f} % of vanilla's "
        f"and {100 * best.to_knee:.0f} % of the best single clock's energy ({report.knee_mhz} "
        f"MHz), and keeps TTFT for {100 * m.attainment.ttft:.2f} % of requests "
        f"({best.ttft_points:+.2f} points) and TBT for {100 * m.attainment.tbt:.2f} % of tokens "
        f"({best.tbt_points:+.2f})."
    )


def _energy(report: ReplayReport) -> Table:
    page = plain_table(
        ("policy",),
        ("energy", "of vanilla", "of knee", "J/token", "W", "prefill %", "decode %", "idle %"),
    )
    for rung in report.rungs:
        m = rung.metrics
        parts = (m.prefill_energy_j, m.decode_energy_j, m.idle_energy_j)
        page.add_row(
            m.policy, format_energy(m.energy_j), f"{rung.to_vanilla:.3f}", f"{rung.to_knee:.3f}",
            f"{m.j_per_token:.2f}", f"{m.mean_power_w:,.0f}",
            *(f"{100 * part / m.energy_j:.0f}" for part in parts),
        )  # fmt: skip
    if report.oracle_j is not None:
        vanilla, knee = (rung.metrics.energy_j for rung in report.rungs[:2])
        page.add_row(
            "oracle (bound)", format_energy(report.oracle_j), f"{report.oracle_j / vanilla:.3f}",
            f"{report.oracle_j / knee:.3f}",
        )  # fmt: skip
    return page


def _latency(report: ReplayReport) -> Table:
    page = plain_table(
        ("policy",),
        ("TTFT p50 ms", "p99 ms", "kept", "", "TBT p50 ms", "p99 ms", "kept", "", "both"),
    )
    for rung in report.rungs:
        page.add_row(*_latency_row(rung))
    return page


def _latency_row(rung: Rung) -> list[str]:
    m, kept = rung.metrics, rung.metrics.attainment
    return [
        m.policy,
        f"{m.ttft.p50_ms:.0f}", f"{m.ttft.p99_ms:.0f}",
        f"{100 * kept.ttft:.2f}", f"{rung.ttft_points:+.2f}",
        f"{m.tbt.p50_ms:.0f}", f"{m.tbt.p99_ms:.0f}",
        f"{100 * kept.tbt:.2f}", f"{rung.tbt_points:+.2f}",
        f"{100 * kept.requests:.2f}",
    ]  # fmt: skip
