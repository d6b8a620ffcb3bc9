"""Experts: which are read, how many tokens each gets, and what the split over GPUs changes."""

import dataclasses

import numpy as np
import pytest

from beam_runtime.types import StepShape
from beamprof.devices.device import Device, device_names, resolve_device
from beamprof.devices.forward import forward, pass_ms, reduces_us, utilisation
from beamprof.devices.moe import Routed, experts_us
from beamprof.devices.routing import drawn_loads
from beamprof.errors import DeviceError
from beamprof.models.formats import FORMATS
from beamprof.models.layers import MoeMlp
from beamprof.models.registry import registry

H100 = resolve_device("h100-sxm")
TOP = np.array([1980.0])
QWEN = MoeMlp(experts=128, top_k=8, intermediate_size=768)
BF16 = FORMATS["bfloat16"]


def test_a_small_batch_reads_the_experts_it_chose_and_a_chunk_reads_all() -> None:
    active = [float(Routed.of(QWEN, 2048, n, spread=1.0).active[0]) for n in (1, 4, 16, 1024)]
    # Tokens choose by chance: 128 (1 - (1 - 8/128)^n), not 8 n.
    assert active == pytest.approx([128 * (1 - (1 - 8 / 128) ** n) for n in (1, 4, 16, 1024)])
    assert active[0] == pytest.approx(8)


def test_the_expected_loads_are_those_of_drawn_choices() -> None:
    rng = np.random.default_rng(0)
    shares = 10.0 ** -((np.arange(128) + 0.5) / 128)
    active = []
    for _ in range(200):
        scores = rng.gumbel(size=(32, 128)) + np.log(shares)  # 8 of 128 without replacement
        active.append(np.unique(np.argsort(-scores, axis=1)[:, :8]).size)
    expected = Routed.of(QWEN, 2048, 32, spread=10.0)
    assert expected.active[0] == pytest.approx(np.mean(active), rel=0.02)
    assert expected.rows[0] == pytest.approx(32 * 8)


def test_skewed_routers_read_fewer_experts() -> None:
    even, skewed = (Routed.of(QWEN, 2048, 32, spread) for spread in (1.0, 100.0))
    assert skewed.active[0] < 0.85 * even.active[0]
    assert skewed.rows[0] == pytest.approx(even.rows[0])


def test_a_benchmark_hands_out_whole_counts() -> None:
    balanced = Routed.drawn([(QWEN, 2048, n, 0.0) for n in (1, 4, 16, 1024)])
    assert balanced.active.tolist() == [8, 32, 128, 128]
    skewed = Routed.drawn([(QWEN, 2048, 32, 1.2)])
    assert skewed.active[0] < 128
    assert skewed.rows[0] == 32 * 8


def test_one_large_chunk_costs_less_than_many_small_ones() -> None:
    # The experts are read once for each chunk: worth more here than in a dense model.
    stage = registry()["qwen3-30b-a3b"].shard(1, 1)
    whole, part = (pass_ms(H100, stage, StepShape(chunk), TOP)[0] for chunk in (1024, 128))
    dense = registry()["llama3.1-8b"].shard(1, 1)
    dense_whole, dense_part = (pass_ms(H100, dense, StepShape(c), TOP)[0] for c in (1024, 128))
    assert 8 * part / whole > 1.5 * (8 * dense_part / dense_whole)


def test_expert_parallel_gpus_hold_a_share_and_the_busiest_paces() -> None:
    spread = dataclasses.replace(QWEN, ep=8)
    routed = Routed.of(spread, 2048, 64)
    assert routed.active[0] <= 16
    assert routed.rows[0] > 64 * 8 / 8  # more than its fair share: it holds the most wanted
    alone = experts_us(H100, Routed.of(QWEN, 2048, 64), BF16, TOP)[0, 0]
    assert experts_us(H100, routed, BF16, TOP)[0, 0] < alone


def test_gpus_that_wait_for_the_busiest_draw_less_than_it() -> None:
    """The energy of a stage is that of all its GPUs, and one of them has the most wanted expert."""
    spread = dataclasses.replace(QWEN, ep=8)
    busiest, mean = Routed.of(spread, 2048, 64), Routed.mean(spread, 2048, 64)
    whole = Routed.of(QWEN, 2048, 64)
    assert 8 * mean.rows[0] == pytest.approx(64 * 8)
    assert 8 * mean.active[0] == pytest.approx(whole.active[0])
    assert mean.active[0] < busiest.active[0]
    stage = registry()["qwen3-30b-a3b"].shard(8, 1, ep=8)
    step = StepShape(0, 0, 64, 64_000)
    ms = pass_ms(H100, stage, step, TOP)
    use = utilisation(H100, stage, step, TOP, ms)
    reduces = reduces_us(H100, stage, step.tokens) / ms[0] / 1e3
    assert use.reduce_share[0] > reduces  # it waits in its experts' layers as well


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(16, 128, 1), (4, 256, 8)])
def test_a_benchmark_of_few_tokens_gives_each_choice_an_expert(
    tokens: int, experts: int, top_k: int
) -> None:
    """Measured: under a power law 16 tokens of top 1 take as long as 16 experts do, evenly."""
    for skew in (1.01, 1.2):
        active, rows, *_ = drawn_loads(tokens, experts, top_k, 1, skew)
        assert active == rows == tokens * top_k


def test_fewer_bytes_make_a_decode_faster() -> None:
    step = StepShape(0, 0, 8, 8 * 1000)
    for name in ("llama3.3-70b", "qwen3-32b"):
        whole, quantised = (
            forward(H100, registry()[model].shard(2, 1), step, TOP)
            for model in (name, f"{name}-fp8")
        )
        assert quantised.latency_ms[0] < 0.85 * whole.latency_ms[0]
        assert quantised.energy_j[0] < whole.energy_j[0]


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v3", "glm-4.5-air",
                                  "qwen3-next-80b-a3b", "mixtral-8x7b", "gemma3-27b"])  # fmt: skip
@pytest.mark.parametrize("device", [resolve_device(n) for n in device_names()
                                    if resolve_device(n).moe])  # fmt: skip
def test_every_kind_of_model_is_priced(device: Device, name: str) -> None:
    stage = registry()[name].shard(1, 1)
    clocks = np.array(device.clocks.supported_mhz, dtype=np.float64)
    before = 0.0
    for step in (
        StepShape(0, 0, 1, 1000),
        StepShape(0, 0, 64, 64_000),
        StepShape(2048, 0, 64, 64_000),
    ):
        result = forward(device, stage, step, clocks)
        power_w = result.energy_j / result.latency_ms * 1e3
        assert np.all(np.isfinite(result.latency_ms))
        assert np.all(np.diff(result.latency_ms) <= 1e-9)
        assert np.all(power_w <= device.power.cap_w * 1.001)
        assert result.latency_ms[-1] > before
        before = result.latency_ms[-1]


def test_a_device_without_experts_says_which_have_them() -> None:
    none = dataclasses.replace(H100, moe={})
    with pytest.raises(DeviceError, match="no constants for models with experts") as caught:
        pass_ms(none, registry()["qwen3-30b-a3b"].shard(1, 1), StepShape(8), TOP)
    assert "h100-sxm" in str(caught.value.hint)


def test_groups_that_attend_alone_exchange_tokens_over_all_their_gpus() -> None:
    model = registry()["qwen3-30b-a3b"]
    alone, shared = model.shard(1, 1), model.shard(1, 1, dp=2)
    step = StepShape(0, 0, 32, 32 * 500)
    one_us, two_us = (pass_ms(H100, stage, step, TOP)[0] for stage in (alone, shared))
    wide = model.shard(1, 1, dp=8)
    assert two_us < one_us  # half of each expert is read; 64 tokens choose instead of 32
    assert reduces_us(H100, wide, 32) > reduces_us(H100, shared, 32) > reduces_us(H100, alone, 32)


def test_eight_bit_inputs_speed_chunks_up_and_small_batches_hardly() -> None:
    b200, top = resolve_device("b200"), np.array([1965.0])
    mlp = MoeMlp(experts=128, top_k=4, intermediate_size=2880)
    chunk, few = (
        [float(experts_us(b200, Routed.of(mlp, 2880, n), FORMATS[f], top)[0, 0])
         for f in ("mxfp4", "mxfp4_fp8")]
        for n in (8192, 8)
    )  # fmt: skip
    assert chunk[1] < 0.6 * chunk[0]
    assert 0.6 * few[0] < few[1] < 1.2 * few[0]
