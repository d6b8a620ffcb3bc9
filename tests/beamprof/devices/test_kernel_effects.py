"""What measured kernels do beyond work over rate: waves, windows, split caches, odd widths."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from beamprof.devices.attention import Heads, chunk_us, decode_us
from beamprof.devices.delta import delta_us, state_bytes
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.gemm import Gemms, gemm_us
from beamprof.devices.latent import latent_us
from beamprof.devices.moe import Routed, experts_us
from beamprof.models.formats import FORMATS
from beamprof.models.layers import LatentAttention, MoeMlp
from beamprof.models.recurrent import GatedDelta

H100, L40S = resolve_device("h100-sxm"), resolve_device("l40s")
TOP, L40S_TOP = np.array([1980.0]), np.array([float(L40S.clocks.max_mhz)])


def decode(device: Device, heads: Heads, requests: float, each: float, cold: float = 1.0) -> float:
    batch, context = np.array([requests]), np.array([requests * each])
    return float(decode_us(device, heads, batch, context, TOP, cold)[0, 0])


def test_decode_blocks_run_in_whole_waves() -> None:
    heads = Heads.of(32, 8, 128, 0, "bfloat16")
    full = H100.compute.sms // heads.kv_heads[0]
    one, two = (decode(H100, heads, b, 64, cold=0.0) for b in (full, full + 1))
    assert two - one > H100.attention["bfloat16"].block_us


def test_a_window_that_slid_costs_its_blocks_more() -> None:
    windowed = Heads.of(64, 8, 64, 128, "bfloat16")
    assert decode(H100, windowed, 64, 4096) > 1.1 * decode(H100, windowed, 64, 127)


def test_first_reads_never_cost_more_than_the_stream() -> None:
    heads = Heads.of(8, 1, 64, 0, "bfloat16")
    cold, warm = (decode(H100, heads, 1, 15, share) for share in (1.0, 0.0))
    assert cold - warm < 0.1


def test_flash_attention_2_splits_no_cache_of_a_group_of_one() -> None:
    alone = Heads.of(8, 8, 128, 0, "bfloat16")
    grouped = Heads.of(32, 8, 128, 0, "bfloat16")
    assert decode(L40S, alone, 1, 8191, 0.0) > 3 * decode(L40S, grouped, 1, 8191, 0.0)


def test_chunks_with_a_long_context_fill_whole_waves() -> None:
    heads, kernels = Heads.of(32, 8, 128, 0, "bfloat16"), L40S.attention["bfloat16"]
    tiles = L40S.compute.sms // 32  # of each head, in one wave
    new = np.array([tiles * kernels.query_rows, (tiles + 1) * kernels.query_rows], dtype=float)
    ones = np.ones(2)
    one, two = chunk_us(L40S, heads, ones, new, 16384 * ones, TOP)[:, 0]
    assert two > 1.4 * one  # 1.25 of the work


@pytest.mark.parametrize("kv", ["bfloat16", "fp8"])
def test_flash_attention_3_splits_chunks_that_fill_less_than_its_share_of_sms(kv: str) -> None:
    """Eight KV heads on 1 to 8 GPUs: 512 tokens after 131k are 128 tiles, then 64, 32 and 16."""
    columns = np.array([1.0]), np.array([512.0]), np.array([131072.0])
    on = [Heads.of(32 // tp, 8 // tp, 128, 0, kv) for tp in (1, 2, 4, 8)]
    times_us = [float(chunk_us(H100, heads, *columns, TOP)[0, 0]) for heads in on]
    assert all(0.4 < few / many < 0.7 for many, few in itertools.pairwise(times_us))


def test_a_width_off_the_loads_is_slow() -> None:
    kernels = H100.moe["bfloat16"]
    plain = replace(H100, moe={**H100.moe, "bfloat16": replace(kernels, ragged_share=1.0)})
    for width, slower in ((88, True), (96, False)):
        routed = Routed.of(MoeMlp(128, 8, width, 0, True, 1), 2816, 64)
        here, there = (
            float(experts_us(device, routed, FORMATS["bfloat16"], TOP)[0, 0])
            for device in (H100, plain)
        )
        assert (here > 1.2 * there) is slower


def test_experts_kept_in_l2_are_read_faster() -> None:
    routed = Routed.of(MoeMlp(128, 8, 768, 0, True, 1), 2048, 1)
    cold, warm = (
        float(experts_us(L40S, routed, FORMATS["bfloat16"], TOP, share)[0, 0])
        for share in (1.0, 0.0)
    )
    assert cold > 1.5 * warm


def test_quantising_costs_a_block_for_each_token_however_few_inputs_it_has() -> None:
    def token_us(inputs: int) -> float:
        few, many = (Gemms.of(tokens, [(64, inputs)], "fp8") for tokens in (8192, 16384))
        return float((gemm_us(H100, many, TOP) - gemm_us(H100, few, TOP))[0, 0]) / 8192

    block_us = H100.gemm["fp8"].token_clocks / TOP[0]
    assert block_us < token_us(32) < 1.3 * block_us
    assert token_us(512) < 1.5 * token_us(32)  # of 16 times the inputs
    assert token_us(16384) > 3 * token_us(32)


def test_absorbed_heads_cost_the_width_of_the_latent_cache() -> None:
    def of_heads_us(decodes: tuple[float, float], chunk: tuple[float, float, float]) -> float:
        few, many = (
            latent_us(H100, LatentAttention(h, 1536, 512, 128, 64, 128), "bfloat16", decodes,
                      chunk, TOP)[0]
            for h in (16, 128)
        )  # fmt: skip
        return float(many - few)

    # As many tokens: decodes, and prompts of one token each.
    decoded, expanded = of_heads_us((1024, 0), (0, 0, 0)), of_heads_us((0, 0), (1024, 1, 0))
    assert decoded > 2 * expanded


NET = GatedDelta(16, 32, 128, 128)


def test_a_prompt_moves_its_state_however_short_it_is() -> None:
    """Measured: eight prompts of a token take twice as long as one (H100, 32 heads)."""
    one, eight = (float(delta_us(H100, NET, 0, n, 1, TOP)[0]) for n in (1, 8))
    state_us = state_bytes(NET, 7 * H100.delta.prompt_states) / 2.88e6  # type: ignore[union-attr]
    assert eight - one > 0.9 * state_us
    assert 1.7 < eight / one < 2.6
    assert float(delta_us(H100, NET, 0, 1, 0, TOP)[0]) == 0.0  # no prompt, no state


def test_kernels_that_hand_tensors_on_spill_beyond_l2() -> None:
    """Measured: from 2048 tokens on an L40S (32 heads) each costs four times what it did before."""
    few, more, many = (float(delta_us(L40S, NET, 0, 1, n, L40S_TOP)[0]) for n in (256, 512, 8192))
    first, last = (more - few) / 256, (many - more) / 7680
    assert 2.5 < last / first < 6
    fused = [float(delta_us(H100, NET, 0, 1, n, TOP)[0]) for n in (256, 512, 8192)]
    assert (fused[2] - fused[1]) / 7680 == pytest.approx((fused[1] - fused[0]) / 256, rel=1e-6)


def test_a_large_l2_keeps_a_gemms_inputs_and_outputs() -> None:
    """L40S: 2048 tokens through a small matrix are in L2 before and after it."""
    gemms = Gemms.of(2048, [(1024, 1024)], "bfloat16")
    memory = replace(L40S.memory, l2_activations=0.0)
    without = replace(L40S, memory=memory)
    with_us, without_us = (float(gemm_us(d, gemms, L40S_TOP)[0, 0]) for d in (L40S, without))
    assert with_us < 0.95 * without_us
    few = Gemms.of(8, [(8192, 8192)], "bfloat16")  # weights are read whatever L2 holds
    assert float(gemm_us(L40S, few, L40S_TOP)[0, 0]) > 0.99 * 8192**2 * 2 / 0.6834e6
