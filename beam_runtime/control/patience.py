"""How long prompts wait for streams: much, unless all of them come to wait too long.

Where more comes than streams leave room for, prompts wait. For a while that pays: their first
tokens are late, the streams are not. If it lasts, the queue grows until no first token is in time
at all, and protecting streams keeps nobody's promises. Then prompts are served as vLLM would
before their first token is late; streams are late in the rush, and kept where it is over.
"""

from beam_runtime.types import PATIENT_SLOS

# Of the newest arrival in the share of those who find a prompt too late. It takes 750 in a row to
# come from none to FROM_SHARE: a rush of a minute or two is better sat out (docs/how-it-works.md).
WEIGHT = 0.004
# From this share on prompts are hurried, until that one.
FROM_SHARE, TO_SHARE = 0.95, 0.1
# How many times its TTFT SLO a prompt waits then: no first token is late yet.
HURRIED_SLOS = 0.5


class Patience:
    """Follows what those who come find waiting."""

    def __init__(self) -> None:
        self.late_share = 0.0
        self._hurried = False

    def observe_arrival(self, waited_slos: float) -> None:
        """A request comes; the prompt that waits longest has waited for so many TTFT SLOs."""
        late = waited_slos > (HURRIED_SLOS if self._hurried else 1.0)
        self.late_share += WEIGHT * (late - self.late_share)
        if self.late_share > FROM_SHARE:
            self._hurried = True
        elif self.late_share < TO_SHARE:
            self._hurried = False

    @property
    def slos(self) -> float:
        """Correction.patience_slos."""
        return HURRIED_SLOS if self._hurried else PATIENT_SLOS
