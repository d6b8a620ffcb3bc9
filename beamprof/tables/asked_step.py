"""A step as a person asks for it: sizes that belong together, and sizes that this table knows."""

from beam_runtime.errors import CoverageError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape
from beamprof.errors import SweepError
from beamprof.tables.grid import forward_steps

_MOST_TOKENS = 2**31 - 1


def check_step(
    table: PerfTable,
    prefill: int,
    prefill_context: int,
    decode: int,
    decode_context: int | None,
) -> None:
    """Ask for what is missing, with values that this table can answer.

    Raises:
        SweepError: no tokens at all, decodes without their context, or a context without its
            requests.
    """
    steps = list(forward_steps(table.rows(RowKind.FORWARD)))
    if prefill + decode == 0 and not prefill_context and not decode_context:
        raise SweepError(
            "a step without tokens costs nothing: nothing to look up",
            hint=f"name a chunk or decodes, for example {step_flags(steps[len(steps) // 2])}",
        )
    largest = max(prefill, prefill_context, decode, decode_context or 0)
    if largest > _MOST_TOKENS:
        raise SweepError(
            f"{largest} is more than any engine holds",
            hint=f"a step that this table knows: {step_flags(steps[len(steps) // 2])}",
        )
    if decode and (decode_context is None or decode_context < decode):
        found = "" if decode_context is None else f", found {decode_context}"
        raise SweepError(
            f"--decode {decode}: how many KV tokens do these requests hold together{found}?",
            cause="what a decode costs depends on its context; each holds 1 token or more",
            hint=f"for example {step_flags(_like(steps, decode))}",
        )
    for name, context, requests, needed in (
        ("--prefill-context", prefill_context, prefill, "--prefill"),
        ("--decode-context", decode_context or 0, decode, "--decode"),
    ):
        if context and not requests:
            raise SweepError(
                f"{name} {context} belongs to no request: {needed} is missing",
                hint=f"for example {needed} 32 {name} {max(context, 32)}",
            )


def check_clock(table: PerfTable, clock_mhz: int | None) -> None:
    """Refuse a clock that lies outside the table's.

    Raises:
        CoverageError: the voltage curve beyond measured clocks is unknown.
    """
    low, high = table.clocks_mhz[0], table.clocks_mhz[-1]
    if clock_mhz is not None and not low <= clock_mhz <= high:
        raise CoverageError(
            f"clock {clock_mhz} MHz is outside the table's {low} to {high} MHz",
            hint=f"the nearest: --clock {low if clock_mhz < low else high}",
        )


def _like(steps: list[StepShape], decodes: int) -> StepShape:
    """A measured step of about so many decodes, with its context a request at the asked number."""
    known = [step for step in steps if step.decode_requests]
    if not known:
        return steps[0]
    near = min(known, key=lambda step: abs(step.decode_requests - decodes))
    each = near.decode_context_tokens // near.decode_requests
    return StepShape(0, 0, decodes, max(each, 1) * decodes)


def step_flags(step: StepShape) -> str:
    """A step as flags of `beam table lookup`."""
    sizes = {
        "--prefill": step.prefill_tokens,
        "--prefill-context": step.prefill_context_tokens,
        "--decode": step.decode_requests,
        "--decode-context": step.decode_context_tokens,
    }
    return " ".join(f"{flag} {size}" for flag, size in sizes.items() if size)
