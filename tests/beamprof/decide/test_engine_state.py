"""States as people write them: understood exactly, or refused with what would help."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from beam_runtime.types import EngineLimits, Phase, Slo
from beamprof.decide.engine_state import (
    RunningSpec,
    SloSpec,
    StateSpec,
    WaitingSpec,
    read_state,
    state_of,
)
from beamprof.errors import StateError

LIMITS = EngineLimits(pp=4)
SLO = Slo(1000.0, 200.0)


def test_flags_become_requests() -> None:
    state = state_of("1500, 2x300", "3x1200,4000").snapshot(LIMITS, SLO, 1410)
    assert [r.prompt_tokens for r in state.waiting] == [1500, 300, 300]
    assert [r.computed_tokens for r in state.running] == [1200] * 3 + [4000]
    assert {r.phase for r in state.running} == {Phase.DECODE}
    assert {r.pending_tokens for r in state.running} == {1}
    assert {r.slo for r in (*state.running, *state.waiting)} == {SLO}
    assert state.knobs.clock_mhz == 1410
    assert len(state.stage_free_ms) == 4


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9999)), max_size=5))
def test_every_list_is_what_it_says(groups: list[tuple[int, int]]) -> None:
    text = ",".join(f"{times}x{tokens}" for times, tokens in groups)
    waiting = state_of(text, "").waiting
    assert [one.prompt_tokens for one in waiting] == [
        tokens for times, tokens in groups for _ in range(times)
    ]


@pytest.mark.parametrize(
    "text", ["abc", "1500s", "-5", "0", "0x100", "1x", "x5", "1.5", "5000x1", "9" * 5000]
)
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="--waiting"):
        state_of(text, "")


def test_json_says_more(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(
        json.dumps(
            {
                "waiting": [
                    {"prompt_tokens": 900, "waited_ms": 40, "cached_tokens": 900,
                     "slo": {"ttft_ms": 300}}
                ],
                "running": [{"context_tokens": 50, "since_token_ms": 15, "slo": {"tbt_ms": 80}}],
                "clock_mhz": 960,
                "free_blocks": 77,
            }
        )
    )  # fmt: skip
    state = read_state(path).snapshot(LIMITS, SLO, 1410)
    (waiting,), (running,) = state.waiting, state.running
    assert (waiting.arrival_ms, waiting.cached_tokens) == (-40.0, 900)
    assert waiting.slo == Slo(300.0, 200.0)
    assert (running.last_token_ms, running.slo) == (-15.0, Slo(1000.0, 80.0))
    assert (state.knobs.clock_mhz, state.free_blocks) == (960, 77)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"wating": []}', "did you mean waiting"),
        ('{"waiting": [{"prompt_tokens": 0}]}', "waiting.0.prompt_tokens"),
        ('{"waiting": [{}]}', "waiting.0.prompt_tokens"),
        ('{"running": [{"context_tokens": 5, "since_token_ms": -1}]}', "since_token_ms"),
        ('{"waiting": [{"prompt_tokens": 5, "slo": {"ttft_ms": 0}}]}', "slo.ttft_ms"),
        ("{", "is not JSON"),
        ("[]", "the whole"),
    ],
)
def test_bad_json_names_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateError) as caught:
        read_state(path)
    assert words in str(caught.value)
    assert "Input should" not in str(caught.value)


PLACES: dict[str, tuple[type[BaseModel], str]] = {
    "state": (StateSpec, '{"%s": 1}'),
    "waiting": (WaitingSpec, '{"waiting": [{"prompt_tokens": 5, "%s": 1}]}'),
    "running": (RunningSpec, '{"running": [{"context_tokens": 5, "%s": 1}]}'),
    "slo": (SloSpec, '{"waiting": [{"prompt_tokens": 5, "slo": {"%s": 1}}]}'),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_key_that_stands_in_the_wrong_object_is_sent_to_its_own(
    tmp_path: Path, place: str
) -> None:
    here, text = PLACES[place]
    path = tmp_path / "state.json"
    for there, _ in PLACES.values():
        for key in set(there.model_fields) - set(here.model_fields):
            path.write_text(text % key)
            with pytest.raises(StateError, match="unknown key") as caught:
                read_state(path)
            known = (caught.value.cause or "").rpartition(" takes ")[2].split(", ")
            assert known == sorted(here.model_fields)
            assert "takes it" in (caught.value.hint or "")
            assert "did you mean" not in (caught.value.hint or "")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read"):
        read_state(tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(StateError, match="cannot read the state"):
        read_state(Path(name))
