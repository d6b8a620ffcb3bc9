"""Layouts that a device's measurements do not reach are said to be assumed, wherever they go."""

import re
from pathlib import Path

import pytest

from beam_runtime.table.perf_table import PerfTable
from beamprof.advice.modelled import _check_room
from beamprof.cli.main import main
from beamprof.devices.assumed import NODE_GPUS, NOT_MEASURED, assumed
from beamprof.devices.device import device_names, resolve_device
from beamprof.errors import BackendError
from beamprof.models.registry import registry
from beamprof.tables.doubts import doubts


@pytest.mark.parametrize("device", device_names())
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 64])
def test_all_reduces_that_were_measured_over_fewer_gpus(device: str, tp: int) -> None:
    known = resolve_device(device)
    reduce = known.allreduce
    said = assumed(registry()["gpt-oss-120b"].shard(tp, 1), known)
    rows = {1: (), 2: reduce.us_2, 4: reduce.us_4, 8: reduce.us_8}
    borrowed = tp > NODE_GPUS or any(rows[tp] == rows[fewer] for fewer in rows if fewer < tp)
    assert (f"all-reduces over {tp} GPUs (as over" in said) == borrowed
    assert bool(said) == borrowed


def test_groups_that_share_experts_count_together() -> None:
    stage = registry()["gpt-oss-120b"].shard(2, 1, 1, 8)
    assert "all-reduces over 16 GPUs" in assumed(stage, resolve_device("h100"))
    assert "over 2" not in assumed(stage, resolve_device("h100"))


@pytest.mark.parametrize(("device", "tp"), [("h100", "16"), ("a100-sxm4-80gb", "16")])
def test_it_goes_with_the_table(
    device: str, tp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.parquet"
    assert main(["profile", "--model", "llama3-8b", "--device", device, "--tp", tp, "--backend",
                 "modelled", "--max-tokens", "64", "-o", str(out)]) == 0  # fmt: skip
    assert f"{NOT_MEASURED}all-reduces over {tp} GPUs" in capsys.readouterr().err
    assert any(f"all-reduces over {tp} GPUs" in line for line in doubts(PerfTable.load(out)))


@pytest.mark.parametrize("device", ["h100", "a100-sxm4-80gb", "l40s", "b200"])
@pytest.mark.parametrize("model", sorted(registry()))
@pytest.mark.parametrize("pp", [1, 2])
def test_what_is_proposed_for_weights_that_do_not_fit_is_enough_and_in_nodes(
    device: str, model: str, pp: int
) -> None:
    shape, known = registry()[model], resolve_device(device)
    try:
        _check_room(shape, known, 1, pp)
    except BackendError as error:
        found = re.match(r"--tp (\d+)(?: --pp (\d+))? is enough, and leaves", error.hint or "")
        assert found or error.hint == "more GPUs: --tp and --pp"
        if found:
            tp, stages = int(found[1]), int(found[2] or pp)
            assert tp <= NODE_GPUS
            assert stages >= pp
            _check_room(shape, known, tp, stages)
