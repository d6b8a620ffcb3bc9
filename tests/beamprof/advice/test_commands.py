"""What advice tells people to type sets what was simulated, and promises what was asked for."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.advice.advise import Today, advise
from beamprof.advice.commands import BEAM, FLAGS, ONE_CLOCK, Setting, commands, setting_words
from beamprof.advice.load import Load, load_from_rate
from beamprof.cli.main import main
from beamprof.report.advice_view import NOTHING, answer, show_advice
from beamprof.report.html.advice_part import advice_part

SHIPPED = Path(__file__).parents[3] / "tables/a100-sxm4-80gb"
ONE_GPU = PerfTable.load(SHIPPED / "llama3-8b/tp1-pp1.parquet")
EIGHT_GPUS = PerfTable.load(SHIPPED / "llama3-70b/tp2-pp4.parquet")
NOW = Setting(1410, 2048, 256)


def load_of(rate_rps: float, input_tokens: int, output_tokens: int, requests: int = 80) -> Load:
    """The first requests of such a load: a share of one in eighty is exact enough here."""
    load = load_from_rate(rate_rps, input_tokens, output_tokens)
    frame = load.trace.frame[:requests]
    duration_s = float(frame["arrival_s"][-1]) + 1.0
    return replace(load, trace=replace(load.trace, frame=frame, duration_s=duration_s))


SLOS = {
    "gaps": Slo(300.0, 50.0), "a share of gaps": Slo(1000.0, 100.0, tbt_share=0.99),
    "a mean": Slo(1000.0, tpot_ms=70.0), "whole requests": Slo(2000.0, e2e_ms=30_000.0),
    "limits": Slo(1000.0, 200.0, least_tokens_per_s=8.0, max_slowdown=1.5),
}  # fmt: skip


@pytest.mark.parametrize("slo", SLOS.values(), ids=SLOS)
@pytest.mark.parametrize("table", [ONE_GPU, EIGHT_GPUS], ids=["1 GPU", "8 GPUs"])
def test_the_file_it_writes_promises_what_was_asked_for(
    tmp_path: Path, slo: Slo, table: PerfTable
) -> None:
    typed = commands(BEAM, Setting(None, 512, 64), NOW, table, slo)
    (printf,) = [line for line in typed if line.startswith("printf")]
    subprocess.run(["sh", "-c", printf], cwd=tmp_path, check=True)
    config = EmbeddedConfig.load(tmp_path / "beam.toml")
    assert config.slo == slo
    assert len(config.gpus) == table.tp * table.pp
    assert str(config.policy) == "observe"


def test_servers_are_started_as_they_were_simulated() -> None:
    for name, clock_mhz in ((FLAGS, 1050), (BEAM, None)):
        typed = commands(name, Setting(clock_mhz, 512, 64), NOW, EIGHT_GPUS, Slo())
        (serve,) = [line for line in typed if "vllm serve" in line]
        for words in (
            "--max-num-batched-tokens 512", "--max-num-seqs 64", "--tensor-parallel-size 2",
            "--pipeline-parallel-size 4",
        ):  # fmt: skip
            assert words in serve
    assert "parallel" not in " ".join(commands(FLAGS, Setting(1050, 512, 64), NOW, ONE_GPU, Slo()))


def with_metadata(table: PerfTable, **told: str) -> PerfTable:
    return PerfTable.from_columns(table.columns, {**table.metadata, **told})


def profile_words(table: PerfTable, model: str = "") -> list[str]:
    """What its shell would take of the line that profiles."""
    typed = commands(BEAM, Setting(None, 512, 64), NOW, table, Slo(), model)
    (line,) = [line for line in typed if line.startswith("beam profile")]
    return shlex.split(line, comments=True)


@pytest.mark.parametrize("folder", ["./small-ctx", "pad $(x)", "it's; #1"])
def test_a_folder_is_named_by_its_path_and_safe_to_type(folder: str) -> None:
    words = profile_words(with_metadata(ONE_GPU, model="small-ctx"), folder)
    assert words[words.index("--model") + 1] == folder


def test_a_folder_that_only_the_table_names_is_left_to_fill_in() -> None:
    table = with_metadata(ONE_GPU, model="pad $(x)")
    typed = " ".join(commands(BEAM, Setting(None, 512, 64), NOW, table, Slo()))
    assert "--model DIR" in typed
    assert "DIR holds the config.json of pad $(x)" in typed
    assert profile_words(table)[2:4] == ["--model", "DIR"]


def test_experts_and_kv_cache_of_a_table_are_asked_for_again() -> None:
    shape = {"dtype": "bfloat16", "precision": {"kv": "fp8"}}
    table = with_metadata(EIGHT_GPUS, ep="2", model_shape=json.dumps(shape))
    words = " ".join(profile_words(table))
    assert "--tp 2 --pp 4 --ep 2 --kv-cache-dtype fp8" in words
    for name, clock_mhz in ((FLAGS, 1050), (BEAM, None)):
        typed = " ".join(commands(name, Setting(clock_mhz, 512, 64), NOW, table, Slo()))
        assert "--enable-expert-parallel --kv-cache-dtype fp8" in typed
    assert not {"--ep", "--kv-cache-dtype"} & set(profile_words(EIGHT_GPUS))


def test_data_parallel_groups_have_gpus_of_their_own_and_no_beam() -> None:
    table = with_metadata(ONE_GPU, dp="2", ep="2")
    (lock, serve, _) = commands(FLAGS, Setting(1050, 512, 64), NOW, table, Slo())
    assert " -i 0,1 " in lock
    assert "--data-parallel-size 2 --enable-expert-parallel" in serve
    (said,) = commands(BEAM, Setting(None, 512, 64), NOW, table, Slo())
    assert "data-parallel" in said


def test_what_is_set_already_is_not_typed() -> None:
    assert commands(ONE_CLOCK, NOW, NOW, ONE_GPU, Slo()) == ()
    assert commands(FLAGS, NOW, NOW, ONE_GPU, Slo()) == ()
    lower = Setting(1050, 2048, 256)
    assert not any("vllm" in line for line in commands(FLAGS, lower, NOW, ONE_GPU, Slo()))
    (serve,) = commands(FLAGS, Setting(1410, 512, 256), NOW, ONE_GPU, Slo())
    assert serve.startswith("vllm serve")
    assert setting_words(NOW, ONE_GPU) == "highest clock, chunk 2,048, 256 sequences"


def test_a_clock_that_saves_nothing_is_no_offer(capsys: pytest.CaptureFixture[str]) -> None:
    advice = advise(ONE_GPU, load_of(2.0, 800, 60), Slo(200.0, 100.0))
    assert advice.rungs[0].goodput >= 0.5
    assert advice.rungs[1].commands == ()
    assert "No lower clock keeps as many promises" in answer(advice)
    show_advice(advice, Console(width=100))
    out = capsys.readouterr().out
    assert f"one clock: {NOTHING}" in out
    assert "-lgc 1410" not in out


def test_what_the_rung_before_sets_is_not_typed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    advice = advise(ONE_GPU, load_of(1.0, 500, 60), Slo(150.0, 200.0))
    _, clock, flags, _ = advice.rungs
    assert clock.setting == flags.setting
    show_advice(advice, Console(width=100))
    out = capsys.readouterr().out
    assert f"vLLM's flags: {NOTHING}" in out
    assert out.count("-rgc") == 1
    page = advice_part(advice)
    (typed,) = [one.body for one in page.sections if one.title == "What to type"]
    assert sum("-rgc" in command for _, command in typed.facts) == 1  # type: ignore[union-attr]


def test_where_today_breaks_most_promises_that_stands_first_and_no_rung_that_does_is_best() -> None:
    load = load_of(1.5, 2000, 60)
    advice = advise(ONE_GPU, load, Slo(4000.0, 40.0), today=Today(2048, 256))
    today, clock, *_ = advice.rungs
    assert today.goodput < 0.5
    assert answer(advice).startswith(f"Today {100 * today.goodput:.1f} % of requests keep")
    assert advice.best.goodput >= max(rung.goodput for rung in advice.rungs) - 0.01
    assert clock.commands == (), "what keeps as few for less energy is no saving"
    assert "No clock mends that" in answer(advice)


def test_what_beam_alone_can_keep_is_not_said_to_be_kept_by_nobody() -> None:
    load = load_of(1.0, 1050, 150)
    advice = advise(EIGHT_GPUS, load, Slo(1000.0, 90.0))
    today, clock, flags, beam = advice.rungs
    assert max(today.goodput, flags.goodput) < 0.05
    assert beam.goodput > 0.5
    assert advice.keepable
    assert advice.best is beam
    assert clock.commands == flags.commands == ()
    assert "No clock mends that; vLLM's flags add nothing. BEAM would take" in answer(advice)


def test_where_no_rung_keeps_half_that_stands_first() -> None:
    load = load_of(1.0, 1050, 150)
    advice = advise(EIGHT_GPUS, load, Slo(1000.0, tpot_ms=80.0))
    assert 0.02 < max(rung.goodput for rung in advice.rungs) < 0.5
    assert answer(advice).startswith("No setting keeps these SLOs for half of the requests; today")


@pytest.mark.parametrize(("device", "chunk", "sequences"), [
    ("a100-sxm4-80gb", 2048, 256), ("h100-sxm", 8192, 1024), ("h200-sxm", 8192, 1024),
    ("b200", 16384, 1024), ("l40s", 2048, 256), ("nobody-knows", 2048, 256),
])  # fmt: skip
def test_today_is_what_vllm_does_by_itself_on_that_gpu(
    device: str, chunk: int, sequences: int
) -> None:
    assert Today.on(device) == Today(chunk, sequences)


def test_a_model_that_does_not_fit_gets_no_advice(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["advise", "--model", "llama3-70b", "--device", "h100", "--rate", "1"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "137 GB of weights for each GPU, 72 GB" in err
    assert "--tp 2 is enough" in err


def test_commands_for_several_nodes_do_not_number_gpus_through(tmp_path: Path) -> None:
    table = replace(EIGHT_GPUS, metadata={**EIGHT_GPUS.metadata, "tp": "8", "pp": "2"})
    lock, undo = commands(ONE_CLOCK, Setting(1050, 2048, 256), NOW, table, Slo())
    assert lock == "sudo nvidia-smi -lgc 1050,1050   # on each node"
    assert undo.endswith("on each node")
    typed = commands(BEAM, Setting(None, 512, 64), NOW, table, Slo())
    assert any("[clock.nodes]" in line for line in typed)
    (printf,) = [line for line in typed if line.startswith("printf")]
    subprocess.run(["sh", "-c", printf], cwd=tmp_path, check=True)
    assert EmbeddedConfig.load(tmp_path / "beam.toml").gpus == ()
