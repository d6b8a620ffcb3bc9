"""Numbers of any size in beam.toml are refused by the field's name."""

from pathlib import Path

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.errors import BeamError
from beam_runtime.types import Slo


@pytest.mark.parametrize(
    "value", ["1" * 400, "1" * 5000, "inf", "nan", "-inf", "0", "-1", "true", '"200"', "[200]"]
)
@pytest.mark.parametrize(
    "field", ["slo.ttft_ms", "slo.tbt_ms", "slo.batch.ttft_ms", "clock.idle_power_w"]
)
def test_a_number_that_is_no_time_and_no_power(tmp_path: Path, field: str, value: str) -> None:
    section, _, name = field.rpartition(".")
    path = tmp_path / "beam.toml"
    path.write_text(f"[{section}]\n{name} = {value}\n")
    with pytest.raises(BeamError) as caught:
        EmbeddedConfig.load(path)
    assert field in str(caught.value) or "Exceeds the limit" in str(caught.value.cause)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ("tpot_ms = 90", Slo(1000.0, tpot_ms=90.0)),
        ("ttft_ms = 700\ne2e_ms = 9000\nanswer_tokens = 80",
         Slo(700.0, e2e_ms=9000.0, answer_tokens=80)),
        ("tbt_ms = 150\ntbt_share = 0.99", Slo(1000.0, 150.0, tbt_share=0.99)),
        ("max_slowdown = 1.5\nleast_tokens_per_s = 8",
         Slo(least_tokens_per_s=8.0, max_slowdown=1.5)),
    ],
)  # fmt: skip
def test_each_kind_of_streaming_can_be_promised(tmp_path: Path, slo: str, expected: Slo) -> None:
    path = tmp_path / "beam.toml"
    path.write_text(f"[slo]\n{slo}\n")
    assert EmbeddedConfig.load(path).slo == expected


@pytest.mark.parametrize(
    ("slo", "said"),
    [
        ("tbt_ms = 150\ntpot_ms = 90", "one kind of streaming"),
        ("tbt_share = 1.5", "at most 1"),
        ("tpot_ms = 90\ntbt_share = 0.99", "tbt_share is of gaps within tbt_ms"),
        ("tbt_share = 0.99\n[slo.batch]\ne2e_ms = 9000\ntbt_share = 0.9", "slo.batch: tbt_share"),
        ("answer_tokens = 0", "1 token or more"),
        ("answer_tokens = 2.5", "1 token or more"),
        ("tpop_ms = 90", "tpop_ms"),
        ("max_slowdown = 0.9", "slo.max_slowdown must be a factor of 1 or more"),
        ("max_slowdown = nan", "slo.max_slowdown"),
        ("least_tokens_per_s = 0", "slo.least_tokens_per_s must be tokens per second above 0"),
        ("least_tokens_per_s = -8", "slo.least_tokens_per_s"),
    ],
)
def test_a_promise_that_contradicts_is_refused(tmp_path: Path, slo: str, said: str) -> None:
    path = tmp_path / "beam.toml"
    path.write_text(f"[slo]\n{slo}\n")
    with pytest.raises(BeamError) as caught:
        EmbeddedConfig.load(path)
    assert said in str(caught.value) or said in str(caught.value.cause)


def test_a_class_that_is_named_default_is_refused(tmp_path: Path) -> None:
    """It took the place of [slo] for every request that names no class, without a word."""
    path = tmp_path / "beam.toml"
    path.write_text("[slo]\nttft_ms = 1000\n[slo.default]\nttft_ms = 5\n")
    with pytest.raises(BeamError, match=r"\[slo.default\] is no class") as caught:
        EmbeddedConfig.load(path)
    assert "[slo]" in (caught.value.hint or "")


def test_a_class_of_another_kind_leaves_the_share_of_gaps_behind(tmp_path: Path) -> None:
    path = tmp_path / "beam.toml"
    path.write_text("[slo]\ntbt_share = 0.99\n[slo.batch]\ntpot_ms = 90\n")
    assert EmbeddedConfig.load(path).classes["batch"] == Slo(tpot_ms=90.0)
