"""Hybrids: states instead of caches, layers of one half, two mixers side by side."""

import dataclasses

import numpy as np
import pytest

from beam_runtime.types import StepShape
from beamprof.devices.assumed import NOT_MEASURED, assumed
from beamprof.devices.device import resolve_device
from beamprof.devices.forward import elementwise_bytes, forward, layer_us, pass_ms, reduces_us
from beamprof.devices.mamba import mamba_state_bytes, mamba_us
from beamprof.devices.moe import Routed
from beamprof.errors import DeviceError
from beamprof.models.layers import (
    Attention,
    DenseMlp,
    Layer,
    LayerGroup,
    MoeMlp,
    NoMixer,
    NoMlp,
    SideBySide,
)
from beamprof.models.recurrent import Mamba2
from beamprof.models.registry import registry
from beamprof.models.shape import StageShape

H100 = resolve_device("h100-sxm")
TOP = np.array([1980.0])
MAMBA = Mamba2(heads=128, head_dim=64, state_dim=128, groups=8)
ATTENTION = Attention(32, 8, 128)
HYBRIDS = ("nemotron-nano-9b-v2", "granite-4.0-h-tiny", "falcon-h1-34b", "kimi-linear-48b-a3b")


def stage(*layers: Layer, tp: int = 1) -> StageShape:
    return StageShape(tp, 1, 4096, tuple(LayerGroup(1, layer) for layer in layers))


def test_a_decode_reads_and_writes_its_state_whatever_the_context() -> None:
    short, long = (
        layer_us(H100, stage(Layer(MAMBA, NoMlp())), Layer(MAMBA, NoMlp()), step, TOP)
        for step in (
            StepShape(decode_requests=64, decode_context_tokens=64 * context)
            for context in (100, 100_000)
        )
    )
    assert short == long
    # 128 heads of 64 x 128 numbers in float32, there and back: 8.4 MB a request.
    assert mamba_state_bytes(MAMBA, 1) == 2 * 4 * 128 * 64 * 128
    half = dataclasses.replace(MAMBA, state_bytes=2)
    assert mamba_state_bytes(half, 1) == mamba_state_bytes(MAMBA, 1) / 2


def test_the_time_of_many_decodes_is_that_of_their_states_bytes() -> None:
    one, many = (float(mamba_us(H100, MAMBA, n, 0, 0, TOP)[0]) for n in (256, 512))
    bytes_us = float(mamba_state_bytes(MAMBA, 256)) / (many - one)
    assert bytes_us / 1e6 == pytest.approx(3.35, rel=0.15)  # TB/s of an H100


def test_a_scan_grows_with_the_prompt_and_with_the_states_size() -> None:
    scans = [float(mamba_us(H100, MAMBA, 0, 1, n, TOP)[0]) for n in (1024, 2048, 4096)]
    assert scans[2] - scans[1] == pytest.approx(2 * (scans[1] - scans[0]))
    wide = dataclasses.replace(MAMBA, state_dim=256)
    assert float(mamba_us(H100, wide, 0, 1, 4096, TOP)[0]) > scans[2]


def test_a_device_without_constants_says_what_it_lacks() -> None:
    a100 = resolve_device("a100-sxm4-80gb")
    with pytest.raises(DeviceError, match="no constants for gated delta nets, by which Mamba-2"):
        mamba_us(a100, MAMBA, 1, 0, 0, TOP)


def test_two_halves_in_layers_of_their_own_cost_what_they_cost_in_one() -> None:
    mlp, step = DenseMlp(14336), StepShape(256, decode_requests=16, decode_context_tokens=16_000)
    whole = stage(Layer(ATTENTION, mlp), tp=2)
    halves = stage(Layer(ATTENTION, NoMlp()), Layer(NoMixer(), mlp), tp=2)
    assert pass_ms(H100, halves, step, TOP) == pytest.approx(pass_ms(H100, whole, step, TOP))
    assert halves.weights == whole.weights
    assert reduces_us(H100, halves, 64) == reduces_us(H100, whole, 64)


def test_side_by_side_costs_both_and_one_more_all_reduce() -> None:
    mlp = DenseMlp(14336)
    both = stage(Layer(SideBySide(ATTENTION, MAMBA), mlp), tp=2)
    alone = stage(Layer(ATTENTION, mlp), tp=2)
    assert reduces_us(H100, both, 64) == pytest.approx(1.5 * reduces_us(H100, alone, 64))
    assert both.kv_bytes_per_token == alone.kv_bytes_per_token
    assert both.weights - alone.weights == sum(n * k for n, k in MAMBA.projections(4096))
    step = StepShape(512, decode_requests=8, decode_context_tokens=8000)
    assert pass_ms(H100, both, step, TOP) > pass_ms(H100, alone, step, TOP)


def test_gpus_that_share_a_mamba_group_add_up_its_norms_sums() -> None:
    one = Layer(dataclasses.replace(MAMBA, groups=1), NoMlp())
    shared, apart = (stage(layer.split(8, 1), tp=8) for layer in (one, Layer(MAMBA, NoMlp())))
    assert reduces_us(H100, shared, 64) > reduces_us(H100, apart, 64)
    bare = Layer(dataclasses.replace(MAMBA, groups=1, normed=False), NoMlp())
    assert reduces_us(H100, stage(bare.split(8, 1), tp=8), 64) == reduces_us(H100, apart, 64)


def test_side_by_side_in_a_layer_saves_a_norm_and_no_all_reduce() -> None:
    one, two = (Layer(ATTENTION, DenseMlp(14336), parallel) for parallel in (True, False))
    less = elementwise_bytes(stage(two), two, 8) - elementwise_bytes(stage(one), one, 8)
    assert less == 8 * 4 * 4096 * 2
    assert one.split(2, 1).parallel
    assert one.reduces == two.reduces


def test_an_mlp_without_a_gate_moves_and_weighs_two_thirds() -> None:
    gated, plain = (Layer(NoMixer(), DenseMlp(14336, gated)) for gated in (True, False))
    assert stage(plain).weights == stage(gated).weights * 2 / 3
    less = elementwise_bytes(stage(gated), gated, 8) - elementwise_bytes(stage(plain), plain, 8)
    assert less == 8 * 14336 * 2


def test_experts_behind_a_latent_step_are_as_small_as_that() -> None:
    mlp = MoeMlp(64, 4, 1024, shared_size=2048, gated=False, latent_size=512)
    assert mlp.expert_projections(4096) == ((1024, 512), (512, 1024))
    shared = ((2048, 4096), (4096, 2048))
    assert mlp.projections(4096) == (*shared, (512, 4096), (4096, 512))
    routed = Routed.of(mlp, 4096, 32)
    assert float(routed.hidden[0]) == 512
    assert float(routed.flops[0]) == pytest.approx(2 * 32 * 4 * 2 * 1024 * 512)


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_are_priced_and_say_what_was_not_measured(name: str) -> None:
    shard = registry()[name].shard(2, 1)
    step = StepShape(512, decode_requests=32, decode_context_tokens=32 * 4000)
    priced = forward(H100, shard, step, TOP)
    assert 0 < priced.latency_ms[0] < 1000
    assert priced.energy_j[0] > 0
    assert assumed(shard, H100).startswith(NOT_MEASURED)


def test_nothing_is_said_of_what_was_measured() -> None:
    for name in ("llama3-8b", "qwen3-next-80b-a3b", "deepseek-v3"):
        assert assumed(registry()[name].shard(1, 1), H100) == ""
