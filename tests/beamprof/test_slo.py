"""SLOs as people write them."""

import pytest

from beam_runtime.types import Slo
from beamprof.errors import SweepError
from beamprof.slo import limit_words, parse_slo, slo_from_flags, slo_text, stream_words


@pytest.mark.parametrize(
    ("text", "slo", "words"),
    [
        ("1s/200ms", Slo(1000.0, 200.0), "TBT 200 ms"),
        ("1.5s/200ms@99%", Slo(1500.0, 200.0, tbt_share=0.99), "TBT 200 ms for 99 % of gaps"),
        ("500ms/tpot=33.3ms", Slo(500.0, tpot_ms=33.3), "TPOT 33.3 ms"),
        ("1s/e2e=30s", Slo(1000.0, e2e_ms=30_000.0), "E2E 30 s"),
        ("1s/200ms/8tok/s", Slo(1000.0, 200.0, least_tokens_per_s=8.0), "TBT 200 ms"),
        (
            "1s/tpot=80ms/8tok/s/1.5x",
            Slo(1000.0, tpot_ms=80.0, least_tokens_per_s=8.0, max_slowdown=1.5),
            "TPOT 80 ms",
        ),
    ],
)
def test_text_and_back(text, slo, words):
    assert parse_slo(text, "--slos") == slo
    assert slo_text(slo) == text
    assert stream_words(slo) == words


def test_itl_is_another_name_for_tbt():
    assert parse_slo("1s/itl=50ms", "--slos") == Slo(1000.0, 50.0)


def test_flags():
    assert slo_from_flags("1s") == Slo(1000.0, 200.0)
    assert slo_from_flags("1s", tbt="80ms@95%") == Slo(1000.0, 80.0, tbt_share=0.95)
    assert slo_from_flags("2s", tpot="80ms") == Slo(2000.0, tpot_ms=80.0)
    assert slo_from_flags("2s", e2e="20s") == Slo(2000.0, e2e_ms=20_000.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1s", "expected TTFT/TBT"),
        ("1s/fast=3s", "expected TTFT/TBT"),
        ("1s/200", "200"),
        ("1s/200ms@2", "SHARE%"),
        ("1s/200ms@0%", "SHARE%"),
        ("1s/200ms@101%", "SHARE%"),
        ("1s/200ms@nan%", "SHARE%"),
        ("1s/tpot=100ms@99%", "a share is of gaps"),
        (7, "expected TTFT/TBT"),
        ("1s/200ms/8", "a limit such as 8tok/s or 1.5x, found '8'"),
        ("1s/200ms/0tok/s", "tokens per second above 0"),
        ("1s/200ms/0.5x", "a factor of 1 or more"),
        ("1s/200ms/nanx", "a factor of 1 or more"),
        ("1s/200ms/2x/3x", "given twice"),
    ],
)
def test_what_is_no_slo_is_refused(text, said):
    with pytest.raises(SweepError, match=said):
        parse_slo(text, "--slos")


def test_two_kinds_of_streaming_contradict():
    with pytest.raises(SweepError, match="--slo-tbt and --slo-tpot") as caught:
        slo_from_flags("1s", tbt="200ms", tpot="100ms")
    assert "--slo-e2e" in caught.value.hint


def test_limits_by_flags():
    slo = slo_from_flags("1s", least_tokens_per_s=8.0, max_slowdown=1.5)
    assert slo == Slo(1000.0, 200.0, least_tokens_per_s=8.0, max_slowdown=1.5)
    assert limit_words(slo) == "at least 8 tokens/s, at most 1.5 times as slow"
    assert limit_words(Slo()) == ""


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_flag_that_is_no_limit_is_refused_by_its_name(value):
    with pytest.raises(SweepError, match="--least-tokens-per-s: expected"):
        slo_from_flags("1s", least_tokens_per_s=value)
    with pytest.raises(SweepError, match="--max-slowdown: expected"):
        slo_from_flags("1s", max_slowdown=value)
