"""How many tokens an answer has, by those that ended and those that go on.

    tokens made for each answer that ended    long ones show before they end
    no more than those that ended have on average, or twice the longest that runs: of a first lot
        many tokens are made and none has ended

Streams that go faster make more tokens at once and end later. Over fewer ends than there are
streams these two do not belong together, and a controller that follows them swings: fast makes
answers look long, slow makes them look short.
"""

from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.types import ASSUMED_ANSWER_TOKENS


class AnswerLength:
    """Learns the mean length of answers.

    Args:
        rules: how fast to learn, and from how many answers of the assumed length.
    """

    def __init__(self, rules: CalibrationRules) -> None:
        self._weight = rules.weight
        self._assumed = float(rules.prior_answers)
        self._ends = self._made_tokens = self._ended_tokens = 0.0
        self._longest_tokens = 0

    def observe_tokens(self, tokens: int) -> None:
        """Learn from tokens of answers, complete or not."""
        self._made_tokens += tokens

    def observe_end(self, tokens: int, running: int) -> None:
        """Learn from an answer that ended, complete or not; its first token came with its prompt.

        Args:
            tokens: that it has.
            running: how many others run: at least so many ends are remembered.
        """
        kept = 1.0 - 1.0 / (1.0 / self._weight + running)
        self._ends = kept * (self._ends + 1.0)
        self._made_tokens = kept * (self._made_tokens + 1.0)
        self._ended_tokens = kept * (self._ended_tokens + tokens)
        self._assumed *= 1.0 - self._weight

    def observe_longest(self, tokens: int) -> None:
        """Learn how many tokens the longest answer that runs has by now."""
        self._longest_tokens = tokens

    @property
    def tokens(self) -> float:
        """The mean."""
        ends = self._ends + self._assumed
        assumed_tokens = self._assumed * ASSUMED_ANSWER_TOKENS
        made = (self._made_tokens + assumed_tokens) / ends
        ended = (self._ended_tokens + assumed_tokens) / ends
        return min(made, max(ended, 2.0 * self._longest_tokens))
