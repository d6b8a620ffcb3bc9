"""The steady-state estimate behind benchmarks/servers.py, and its error on models not fitted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import servers

DATA = Path(__file__).parents[3].parent / "shared" / "data"
SERVER = servers.Server(
    "qwen3-32b", "h100-sxm", 2, 1, 1, 32.0, 200, 800, 600, servers.Engine(0.3, 0.01, 0.0)
)


def test_more_requests_in_flight_trade_time_for_energy() -> None:
    few, many = (servers.predict(replace(SERVER, requests=n)) for n in (8.0, 128.0))
    assert many.median_itl_ms > few.median_itl_ms
    assert many.token_j < few.token_j
    assert many.power_w > few.power_w


def test_power_stays_within_the_limit_of_all_gpus() -> None:
    busy = servers.predict(replace(SERVER, requests=512.0))
    assert busy.power_w <= 2 * 700 * 1.01
    assert busy.clock_mhz < 1980


def test_prompts_cost_time_and_first_tokens() -> None:
    short, long = (servers.play(replace(SERVER, prompt_tokens=p)) for p in (100, 4000))
    assert long[1] > 3 * short[1]
    assert long[0] > short[0]


def test_a_waiting_gpu_draws_less_than_one_that_sorts() -> None:
    waits = replace(SERVER, engine=servers.Engine(20.0, 0.0, 0.0))
    sorts = replace(SERVER, engine=servers.Engine(0.0, 0.0, 20.0 / 32 / 151936 * 1e6))
    waiting, sorting = servers.predict(waits), servers.predict(sorts)
    assert waiting.mean_itl_ms == pytest.approx(sorting.mean_itl_ms, rel=0.02)
    assert waiting.power_w < 0.7 * sorting.power_w


def test_experts_of_an_older_engine_cost_every_layer() -> None:
    moe = replace(SERVER, model="qwen3-30b-a3b-fp8", tp=1)
    older = replace(moe, engine=servers.Engine(0.3, 0.01, 0.0, fp8_experts_us=100.0))
    more_ms = servers.predict(older).mean_itl_ms - servers.predict(moe).mean_itl_ms
    assert more_ms == pytest.approx(48 * 0.1, rel=0.01)


@pytest.mark.skipif(not (DATA / "mlenergy-v3").is_dir(), reason="mlenergy-v3 is not at hand")
def test_error_on_a_dense_model_that_was_not_fitted() -> None:
    errors = []
    for server, measured, gpu, _ in servers.mlenergy(DATA):
        if gpu == "H100" and server.model == "Qwen/Qwen3-32B":
            assert (gpu, server.model) not in servers.FITTED
            found = servers.predict(server)
            errors.append([
                found.median_itl_ms / measured["median ITL"] - 1,
                found.power_w / measured["power"] - 1,
                found.token_j / measured["J/token"] - 1,
            ])  # fmt: skip
    itl, power, energy = np.abs(np.array(errors)).mean(axis=0)
    assert itl <= 0.10
    assert power <= 0.12
    assert energy <= 0.10
