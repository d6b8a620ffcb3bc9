"""beam decide: the decision is the best of the space it shows, and the space is honest."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Knobs, Slo
from beamprof.cli.main import main
from beamprof.decide.decide import Answer, decide, limits_of
from beamprof.decide.engine_state import RunningSpec, StateSpec, WaitingSpec, state_of
from beamprof.decide.points import Point
from beamprof.decide.verdict import verdict
from beamprof.tables.kv_room import most_kv_tokens
from beamprof.tables.table_file import write_table


@pytest.fixture(scope="module")
def answer(small_table: PerfTable) -> Answer:
    """The talk's question on a small table: one new prompt, and an SLO that rules clocks out."""
    limits = limits_of(small_table, host_gap_ms=5.5)
    return decide(small_table, state_of("1500", "8x600"), slo=Slo(300.0, 200.0), limits=limits)


@pytest.fixture
def table(small_table: PerfTable, tmp_path: Path) -> Path:
    path = tmp_path / "small.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    return path


def test_nothing_feasible_is_cheaper(answer: Answer) -> None:
    assert answer.chosen.feasible
    feasible = [one for row in answer.space.best for one in row if one.feasible]
    assert feasible
    least_j = min(one.energy_j for one in feasible)
    # How near the search comes to exhaustive search is tested with the search, on many states.
    assert answer.chosen.energy_j <= least_j * 1.05


def test_one_energy_for_one_decision(answer: Answer) -> None:
    assert f" {answer.chosen.energy_j:.0f} J" in answer.why
    assert any(one.energy_j == answer.chosen.energy_j for one in answer.frontier)


@pytest.mark.parametrize(
    ("waiting", "slo"), [("40x8000", "1s"), ("1500", "100s")]
)  # fmt: skip
def test_times_and_energies_are_written_as_people_read_them(
    waiting: str, slo: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["decide", str(table), "--waiting", waiting, "--slo-ttft", slo, "--slo-tbt", "50s"])
    said = capsys.readouterr().out
    assert not re.search(r"\d{5,} (ms|us|J)\b|-0 ms", said)


def test_every_cheaper_setting_says_why_it_was_refused(answer: Answer) -> None:
    assert answer.cheaper, "low clocks are cheaper and too slow here"
    for one in answer.cheaper:
        assert one.energy_j < answer.chosen.energy_j
        assert not one.feasible
        assert "ms over (" in one.verdict or "into its margin (" in one.verdict
    clocks = [one.knobs.clock_mhz for one in answer.cheaper]
    assert len(clocks) == len(set(clocks))


def test_the_frontier_trades_energy_for_slack(answer: Answer) -> None:
    assert answer.frontier[0].energy_j == pytest.approx(answer.chosen.energy_j, rel=0.05)
    for less, more in pairwise(answer.frontier):
        assert more.energy_j >= less.energy_j
        assert more.slo_used < less.slo_used
        assert more.feasible


def test_the_space_is_whole(answer: Answer, small_table: PerfTable) -> None:
    assert answer.space.clocks_mhz == small_table.clocks_mhz
    assert answer.settings == len(answer.space.clocks_mhz) * len(answer.space.chunks) * 4 * 4
    for clock_mhz, row in zip(answer.space.clocks_mhz, answer.space.best, strict=True):
        assert {one.knobs.clock_mhz for one in row} == {clock_mhz}
        assert tuple(one.knobs.chunk_tokens for one in row) == answer.space.chunks


def test_joules_add_up(answer: Answer) -> None:
    done = answer.work
    assert done.prompt_tokens == 1500
    assert done.energy_per_token_j is not None
    total_j = done.energy_per_token_j * (done.prompt_tokens + done.output_tokens)
    assert total_j == pytest.approx(answer.active_energy_j + answer.idle_energy_j)


def test_people_read_it(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["decide", str(table), "--waiting", "1500", "--running", "8x600"]
    assert main([*words, "--slo-ttft", "300ms", "--slo-tbt", "0.2s", "--host-gap", "5.5ms"]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 100
    assert "keeps every SLO" in printed
    for part in ("Search space", "Cheaper and refused", "Frontier", "J per token", "next: beam"):
        assert part in printed
    picture = printed[printed.index("Search space") : printed.index("Cheaper")]
    assert picture.count("◆") == 2, "in the picture and in its legend"
    assert "TTFT" in picture


def test_machines_read_it(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decide", str(table), "--waiting", "1500", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"] == "decide"
    assert printed["status"] == "ok"
    assert printed["data"]["feasible"] is True
    assert printed["data"]["chosen"]["knobs"]["chunk_tokens"] >= 64
    assert len(printed["data"]["space"]["best"]) == 5


def test_no_is_an_answer(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decide", str(table), "--waiting", "1500", "--slo-ttft", "20ms", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "no"
    assert "TTFT" in printed["data"]["chosen"]["verdict"]


def test_an_idle_engine_rests(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decide", str(table)]) == 0
    assert "nothing to promise" in capsys.readouterr().out


def test_flags_and_file_do_not_mix(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"waiting": [{"prompt_tokens": 700}]}')
    assert main(["decide", str(table), "--state", str(state)]) == 0
    assert "1 waiting (700 tokens)" in capsys.readouterr().out
    assert main(["decide", str(table), "--state", str(state), "--waiting", "5"]) == 2
    assert "--state says it all" in capsys.readouterr().err


def test_a_number_without_a_unit_is_refused(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decide", str(table), "--waiting", "1500", "--slo-ttft", "1"]) == 2
    assert "1s or 1ms" in capsys.readouterr().err


def point(energy_j: float, verdict: str = "", lost: int = 0) -> Point:
    return Point(Knobs(1000, 256), energy_j, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, lost, verdict)


def test_the_verdict_follows_from_the_rows() -> None:
    kept, near = point(5.0), point(4.0, "TTFT 3 ms into its margin (a)")
    lost = point(3.0, "TTFT 9 ms over (a)", 2)
    assert verdict(kept, [kept, lost]) == "keeps every SLO"
    assert "no setting of 2 keeps the margins" in verdict(near, [near, lost])
    assert verdict(near, [near, lost]).startswith("keeps every SLO, but")
    said = verdict(lost, [lost, lost])
    assert "no setting of 2 keeps every SLO in this state; this one loses 2 requests" in said
    assert "1 of 2 settings keep every SLO, first 1000 MHz" in verdict(lost, [kept, lost])
    assert verdict(lost, [lost], "a token takes 60 ms") == (
        "no setting keeps this SLO: a token takes 60 ms"
    )


def test_the_requests_that_a_cheaper_setting_loses_are_counted(answer: Answer) -> None:
    assert answer.requests == 9
    assert answer.chosen.lost == 0
    for one in answer.cheaper:
        over = [part for part in one.verdict.split(", ") if "ms over (" in part]
        assert (one.lost > 0) == bool(over)
        assert one.lost <= answer.requests
        if one.ttft_ms is not None and one.ttft_ms > 300.0:
            assert one.lost >= 1


def test_an_slo_that_nobody_can_keep_is_said_to_be_that(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decide", str(table), "--running", "8x600", "--slo-tbt", "1ms"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "no setting keeps this SLO: a token beside" in printed
    assert "Cheaper" not in printed
    assert main(["decide", str(table), "--waiting", "1500", "--slo-ttft", "20ms"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "keeps every SLO in this state; this one loses 1 request: TTFT" in printed


@pytest.mark.parametrize(("flag", "word"), [("--slo-tpot", "TPOT"), ("--slo-e2e", "E2E")])
def test_every_kind_of_slo_can_be_asked_for(
    table: Path, flag: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decide", str(table), "--running", "8x600", flag, "60s"]) == 0
    assert f"SLO {word} 60 s" in capsys.readouterr().out
    assert main(["decide", str(table), "--running", "8x600", flag, "2ms"]) == 1
    assert "no setting" in capsys.readouterr().out
    assert main(["decide", str(table), flag, "1s", "--slo-tbt", "1s"]) == 2
    assert "one kind of streaming" in capsys.readouterr().err


def test_the_verdict_says_whether_only_a_margin_is_used_up(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somewhere between hopeless and easy the SLO is kept and its margin is not."""
    words = ["decide", str(table), "--waiting", "1500", "--running", "8x600", "--json"]
    seen = set()
    for ttft_ms in range(60, 280, 10):
        code = main([*words, "--slo-ttft", f"{ttft_ms}ms"])
        data = json.loads(capsys.readouterr().out)["data"]
        chosen = data["chosen"]
        assert code == (1 if chosen["lost"] else 0)
        assert chosen["lost"] == 0 or "ms over" in data["verdict"]
        seen.add((data["feasible"], chosen["lost"] > 0))
        if not data["feasible"] and not chosen["lost"]:
            assert chosen["ttft_ms"] <= ttft_ms
            assert "into its margin" in data["verdict"]
    assert seen == {(True, False), (False, False), (False, True)}


@pytest.mark.parametrize("waited_ms", [1001.0, 1500.0, 60000.0, 1e12])
@pytest.mark.parametrize("others", [0, 3])
def test_a_promise_that_is_lost_already_is_not_kept(
    waited_ms: float, others: int, small_table: PerfTable
) -> None:
    """What no setting changes does not decide which is best, and it is told."""
    waits = [WaitingSpec(prompt_tokens=300, waited_ms=ms) for ms in (waited_ms, *[1.0] * others)]
    spec = StateSpec(waiting=tuple(waits), running=(RunningSpec(context_tokens=300),) * others)
    found = decide(small_table, spec, slo=Slo(1000.0, 400.0))
    assert not found.feasible
    assert found.late == ("waiting0",)
    assert found.chosen.lost == 1
    assert "every SLO that can still be kept; TTFT of 1 request is over already" in found.verdict
    assert found.frontier, "the others' promises are kept as before"
    assert found.chosen.ttft_ms is not None
    assert (found.chosen.ttft_ms > 1000.0) == (not others)


@pytest.mark.parametrize(
    ("state", "flags"),
    [
        ({"waiting": [{"prompt_tokens": 300, "waited_ms": 1500}]}, []),
        ({"waiting": [{"prompt_tokens": 300, "waited_ms": 150, "slo": {"ttft_ms": 100}}]}, []),
        ({"running": [{"context_tokens": 300, "since_token_ms": 5000}]}, []),
        ({"running": [{"context_tokens": 300, "since_token_ms": 70000}]}, ["--slo-e2e", "60s"]),
        ({"waiting": [{"prompt_tokens": 300, "waited_ms": 70000}]},
         ["--slo-e2e", "60s", "--slo-ttft", "100s"]),
    ],
)  # fmt: skip
def test_no_promise_of_the_past_is_kept(
    state: object, flags: list[str], table: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state))
    assert main(["decide", str(table), "--state", str(path), *flags]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "keeps every SLO." not in said
    assert not re.search(r"nothing to promise \(SLO 1 s\)", said) or "waiting" not in state


@pytest.mark.parametrize("running", ["8x600", ""])
def test_a_limit_is_shown_and_what_it_forbids_is_no_offer(
    running: str, small_table: PerfTable, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = Slo(5000.0, 400.0, max_slowdown=1.2)
    free = decide(small_table, state_of("1500", running), slo=Slo(5000.0, 400.0))
    found = decide(small_table, state_of("1500", running), slo=limited)
    assert found.limits == "at most 1.2 times as slow"
    assert found.chosen.knobs.clock_mhz > free.chosen.knobs.clock_mhz
    assert found.settings < free.settings
    assert min(one.knobs.clock_mhz for one in found.frontier) > free.chosen.knobs.clock_mhz
    asked = ["decide", str(table), "--waiting", "1500", "--slo-ttft", "5s", "--slo-tbt", "400ms"]
    assert main([*asked, "--max-slowdown", "1.2"]) == 0
    shown = capsys.readouterr().out
    assert "at most 1.2 times as slow; slower settings are left out" in shown
    assert main([*asked, "--max-slowdown", "0.9"]) == 2
    assert "--max-slowdown: expected a factor of 1 or more" in capsys.readouterr().err


def test_a_floor_out_of_reach_is_said(small_table: PerfTable) -> None:
    found = decide(small_table, state_of("", "8x600"), slo=Slo(least_tokens_per_s=1e5))
    assert any("a request alone gets" in note for note in found.notes)
    assert found.chosen.feasible


@pytest.mark.parametrize(
    ("kept", "flags", "word"),
    [
        ("decode_requests", ["--waiting", "200"], "prefill_tokens"),
        ("prefill_tokens", ["--running", "4x100"], "decode_requests"),
        (None, ["--running", "4x100"], ""),
        (None, ["--running", "4x9000000"], "decode_context_tokens"),
    ],
)
def test_what_the_table_does_not_cover_is_said_to_be_extrapolated(
    kept: str | None, flags: list[str], word: str, small_table: PerfTable, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of a kind of step that was never measured, and of contexts beyond the measured."""
    columns, path = small_table.columns, tmp_path / "some.parquet"
    keep = (columns["kind"] == "idle") | (True if kept is None else columns[kept] > 0)
    write_table(
        {name: values[keep] for name, values in columns.items()}, small_table.metadata, path
    )
    main(["decide", str(path), *flags, "--json"])
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    said = [text for text in warnings if text.startswith("extrapolated")]
    assert len(said) == bool(word)
    assert word in "".join(said)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("llama") / "8b.parquet"
    profile = ["profile", "--model", "llama3-8b", "--device", "a100-sxm4-80gb", "--backend"]
    assert main([*profile, "modelled", "-o", str(path)]) == 0
    return str(path)


@pytest.mark.parametrize(
    ("state", "flags", "words"),
    [
        ({"waiting": [{"prompt_tokens": 500, "cached_tokens": 501}]}, (), "501 cached tokens"),
        ({"running": [{"context_tokens": 9}] * 10}, ("--max-num-seqs", "2"), "10 requests run"),
        ({"running": [{"context_tokens": 8000}] * 250}, (), "2,000,000 tokens of KV cache"),
    ],
)
def test_states_that_cannot_be_are_refused(
    state: object, flags: tuple[str, ...], words: str, llama: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state))
    assert main(["decide", llama, "--state", str(path), *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (("--running", "3x8193,8192"), "3 of 4"),
        (("--waiting", "8192,8191"), "1 of 2"),
        (("--waiting", "8191"), ""),
    ],
)
def test_requests_longer_than_the_model_takes_are_told(
    flags: tuple[str, str], count: str, llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["decide", llama, *flags, "--slo-ttft", "60s"])
    said = " ".join(capsys.readouterr().err.split())
    assert (f"{count} requests have more than the 8,192 tokens that llama3-8b" in said) == bool(
        count
    )
    assert ("requests have more than" in said) == bool(count)


def test_what_fits_is_known_of_tables_that_say_their_bytes(
    llama: str, small_table: PerfTable
) -> None:
    table = PerfTable.load(llama)
    found = most_kv_tokens(table)
    assert found is not None
    weights = 32 * (4096 * (6144 + 4096) + 3 * 4096 * 14336) * 2
    assert found == int((80e9 - weights) / (2 * 8 * 128 * 2 * 32))
    for told in ("", "nan", "inf", "much"):
        metadata = {**table.metadata, "stage_weight_bytes": told}
        assert most_kv_tokens(replace(table, metadata=metadata)) is None
    assert most_kv_tokens(small_table) is None


def test_a_waiting_power_that_the_table_knows_is_not_taken_and_said(small_table: PerfTable) -> None:
    answer = decide(small_table, state_of("500", ""), idle_power_w=10.0)
    assert any("--idle-power is not used" in note for note in answer.notes)
