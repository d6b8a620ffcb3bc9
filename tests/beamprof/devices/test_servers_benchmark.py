"""The steady-state estimate behind benchmarks/servers.py, and its error on models not fitted."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import served_rows
import server_steps
import servers

DATA = Path(__file__).parents[3].parent / "shared" / "data"
SERVER = server_steps.Server(
    "qwen3-32b", "h100-sxm", 2, 1, 1, 32.0, 200, 800, 600, server_steps.Engine(0.3, 0.01, 0.0)
)


def test_more_requests_in_flight_trade_time_for_energy() -> None:
    few, many = (server_steps.predict(replace(SERVER, requests=n)) for n in (8.0, 128.0))
    assert many.median_itl_ms > few.median_itl_ms
    assert many.token_j < few.token_j
    assert many.power_w > few.power_w


def test_power_stays_within_the_limit_of_all_gpus() -> None:
    busy = server_steps.predict(replace(SERVER, requests=512.0))
    assert busy.power_w <= 2 * 700 * 1.01
    assert busy.clock_mhz < 1980


def test_the_lm_head_draws_power_as_layers_do() -> None:
    """A small model with a large vocabulary reads a tenth of its bytes in the LM head."""
    small = replace(SERVER, model="gpt-oss-20b", tp=1)
    device, stage = server_steps.resolve_device("h100-sxm"), server_steps.stage_of(small)
    step, top, ms = server_steps.step_shape(small, 0), np.array([1980.0]), np.array([5.0])
    layers = server_steps.utilisation(device, stage, step, top, ms)
    both = server_steps.use_of(device, stage, small, step, top, ms)
    assert both.dram_tbps[0] - layers.dram_tbps[0] == pytest.approx(1.16e9 / 5e-3 / 1e12, rel=0.05)
    assert both.tensor_share[0] > layers.tensor_share[0]


def test_prompts_cost_time_and_first_tokens() -> None:
    short, long = (served_rows.play(replace(SERVER, prompt_tokens=p)) for p in (100, 4000))
    assert long[1] > 3 * short[1]
    assert long[0] > short[0]


def test_a_waiting_gpu_draws_less_than_one_that_sorts() -> None:
    waits = replace(SERVER, engine=server_steps.Engine(20.0, 0.0, 0.0))
    sorts = replace(SERVER, engine=server_steps.Engine(0.0, 0.0, 20.0 / 32 / 151936 * 1e6))
    waiting, sorting = server_steps.predict(waits), server_steps.predict(sorts)
    assert waiting.mean_itl_ms == pytest.approx(sorting.mean_itl_ms, rel=0.02)
    assert waiting.power_w < 0.7 * sorting.power_w


def test_experts_of_an_older_engine_cost_every_layer() -> None:
    moe = replace(SERVER, model="qwen3-30b-a3b-fp8", tp=1)
    older = replace(moe, engine=server_steps.Engine(0.3, 0.01, 0.0, fp8_experts_us=100.0))
    more_ms = server_steps.predict(older).mean_itl_ms - server_steps.predict(moe).mean_itl_ms
    assert more_ms == pytest.approx(48 * 0.1, rel=0.01)


HEAD = (
    "id,backend,backend_version,model_path,system,precision,isl,osl,batch_size,tp_size,"
    "attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms\n"
)
GOOD = "a,vllm,0.18.0,openai/gpt-oss-120b,h100_sxm,fp4,1024,256,8,2,1,2,1,80,6\n"
QUEUED = "b,vllm,0.18.0,openai/gpt-oss-120b,h100_sxm,fp4,1024,256,8,2,1,2,1,9000,6\n"
NO_LAYOUT = "c,vllm,0.12.0,Qwen/Qwen3-32B,h100_sxm,fp8,1024,256,8,2,,0,0,80,6\n"
GROUPS = "d,vllm,0.12.0,Qwen/Qwen3-235B-A22B-FP8,h200_sxm,fp8,1024,256,8,2,,4,1,300,40\n"
BLACKWELL = "e,vllm,0.15.1,openai/gpt-oss-120b,b200_sxm,fp4,1024,256,8,2,1,2,1,80,6\n"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "served-configurations"
    folder.mkdir()
    (folder / "silicon.csv").write_text(HEAD + GOOD + QUEUED + NO_LAYOUT + GROUPS + BLACKWELL)
    peers = "id,tpot_predicted_ms,ttft_predicted_ms,how,suspect_layout\n"
    (folder / "aiconfigurator_0.12.0.csv").write_text(peers + "a,6.6,100,csv,0\n")
    return tmp_path


def test_labels_become_servers(rows: Path) -> None:
    found = {row["id"]: server for server, _, row, _ in served_rows.served(rows)}
    assert found["a"].model == "openai/gpt-oss-120b"
    assert (found["a"].dp, found["a"].precision) == (1, "")
    assert found["d"].dp == 2  # four GPUs share the experts, two attend together
    assert server_steps.stage_of(found["d"]).dp == 2
    assert server_steps.stage_of(found["e"]).precision.experts == "mxfp4_fp8"


def test_rows_that_say_nothing_of_a_pass_are_set_apart_and_counted(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = argparse.Namespace(model="gpt-oss-120b", rows=False, backend=None, every=1)
    served_rows.report_served(rows, asked)
    out = capsys.readouterr().out
    assert "set apart, 1 rows: queued" in out
    assert "peer TPOT  10.0% (+10.0%)" in out
    assert out.count(" 2 rows  ours") == 1  # a and e together, not b
    asked.model = "Qwen3-32B"
    served_rows.report_served(rows, asked)
    assert "set apart, 1 rows: mislabelled layout" in capsys.readouterr().out


@pytest.mark.skipif(not (DATA / "mlenergy-v3").is_dir(), reason="mlenergy-v3 is not at hand")
def test_error_on_a_dense_model_that_was_not_fitted() -> None:
    errors = []
    for server, measured, gpu, _ in servers.mlenergy(DATA):
        if gpu == "H100" and server.model == "Qwen/Qwen3-32B":
            assert (gpu, server.model) not in servers.FITTED
            found = server_steps.predict(server)
            errors.append([
                found.median_itl_ms / measured["median ITL"] - 1,
                found.power_w / measured["power"] - 1,
                found.token_j / measured["J/token"] - 1,
            ])  # fmt: skip
    itl, power, energy = np.abs(np.array(errors)).mean(axis=0)
    assert itl <= 0.10
    assert power <= 0.12
    assert energy <= 0.10
