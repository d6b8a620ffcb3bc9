"""One cell: what a trial measures. Its identity is what defines it, never where it was run."""

from dataclasses import dataclass

from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One forward pass of one stage at one clock, or one second of waiting (idle).

    ``clock_mhz`` is 0 where clocks are left as they are (``--clocks current``); the table then
    carries the clock that was reached.
    """

    kind: RowKind
    clock_mhz: int
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    decode_requests: int = 0
    decode_context_tokens: int = 0

    @property
    def shape(self) -> StepShape:
        """The cell as a step."""
        return StepShape(
            self.prefill_tokens,
            self.prefill_context_tokens,
            self.decode_requests,
            self.decode_context_tokens,
        )
