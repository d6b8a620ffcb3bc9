"""What must come out right whatever the fit (design of the modelled device)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from beam_runtime.types import StepShape
from beamprof.devices.attention import Heads, chunk_us, decode_us
from beamprof.devices.device import Device, device_names, resolve_device
from beamprof.devices.forward import Forward, forward, padded_tokens, pass_ms
from beamprof.devices.gemm import Gemms, choose_kernels, gemm_us
from beamprof.devices.power import capped_mhz, waiting_w
from beamprof.models.registry import registry
from beamprof.models.shape import StageShape

A100 = resolve_device("a100-sxm4-80gb")
CLOCKS = np.arange(510.0, 1411.0, 15.0)
TOP = np.array([1410.0])
STAGE = registry()["llama3-70b"].shard(2, 4)
LAYOUTS = [
    ("llama3-8b", 1, 1),
    ("llama3-8b", 4, 2),
    ("llama3-70b", 2, 4),
    ("llama3-70b", 8, 1),
    ("qwen2.5-14b", 1, 2),
    ("qwen3-32b", 2, 2),
    ("mistral-7b", 1, 1),
]
stages = st.sampled_from([registry()[name].shard(tp, pp) for name, tp, pp in LAYOUTS])
devices = st.sampled_from([resolve_device(name) for name in device_names()])
steps = st.builds(
    StepShape,
    prefill_tokens=st.integers(1, 2048),
    prefill_context_tokens=st.integers(0, 8192),
    decode_requests=st.integers(0, 256),
    decode_context_tokens=st.integers(0, 100_000),
)


HEADS = Heads.of(32, 4, 128, 0, "bfloat16")  # of llama3-70b at tp 2


def decode(requests: int, context_tokens: int, heads: Heads = HEADS) -> float:
    columns = (np.array([float(value)]) for value in (requests, context_tokens))
    return float(decode_us(A100, heads, *columns, TOP)[0, 0])


def at(stage: StageShape, step: StepShape, clocks: NDArray[np.float64] = CLOCKS) -> Forward:
    return forward(A100, stage, step, clocks)


@settings(max_examples=60)
@given(device=devices, stage=stages, step=steps)
def test_slower_clocks_never_make_a_pass_faster(
    device: Device, stage: StageShape, step: StepShape
) -> None:
    clocks = np.array(device.clocks.supported_mhz, dtype=np.float64)
    result = forward(device, stage, step, clocks)
    assert np.all(np.isfinite(result.latency_ms))
    assert np.all(result.latency_ms > 0)
    assert np.all(np.diff(result.latency_ms) <= 1e-12)


@settings(max_examples=60)
@given(device=devices, stage=stages, step=steps)
def test_power_lies_between_waiting_and_the_cap(
    device: Device, stage: StageShape, step: StepShape
) -> None:
    clocks = np.array(device.clocks.supported_mhz, dtype=np.float64)
    result = forward(device, stage, step, clocks)
    power_w = result.energy_j / result.latency_ms * 1e3 / stage.tp
    assert np.all(power_w > waiting_w(device, result.clock_reached_mhz))
    assert np.all(power_w <= device.power.cap_w * 1.001)
    below = result.clock_reached_mhz < clocks
    # Whoever misses the clock asked for does so because it is at the cap.
    assert np.all(power_w[below] >= device.power.cap_w * 0.98)


@settings(max_examples=80)
@given(stage=stages, step=steps, more=st.integers(1, 2048))
def test_more_work_never_costs_less_time(stage: StageShape, step: StepShape, more: int) -> None:
    time_ms = pass_ms(A100, stage, step, TOP)[0]
    for name in ("prefill_tokens", "prefill_context_tokens", "decode_context_tokens"):
        larger = dataclasses.replace(step, prefill_pairs=None, **{name: getattr(step, name) + more})
        slack = 0.98 if name == "prefill_tokens" else 1 - 1e-9  # see the GEMM below
        assert pass_ms(A100, stage, larger, TOP)[0] >= time_ms * slack


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 4096),
    more=st.integers(1, 512),
    outputs=st.sampled_from([2560, 5120, 8192, 27648, 28672]),
    inputs=st.sampled_from([1024, 4096, 8192, 14336]),
)
def test_a_gemm_of_more_tokens_takes_no_less(
    tokens: int, more: int, outputs: int, inputs: int
) -> None:
    small, large = (Gemms.of(m, [(outputs, inputs)], "bfloat16") for m in (tokens, tokens + more))
    # A last wave that fills up overlaps a little better with DRAM: a percent, no more.
    assert gemm_us(A100, large, TOP)[0, 0] >= gemm_us(A100, small, TOP)[0, 0] * 0.98


@pytest.mark.parametrize("batch", [1, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024])
@pytest.mark.parametrize(("name", "tp", "pp"), LAYOUTS)
def test_energy_is_u_shaped_with_its_minimum_in_the_middle(
    name: str, tp: int, pp: int, batch: int
) -> None:
    decodes = min(60, batch)
    step = StepShape(batch - decodes, 0, decodes, 500 * decodes)
    result = at(registry()[name].shard(tp, pp), step)
    least = int(np.argmin(result.energy_j))
    assert 930 <= CLOCKS[least] <= 1110
    # Falling before, rising after; on the way the DRAM ramp may hold it level by a percent.
    assert np.all(np.diff(result.energy_j[: least + 1]) <= 0.01 * result.energy_j[least])
    assert np.all(np.diff(result.energy_j[least:]) >= 0)
    assert result.energy_j[0] > 1.1 * result.energy_j[least]
    assert result.energy_j[-1] > 1.1 * result.energy_j[least]


@pytest.mark.parametrize("batch", [1, 8, 16, 32, 64])
def test_decode_is_flat_above_a_gigahertz(batch: int) -> None:
    step = StepShape(0, 0, batch, 1000 * batch)
    slow, fast = pass_ms(A100, STAGE, step, np.array([1005.0, 1410.0]))
    assert slow <= 1.17 * fast  # published at 64: 1.12; the clocks themselves differ by 1.40


@pytest.mark.parametrize("tokens", [512, 1024, 2048])
def test_a_gemm_bound_pass_scales_with_the_clock(tokens: int) -> None:
    slow, fast = pass_ms(A100, STAGE, StepShape(tokens), np.array([600.0, 1200.0]))
    assert slow / fast == pytest.approx(2.0, rel=0.06)


@pytest.mark.parametrize("tokens", [256, 512, 2048])
def test_510_mhz_costs_more_energy_than_1005_when_gemm_bound(tokens: int) -> None:
    slow, good = at(STAGE, StepShape(tokens), np.array([510.0, 1005.0])).energy_j
    assert slow > 1.1 * good


def test_the_staircase_stands_where_operators_show_it() -> None:
    # Measured on A100 operators at tp 2: +28 % from 128 to 136 tokens, +41 % from 256 to 264.
    for edge, least, most in ((128, 1.15, 1.45), (256, 1.15, 1.5)):
        low, high = (pass_ms(A100, STAGE, StepShape(t), TOP)[0] for t in (edge, edge + 8))
        assert least < high / low < most
    flat = [pass_ms(A100, STAGE, StepShape(t), TOP)[0] for t in (136, 256)]
    assert flat[1] / flat[0] < 1.15


def test_small_grids_split_k_and_full_ones_do_not() -> None:
    assert choose_kernels(A100, Gemms.of(128, [(5120, 14336)], "bfloat16")).splits[0] > 1
    assert choose_kernels(A100, Gemms.of(512, [(28672, 8192)], "bfloat16")).splits[0] == 1


def test_decode_attention_steps_where_blocks_outnumber_sms() -> None:
    # 4 KV heads on each GPU: 27 requests fill 108 SMs, the 28th starts another wave.
    full, over = (decode(b, b * 4000) for b in (27, 28))
    assert over / full > 1.1


def test_decode_attention_never_beats_dram() -> None:
    context = 1_000_000
    time_us = decode(64, context)
    kv_bytes = STAGE.kv_bytes_per_token / STAGE.layers * context
    assert kv_bytes / time_us / 1e6 <= max(A100.memory.bandwidth_tbps) * 1.0001


def test_chunk_attention_grows_with_its_context() -> None:
    columns = [np.array([float(value)]) for value in (1, 512, 0, 4096)]
    first, later = (
        chunk_us(A100, HEADS, columns[0], columns[1], context, TOP)[0, 0] for context in columns[2:]
    )
    assert later > 4 * first


def test_a_sliding_window_bounds_decodes_and_chunks() -> None:
    windowed = Heads.of(32, 4, 128, 1024, "bfloat16")
    short, long = (decode(64, 64 * context, windowed) for context in (1024, 8192))
    assert long == pytest.approx(short)
    one, tokens = np.array([1.0]), np.array([512.0])
    near, far = (
        chunk_us(A100, windowed, one, tokens, np.array([k]), TOP)[0, 0] for k in (2048.0, 16384.0)
    )
    assert far == pytest.approx(near)
    assert decode(64, 64 * 8192) > 3 * long


def test_one_gpu_pays_no_allreduce() -> None:
    free = dataclasses.replace(A100.allreduce, us_2=(0.0,) * len(A100.allreduce.us_2))
    device = dataclasses.replace(A100, allreduce=free)
    single = registry()["qwen2.5-14b"].shard(1, 2)
    step = StepShape(256)
    assert pass_ms(device, single, step, TOP)[0] == pass_ms(A100, single, step, TOP)[0]
    saved_us = (pass_ms(A100, STAGE, step, TOP) - pass_ms(device, STAGE, step, TOP))[0] * 1e3
    assert saved_us >= 2 * STAGE.layers * A100.allreduce.us_2[0] * 0.999


@pytest.mark.parametrize(
    ("tokens", "padded"),
    [(1, 1), (3, 4), (8, 8), (9, 16), (61, 64), (505, 512), (512, 512), (513, 513)],
)
def test_passes_are_padded_to_captured_graphs(tokens: int, padded: int) -> None:
    assert padded_tokens(tokens) == padded


def test_the_cap_is_met_between_two_clocks() -> None:
    clocks, watts = np.array([100.0, 200.0, 300.0]), np.array([100.0, 300.0, 500.0])
    assert capped_mhz(clocks, watts, 400.0) == 250.0
    assert capped_mhz(clocks, watts, 900.0) == 300.0
    assert capped_mhz(clocks, watts, 50.0) == 100.0
