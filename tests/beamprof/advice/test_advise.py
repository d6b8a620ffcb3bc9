"""The ladder: each rung's promise is held against a replay of its own setting."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.advice.advise import OVERLOAD, Advice, Today, advise
from beamprof.advice.load import Observed, load_from_rate
from beamprof.cli.main import main
from beamprof.errors import ReplayError
from beamprof.models.registry import registered_config
from beamprof.replay.rivals import AS_GOOD
from beamprof.report.advice_view import answer, trust
from beamprof.report.html.advice_part import advice_part

TABLE = Path(__file__).parents[3] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"


@pytest.fixture(scope="module")
def advice() -> Advice:
    load = load_from_rate(3.0, 800, 60)
    return advise(PerfTable.load(TABLE), load, price_per_kwh=0.2, co2_g_per_kwh=400.0)


def test_the_rungs_and_what_they_cost(advice: Advice) -> None:
    assert [rung.name for rung in advice.rungs] == ["as it is", "one clock", "vLLM's flags", "BEAM"]
    today, clock, flags, _ = advice.rungs
    assert today.of_today == 1.0
    assert flags.of_today <= clock.of_today < 1.0
    for rung in (clock, flags):
        assert rung.goodput >= today.goodput - AS_GOOD
    for rung in advice.rungs:
        assert rung.of_today == pytest.approx(rung.power_w / today.power_w)
        assert rung.kwh_a_year == pytest.approx(rung.power_w * 8.76)
        assert rung.cost_a_year == pytest.approx(0.2 * rung.kwh_a_year)
        assert rung.co2_kg_a_year == pytest.approx(0.4 * rung.kwh_a_year)


def test_watts_and_the_best_go_by_the_energy_of_the_same_requests() -> None:
    """BEAM's answers end much later than today's: its energy is not spread over that time."""
    table = PerfTable.load(TABLE)
    found = advise(table, load_from_rate(6.0, 300, 400), Slo(2000.0, 400.0), price_per_kwh=0.2)
    today, *_, beam = found.rungs
    assert beam.request_ms - today.request_ms > 1000.0 * (OVERLOAD - 1.0) * found.duration_s / 2
    for rung in found.rungs:
        assert rung.power_w / today.power_w == pytest.approx(rung.of_today)
        assert rung.cost_a_year / today.cost_a_year == pytest.approx(rung.of_today)
    as_good = [r for r in found.rungs if r.goodput >= today.goodput - AS_GOOD]
    assert found.best.of_today == min(rung.of_today for rung in as_good)


def test_the_price_in_speed_is_in_the_first_sentence(advice: Advice) -> None:
    assert advice.rungs[3].request_ms > advice.rungs[0].request_ms
    assert answer(advice).count("instead of") == 3


def test_the_commands_set_what_was_simulated(advice: Advice) -> None:
    today, clock, flags, beam = advice.rungs
    mhz = clock.setting.partition(" MHz")[0]
    assert clock.commands[0] == f"sudo nvidia-smi -i 0 -lgc {mhz},{mhz}"
    assert any("-rgc" in command for command in clock.commands)
    assert any("--max-num-batched-tokens" in command for command in flags.commands)
    assert any("make_scheduler" in command for command in beam.commands)
    assert today.commands == ()


def test_an_slo_that_nobody_can_keep_is_said_to_be_that() -> None:
    load = load_from_rate(2.0, 4000, 20)
    found = advise(PerfTable.load(TABLE), load, Slo(1.0, 200.0))
    assert not found.keepable
    assert answer(found).startswith("Nothing keeps these SLOs")
    assert [rung.name for rung in found.rungs] == ["as it is"]  # and no clock to type


def test_more_load_than_a_server_takes_is_said_to_be_that() -> None:
    table = PerfTable.load(TABLE)
    found = advise(table, load_from_rate(50.0, 4000, 20))
    assert "more than this server can do" in answer(found)
    # Not the energy of half an hour over the two minutes that were asked for.
    most_w = max(row_j / row_ms * 1e3 for row_j, row_ms in zip(
        table.columns["energy_j"], table.columns["latency_ms"], strict=True))  # fmt: skip
    assert found.rungs[0].power_w <= 1.05 * most_w


def test_flags_that_add_nothing_are_said_to(advice: Advice) -> None:
    from dataclasses import replace

    one = advice.rungs[1]
    same = replace(advice, rungs=(advice.rungs[0], one, replace(one, name="vLLM's flags"),
                                  advice.rungs[3]))  # fmt: skip
    assert "vLLM's flags add nothing" in answer(same)
    assert answer(same).count("instead of") == 2


def test_flags_that_keep_more_promises_go_before_cheaper_ones_that_do_not() -> None:
    table = PerfTable.load(TABLE)
    load = load_from_rate(2.0, 2000, 60)  # chunks of 2,048 hold up the decodes beside them
    found = advise(table, load, Slo(2000.0, 100.0))
    today, clock, flags, _ = found.rungs
    assert today.goodput + 0.1 < flags.goodput
    assert clock.goodput >= today.goodput - AS_GOOD
    assert f"{100 * flags.goodput:.1f} % of requests inside their SLOs" in answer(found)


def test_a_modelled_table_keeps_its_doubts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "advice.html"
    words = ["advise", "--model", "llama3-8b", "--device", "l40s", "--rate", "1",
             "--output-tokens", "30", "-o", str(page)]  # fmt: skip
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "never compared with a server or a measured table" in printed
    html = page.read_text("utf-8")
    assert "never compared" in html
    assert "nvidia-smi" in html
    assert "http-equiv" in html


def test_a_page_is_opened_or_said_not_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page, asked = tmp_path / "a page.html", []
    words = ["advise", "-t", str(TABLE), "--rate", "1", "--output-tokens", "20", "--open",
             "--force", "-o", str(page)]  # fmt: skip
    for found in (True, False):
        monkeypatch.setattr("webbrowser.open", lambda url, found=found: asked.append(url) or found)
        assert main(words) == 0
        assert ("no browser" in capsys.readouterr().err) is not found
    assert asked == [page.as_uri()] * 2


def test_json_has_every_rung(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["advise", "-t", str(TABLE), "--rate", "1", "--output-tokens", "30", "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], answer["status"]) == ("advise", "ok")
    assert len(answer["data"]["rungs"]) == 4
    assert answer["data"]["rungs"][1]["commands"]


def test_a_folder_with_a_config_is_held_to_its_context(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "small-ctx"
    folder.mkdir()
    config = {**registered_config("llama3-8b"), "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    words = ["advise", "--model", str(folder), "--device", "h100", "--rate", "1"]
    assert main([*words, "--input-tokens", "6000"]) == 2
    assert "small-ctx takes 4,096" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--input-tokens", "300", "--output-tokens", "20"]) == 0
    assert f"beam profile --model {folder} " in capsys.readouterr().out


def test_a_table_off_by_half_is_seen_against_the_servers_own_times(advice: Advice) -> None:
    from dataclasses import replace

    from beamprof.advice.load import Observed

    near = replace(advice, observed=Observed(advice.predicted_ttft_ms * 1.2, None))
    far = replace(advice, observed=Observed(advice.predicted_ttft_ms * 2.5, None))
    assert not any("far off" in text for text in trust(near))
    assert any("far off for TTFT" in text for text in trust(far))


def test_numbers_of_one_engine_are_not_taken_for_the_servers(advice: Advice) -> None:
    for engines in (1, 4):
        told = trust(replace(advice, observed=Observed(None, None, engines=engines)))
        assert any("4 engines share the load" in text for text in told) is (engines == 4)


def test_what_the_prefix_cache_had_is_said_where_it_matters(advice: Advice) -> None:
    for share in (0.0, 0.6):
        told = trust(replace(advice, observed=Observed(None, None, share)))
        assert any("60 % of its prompt tokens" in text for text in told) is (share > 0)


@pytest.mark.parametrize(("chunk", "told"), [(512, False), (8192, True)])
def test_steps_that_the_table_does_not_know_are_said_to_be_guessed(chunk: int, told: bool) -> None:
    load = load_from_rate(1.0, 500, 20)
    found = advise(PerfTable.load(TABLE), load, today=Today(chunk, 256))
    assert any("1,024 tokens extrapolated" in text for text in trust(found)) is told


def test_today_may_be_another_chunk() -> None:
    load = load_from_rate(1.0, 500, 20)
    found = advise(PerfTable.load(TABLE), load, today=Today(512, 32))
    assert "chunk 512, 32 sequences" in found.rungs[0].setting


def test_the_page_says_what_the_terminal_says(advice: Advice) -> None:
    part = advice_part(advice)
    assert part.sentence == answer(advice)
    assert [section.title for section in part.sections][1] == "Ladder"


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_senseless_price_is_refused(price: float) -> None:
    with pytest.raises(ReplayError, match="--price"):
        advise(PerfTable.load(TABLE), load_from_rate(1.0, 500, 20), price_per_kwh=price)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--model llama3-8b --device h100", "--from-vllm"),
        ("--rate 1", "--model"),
        ("--rate 1 --model llama3-8b", "--device"),
        ("--rate 1 --model nix --device h100", "known models"),
        ("--rate 1 --model llama3-8b --device nix", "known devices"),
        ("--from-vllm nix.txt", "curl"),
        ("--from-vllm nix.txt --trace nix.csv", "leave one"),
        ("--trace nix.csv --rate 2", "leave --rate out"),
        ("--rate 0 --model llama3-8b --device h100", "divide"),
        ("--rate 1 --input-tokens 0 --model llama3-8b --device h100", ""),
        ("--rate 1 --slo-tbt 200 --model llama3-8b --device h100", ""),
        ("--rate 1 -o - --json", "leave one"),
        ("--rate 1 --open", "--output advice.html"),
        ("--rate 0.001 --model llama3-8b --device h100", "at least"),
        ("--rate 1 --input-tokens 9000 --model llama3-8b --device h100", "--max-total-tokens 8192"),
        ("--rate 1 --open -o -", "leave --open"),
    ],
)
def test_bad_input_is_told_with_a_hint(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *words.split()]) == 2
    said = capsys.readouterr().err
    assert "error:" in said
    assert hint in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "b200", "--rate", "1"), "is a table for device a100-sxm4-80gb"),
        (("--trace", "t.csv", "--input-tokens", "5"), "leave --input-tokens out"),
        (("--trace", "t.csv", "--input-tokens", "5", "--output-tokens", "1050"),
         "leave --input-tokens and --output-tokens out"),
        (("--from-vllm", "m.txt", "--output-tokens", "5"), "a server has lengths of its own"),
        (("--rate", "1", "--input-tokens", "0"), "0"),
    ],
)  # fmt: skip
def test_what_would_not_be_obeyed_is_refused(
    flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--table", str(TABLE), *flags]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
