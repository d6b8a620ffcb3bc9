"""What a table says its server's KV cache holds, and replay plays with that."""

import pytest

from beam_runtime.table.perf_table import PerfTable
from beamprof.advice.modelled import modelled_table
from beamprof.devices.device import resolve_device
from beamprof.replay.options import ReplayOptions
from beamprof.replay.site import NO_LIMIT_BLOCKS, site_of
from beamprof.tables.kv_room import kv_room_of, kv_room_tokens


def table_with(table: PerfTable, **metadata: str) -> PerfTable:
    return PerfTable.from_columns(table.columns, {**table.metadata, **metadata})


TOLD = {
    "device": "h100-sxm",
    "stage_weight_bytes": "62000000000",
    "kv_bytes_per_token": "262144",
    "host_gap_ms": "2",
}


def test_it_is_what_the_weights_leave(small_table: PerfTable) -> None:
    room = resolve_device("h100-sxm").weight_room_bytes
    told = table_with(small_table, **TOLD)
    assert kv_room_of(told) == int((room - 62e9) / 262144)
    assert kv_room_tokens(resolve_device("h100-sxm"), 2 * room, 1.0) == 0


@pytest.mark.parametrize(
    "lacking",
    [
        {"stage_weight_bytes": ""}, {"kv_bytes_per_token": "many"}, {"device": "abacus"},
        {"stage_weight_bytes": "9e99"},
    ],
)  # fmt: skip
def test_nobody_knows_it_of_a_table_that_does_not_say(
    small_table: PerfTable, lacking: dict[str, str]
) -> None:
    assert kv_room_of(table_with(small_table, **{**TOLD, **lacking})) is None


def test_a_replay_plays_with_it_unless_told_otherwise_and_says_so(small_table: PerfTable) -> None:
    told, silent = table_with(small_table, **TOLD), small_table
    options = ReplayOptions(idle_power_w=60.0)
    site, words = site_of(told, told, options)
    assert site.kv_blocks == (kv_room_of(told) or 0) // 16
    assert any("KV blocks that h100-sxm leaves beside the weights" in one for one in words)
    more, words = site_of(told, told, ReplayOptions(idle_power_w=60.0, kv_blocks=100_000))
    assert more.kv_blocks == 100_000
    assert "100,000 KV blocks" in words
    unlimited, words = site_of(silent, silent, options)
    assert unlimited.kv_blocks == NO_LIMIT_BLOCKS
    assert "unlimited KV memory" in words


def test_a_modelled_table_says_it() -> None:
    table = modelled_table("llama3-8b", "h100-sxm")
    kv_bytes = 2 * 8 * 128 * 2 * 32  # keys and values, heads, width, bytes, layers
    assert table.metadata["kv_bytes_per_token"] == str(kv_bytes)
    assert kv_room_of(table) == pytest.approx((0.9 * 80e9 - 14e9) / kv_bytes, rel=0.03)
