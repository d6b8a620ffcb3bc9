"""How many tokens an answer has, by those that ended and those that go on."""

import pytest

from beam_runtime.control.answer_length import AnswerLength
from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.types import ASSUMED_ANSWER_TOKENS


@pytest.fixture
def length() -> AnswerLength:
    return AnswerLength(CalibrationRules())


def end(length: AnswerLength, answers: int, tokens: int, running: int) -> None:
    for _ in range(answers):
        length.observe_tokens(tokens - 1)  # the first came with its prompt
        length.observe_end(tokens, running)


def test_it_is_assumed_until_answers_are_seen(length: AnswerLength) -> None:
    assert length.tokens == pytest.approx(ASSUMED_ANSWER_TOKENS)
    end(length, 300, 40, running=8)
    assert length.tokens == pytest.approx(40.0, rel=0.01)


def test_long_answers_show_before_the_first_of_them_ends(length: AnswerLength) -> None:
    for made in range(1, 801):
        length.observe_tokens(50)  # of fifty that go on
        length.observe_longest(made)
    assert length.tokens == pytest.approx(1600.0)


def test_a_first_lot_under_way_is_no_longer_than_twice_what_it_has(length: AnswerLength) -> None:
    for made in range(1, 201):
        length.observe_tokens(500)
        length.observe_longest(made)
    assert length.tokens == pytest.approx(400.0), "5,256 tokens were made for each answer"


def test_it_does_not_follow_a_moment_of_haste(length: AnswerLength) -> None:
    """Of 200 that run 20 a second end; then all go twice as fast, and more end only later."""
    end(length, 2000, 100, running=200)
    length.observe_longest(100)
    for _ in range(20):
        length.observe_tokens(2 * 99)
        length.observe_end(100, 200)
    assert 100.0 < length.tokens < 112.0
