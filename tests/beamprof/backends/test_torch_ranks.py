"""A stage of two ranks under torchrun: they compute what one would, and measure together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_stage import cpu_backend

from beamprof.errors import BackendError

TWO_RANKS = """
import json, sys
from pathlib import Path

import torch
import torch.distributed as dist

from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape
from beamprof.backends.torch_layer import LayerWeights
from beamprof.backends.torch_pass import Stage
from beamprof.backends.torch_stage import TorchBackend
from beamprof.backends.pass_timing import TimingRules
from beamprof.backends.torch_experts import DenseWeights
from beamprof.backends.cell import Cell
from beamprof.errors import BackendError
from beamprof.models.shape import ModelShape

model = ModelShape("tiny", "qwen2", 64, 96, 2, 4, 2, 16, 100, 4096, dtype="float32", qkv_bias=True)
rules = TimingRules(0.05, 0.05, 0.0, 0.0, latency_target=1, energy_target=1)
nowhere = Path(sys.argv[1]) / "no-rapl"
backend = TorchBackend(
    model, model.shard(2, 1), place="cpu", rules=rules, assume_power_w=65.0, rapl_root=nowhere
)
metadata = backend.open()
ranks = backend._ranks


def share(layer, rank):
    q, k, v = layer.qkv.split((64, 32, 32))
    bq, bk, bv = layer.qkv_bias.split((64, 32, 32))
    gate, up = layer.mlp.gate_up.chunk(2)
    half = lambda tensor: tensor.chunk(2)[rank]
    return LayerWeights(
        qkv=torch.cat((half(q), half(k), half(v))),
        qkv_bias=torch.cat((half(bq), half(bk), half(bv))),
        q_norm=None, k_norm=None,
        out=layer.out.chunk(2, dim=1)[rank].contiguous(),
        mlp=DenseWeights(
            torch.cat((half(gate), half(up))), layer.mlp.down.chunk(2, dim=1)[rank].contiguous()
        ),
        attention_norm=layer.attention_norm, mlp_norm=layer.mlp_norm,
    )


# Two shards with their all-reduces give what the whole stage gives.
whole = Stage(model, model.shard(1, 1), "cpu", seed=7)
shard = Stage(model, model.shard(2, 1), "cpu", reduce=ranks.reduce)
shard.layers = [share(layer, ranks.rank) for layer in whole.layers]
with torch.inference_mode():
    one, two = whole.ready(StepShape(12)), shard.ready(StepShape(12))
    two.hidden.copy_(one.hidden)
    difference = float((one.run() - two.run()).abs().max())

found = {"difference": difference, "metadata": dict(metadata)}
if backend.follows:
    backend.follow()
else:
    rows = [
        backend.run(Cell(RowKind.FORWARD, 0, 8, 16)),
        backend.run(Cell(RowKind.FORWARD, 0, 0, 0, 4, 40)),
    ]
    found["rows"] = [[row.latency_ms, row.energy_j, row.passes] for row in rows]
    try:
        backend.run(Cell(RowKind.FORWARD, 0, 0, 0, 1, 10**12))
    except BackendError as error:
        found["too large"] = error.message
    found["after"] = backend.run(Cell(RowKind.FORWARD, 0, 8)).passes
backend.close()
Path(sys.argv[1], f"rank{ranks.rank}.json").write_text(json.dumps(found))
"""


def torchrun(tmp_path: Path, ranks: int, program: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch", reason="needs torch")
    script = tmp_path / "program.py"
    script.write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(ranks), str(script), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_ranks_compute_the_whole_and_measure_together(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, TWO_RANKS)
    assert done.returncode == 0, done.stderr[-4000:]
    leader, follower = (json.loads((tmp_path / f"rank{n}.json").read_text()) for n in (0, 1))
    for found in (leader, follower):
        assert found["difference"] < 1e-4
        assert found["metadata"]["allreduce"] == "measured"
    for latency_ms, energy_j, passes in leader["rows"]:
        assert latency_ms > 0
        assert 0.3 * 65e-3 * latency_ms < energy_j < 30 * 65e-3 * latency_ms  # one machine, once
        assert passes >= 3
    assert "need" in leader["too large"]
    assert leader["after"] >= 3


def test_ranks_that_are_not_tp_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BackendError, match="3 ranks") as caught:
        cpu_backend(tmp_path, tp=2).open()
    assert "--nproc-per-node 2" in str(caught.value.hint)
