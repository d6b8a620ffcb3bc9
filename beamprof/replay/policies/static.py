"""Static: clocks locked at one value, everything else as vLLM does it.

What a person does with one nvidia-smi line, and the baseline that counts.
"""

from beam_runtime.types import Knobs
from beamprof.replay.policies.base import CHUNK_TOKENS, Policy
from beamprof.replay.view import View


class Static(Policy):
    """One clock for ever.

    Args:
        name: as the user writes it.
        clock_mhz: the clock; None = the table's highest, which is what an unlocked A100 runs at.
        chunk_tokens: vLLM's max_num_batched_tokens; BEAM's authors used 256.
    """

    def __init__(self, name: str, clock_mhz: int | None, chunk_tokens: int = CHUNK_TOKENS) -> None:
        super().__init__(name)
        self.clock_mhz = clock_mhz
        self.chunk_tokens = chunk_tokens
        self.max_batched_tokens = chunk_tokens

    def start(self, view: View) -> Knobs:
        """Lock the clock."""
        return Knobs(self.clock_mhz or int(view.cost.clocks_mhz[-1]), self.chunk_tokens)
