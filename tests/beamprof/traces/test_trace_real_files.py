"""The published traces, where the shared data lies beside the checkout."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beamprof.errors import ImportFormatError
from beamprof.traces.importing import import_trace
from beamprof.traces.policies import OverLimit
from beamprof.traces.servegen_pool import read_pool
from beamprof.traces.servegen_sampler import (
    Draw,
    _arrivals_in_window,
    sample,
    scale_for_tokens_per_s,
)
from beamprof.traces.statistics import tokens_per_s, trace_statistics
from beamprof.traces.transforms import cap_total_tokens

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "traces").is_dir(), reason="the shared data is not beside this checkout"
)
TRACES = DATA / "traces"
HEADLINE = DATA / "measured-a100/requests_lang_m-small_day1_19h00m-20h00m_3600s_3rps.csv"
GENERATED = [
    "servegen-mlarge-d0-1900-s04",
    "servegen-mlarge-d0-1900-s07",
    "servegen-mlarge-d0-1900-s15",
    "servegen-mlarge-d1-1900-s01",
    "servegen-mlarge-d13-1900-s01-uncapped",
    "servegen-mlarge-d4-1900-s01",
    "servegen-mlarge-d7-1900-s02",
    "servegen-r1-d0-1900-s01",
]


@pytest.mark.parametrize(
    ("path", "name", "requests", "duration_s"),
    [
        ("azure-2023/AzureLLMInferenceTrace_code.csv", "azure", 8819, 3436),
        ("azure-2023/AzureLLMInferenceTrace_conv.csv", "azure", 19366, 3502),
        ("azure-2024-rows/AzureLLMInferenceTrace_code_1week.rows.csv", "azure", 10, 604800),
        ("azure-2024-rows/AzureLLMInferenceTrace_conv_1week.rows.csv", "azure", 10, 604800),
        ("burstgpt-format-fixture/SYNTHETIC_burstgpt_v1_6col.csv", "burstgpt", 1466, 3590),
        ("burstgpt-format-fixture/SYNTHETIC_burstgpt_v3_8col.csv", "burstgpt", 1475, 3589),
        ("mooncake-fast25/conversation_trace.jsonl", "mooncake", 12031, 3537),
        ("vidur/splitwise_code.csv", "vidur", 8819, 3436),
        ("vidur/splitwise_conv.csv", "vidur", 19366, 3502),
    ],
)
def test_each_published_file_is_read_whole(path, name, requests, duration_s):
    trace = import_trace(TRACES / path)
    assert trace.provenance.format == name
    assert (trace.requests, trace.duration_s) == (requests, duration_s)


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_vidurs_splitwise_files_are_azures(kind):
    azure = import_trace(TRACES / f"azure-2023/AzureLLMInferenceTrace_{kind}.csv")
    vidur = import_trace(TRACES / f"vidur/splitwise_{kind}.csv")
    assert np.abs(azure.arrival_s - vidur.arrival_s).max() < 1e-6
    assert (azure.input_tokens == vidur.input_tokens).all()
    assert (azure.output_tokens == vidur.output_tokens).all()


def test_burstgpts_failures_are_counted():
    for file, failed in (("v1_6col", 34), ("v3_8col", 25)):
        trace = import_trace(TRACES / f"burstgpt-format-fixture/SYNTHETIC_burstgpt_{file}.csv")
        (step,) = trace.provenance.transforms
        assert (step.requests_before, step.counts) == (1500, {"failed_requests": failed})


def test_mooncakes_blocks_cover_their_prompts():
    trace = import_trace(TRACES / "mooncake-fast25/conversation_trace.jsonl")
    blocks = trace.frame["prefix_hashes"].list.len().to_numpy()
    assert (blocks == np.ceil(trace.input_tokens / 512)).all()
    assert trace_statistics(trace).distinct_arrivals == 1180
    over = (trace.input_tokens + trace.output_tokens > 8192).mean()
    assert over == pytest.approx(0.46, abs=0.005)
    cut = cap_total_tokens(trace, 8192, OverLimit.TRUNCATE)
    blocks = cut.frame["prefix_hashes"].list.len().to_numpy()
    assert (blocks == np.ceil(cut.input_tokens / 512)).all()


def test_the_headline_hour():
    trace = import_trace(HEADLINE)
    numbers = trace_statistics(trace)
    assert (trace.provenance.format, trace.requests, trace.duration_s) == (
        "beam-artifact",
        7887,
        3600,
    )
    assert numbers.requests_per_s == pytest.approx(2.19, abs=0.005)
    assert numbers.tokens_per_s == pytest.approx(1809, abs=1)
    assert numbers.bins[1].p90_tokens_per_s == pytest.approx(2698, rel=0.002)
    kept = cap_total_tokens(trace, 10_000, OverLimit.DROP)
    assert kept.provenance.transforms[-1].counts == {"over_max_total_tokens": 1}


@pytest.mark.parametrize("stem", GENERATED)
def test_generated_traces_have_their_manifests_statistics(stem):
    entry = json.loads((TRACES / "servegen-generated/manifest.json").read_text())[stem]
    trace = import_trace(TRACES / f"servegen-generated/{stem}.csv")
    numbers, stated = trace_statistics(trace), entry["stats"]
    assert trace.provenance.sha256 == entry["sha256"]
    assert trace.duration_s == 3600.0
    assert numbers.requests == stated["requests"]
    assert numbers.clients == stated["clients"]
    assert numbers.requests_per_s == pytest.approx(stated["rps"], abs=6e-4)
    assert numbers.tokens_per_s == pytest.approx(stated["tps_total"], abs=0.06)
    assert numbers.output_tokens_per_s == pytest.approx(stated["tps_out"], abs=0.06)
    assert numbers.gap_cv == pytest.approx(stated["iat_cv"], abs=6e-3)
    for load in numbers.bins:
        stated_p90 = stated["p90_total"][f"{load.bin_s}s"]
        assert load.p90_tokens_per_s == pytest.approx(stated_p90, abs=0.6)
    assert numbers.bins[0].dispersion == pytest.approx(stated["fano_1s"], abs=6e-3)
    # The manifest's 60-s dispersion has a 61st bin where a request arrives at 3600.000000.
    per_minute = np.bincount((trace.arrival_s // 60).astype(int))
    assert per_minute.var() / per_minute.mean() == pytest.approx(stated["fano_60s"], abs=6e-3)
    if len(per_minute) == 60:
        assert numbers.bins[2].dispersion == pytest.approx(stated["fano_60s"], abs=6e-3)
    for lengths, name in ((numbers.input, "input"), (numbers.output, "output")):
        assert lengths.mean_tokens == pytest.approx(stated[name]["mean"], abs=0.06)
        assert lengths.max_tokens == stated[name]["max"]
        for share in ("p50", "p90", "p99"):
            assert getattr(lengths, f"{share}_tokens") == pytest.approx(stated[name][share], abs=1)


@pytest.fixture(scope="module")
def m_large():
    folder = TRACES / "servegen-native/day0-12to24/language/m-large"
    return read_pool(folder, 68400, 72000)


class ServeGensRandom:
    """ServeGen's own random numbers: numpy's global MT19937, Weibull by inverse CDF."""

    def __init__(self, seed, used):
        self._random = np.random.RandomState(seed)
        self._random.random_sample(used)

    def weibull(self, shape, count):
        return (-np.log1p(-self.random(count))) ** (1 / shape)

    def random(self, count):
        return self._random.random_sample(count)


# Where in the random stream of seed 15 a client's turn in a window begins: found by looking for
# its gaps. Other clients of that window came first.
@pytest.mark.parametrize(
    ("client_id", "turn", "used"), [(65, 0, 3), (104, 0, 247), (65, 1, 2720), (104, 1, 3038)]
)
def test_by_servegens_random_numbers_our_rules_give_servegens_requests(
    m_large, client_id, turn, used
):
    path = TRACES / "servegen-generated/servegen-mlarge-d0-1900-s15.csv"
    scale = json.loads(path.with_name("manifest.json").read_text())[path.stem]["scale"]
    client = next(client for client in m_large.clients if client.client_id == client_id)
    window = client.windows[turn]
    start_s = window.start_s - 68400
    theirs = import_trace(path).frame.filter(
        pl.col("client_id") == str(client_id),
        pl.col("arrival_s").is_between(start_s, start_s + 600, closed="left"),
    )
    stream = ServeGensRandom(15, used)
    count = math.ceil(window.rate_rps * scale * 600)
    since_s = _arrivals_in_window(window, count, stream)
    # Our gaps are whole microseconds: over a thousand of them that adds up to some ten.
    assert start_s + since_s == pytest.approx(theirs["arrival_s"].to_numpy()[: count - 1], abs=3e-5)
    uniform = stream.random(len(since_s))
    block = client.block_for(window)
    for name, law in (("input_tokens", block.input_law), ("output_tokens", block.output_law)):
        assert np.maximum(law.at(uniform), 1).tolist() == theirs[name].to_list()[: count - 1]


# ServeGen keeps the arrival that ends a window where rounding puts it below 600 s, and which way
# it rounds hangs on the last bit of every gap: not the same on any machine, so ours drops it.
FEWER_REQUESTS = 0.003


def test_our_seeds_spread_around_servegens_traces(m_large):
    """Each trace within 3 deviations of our seeds, the three together within 3 of their mean.

    The nearest to the limit is the P90 of 10-s bins: 3422, 3461 and 3493 tokens/s against 3690 ±
    165 over 150 of our seeds. That is no difference of method: ServeGen's rules with ServeGen's
    random numbers give 3730 ± 180 over 200 seeds, and under 3493 in a tenth of them. Seeds 4, 7
    and 15 look chosen, for the P90 of 2800 that BEAM's authors state: they lie there in wider bins.
    """
    manifest = json.loads((TRACES / "servegen-generated/manifest.json").read_text())
    off = {}
    for theirs in ("s04", "s07", "s15"):
        entry = manifest[f"servegen-mlarge-d0-1900-{theirs}"]
        draws = [Draw(68400, 3600, entry["scale"], seed) for seed in range(40)]
        ours = [_found(trace_statistics(sample(m_large, draw))) for draw in draws]
        assert {numbers["clients"] for numbers in ours} == {entry["stats"]["clients"]}
        for name, value in _stated(entry["stats"]).items():
            found = np.array([numbers[name] for numbers in ours])
            if name == "requests":
                assert value * (1 - FEWER_REQUESTS) < found.mean() <= value
            else:
                off.setdefault(name, []).append((value - found.mean()) / found.std(ddof=1))
    for name, deviations in off.items():
        assert np.abs(deviations).max() < 3, (name, deviations)
        assert abs(np.mean(deviations)) < 3 / math.sqrt(3), (name, deviations)


def _stated(stats):
    return {
        "requests": stats["requests"],
        "tokens_per_s": stats["tps_total"],
        "output_tokens_per_s": stats["tps_out"],
        "gap_cv": stats["iat_cv"],
        "dispersion_1s": stats["fano_1s"],
        **{f"p90_{width}": stats["p90_total"][width] for width in ("1s", "10s", "60s")},
        **{
            f"{side}_{share}": stats[side][share]
            for side in ("input", "output")
            for share in ("mean", "p50", "p90", "p99")
        },
    }


def _found(numbers):
    return {
        "clients": numbers.clients,
        "requests": numbers.requests,
        "tokens_per_s": numbers.tokens_per_s,
        "output_tokens_per_s": numbers.output_tokens_per_s,
        "gap_cv": numbers.gap_cv,
        "dispersion_1s": numbers.bins[0].dispersion,
        **{f"p90_{load.bin_s}s": load.p90_tokens_per_s for load in numbers.bins},
        **{
            f"{side}_{share}": getattr(getattr(numbers, side), f"{share}_tokens")
            for side in ("input", "output")
            for share in ("mean", "p50", "p90", "p99")
        },
    }


def test_the_scale_for_a_load_is_found_with_the_limit_applied(m_large):
    def capped(trace):
        return cap_total_tokens(trace, 4096, OverLimit.DROP)

    draw = scale_for_tokens_per_s(m_large, Draw(68400, 3600, seed=5), 1800.0, capped)
    assert tokens_per_s(capped(sample(m_large, draw))) == pytest.approx(1800, rel=0.005)


def test_a_multimodal_pool_is_refused_in_words():
    with pytest.raises(ImportFormatError, match="expected input_tokens") as caught:
        read_pool(TRACES / "servegen-native/verbatim/multimodal/mm-image", 0, 3600)
    assert "multimodal" in str(caught.value)


def test_the_r1_pool_is_read():
    pool = read_pool(TRACES / "servegen-native/verbatim/reason/deepseek-r1", 68400, 72000)
    assert [client.client_id for client in pool.clients] == [1, 5]
    assert sample(pool, Draw(68400, 3600, seed=1)).requests > 500
