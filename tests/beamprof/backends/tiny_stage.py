"""A stage that any machine can hold and measure in a moment: what tests of it start from."""

from pathlib import Path

import pytest

from beam_runtime.table.schema import RowKind
from beamprof.backends.cell import Cell
from beamprof.backends.pass_timing import TimingRules
from beamprof.backends.torch_stage import TorchBackend
from beamprof.models.shape import ModelShape

TINY = ModelShape(
    name="tiny",
    architecture="llama",
    hidden_size=256,
    intermediate_size=512,
    layers=4,
    heads=8,
    kv_heads=4,
    head_dim=32,
    vocab_size=100,
    max_model_len=4096,
    dtype="float32",
)
QUICK = TimingRules(
    window_s=0.02, longest_s=0.02, discard_s=0.0, warmup_s=0.0, latency_target=1, energy_target=1
)


def chunk(tokens: int = 8, clock_mhz: int = 0) -> Cell:
    return Cell(RowKind.FORWARD, clock_mhz, prefill_tokens=tokens)


def cpu_backend(tmp_path: Path, **given: object) -> TorchBackend:
    """On this CPU, for real; ``given`` is what the backend is constructed with."""
    pytest.importorskip("torch", reason="needs torch")
    settings = {"place": "cpu", "rules": QUICK, "assume_power_w": 65.0, "rapl_root": tmp_path}
    model = given.pop("model", TINY)
    tp = given.pop("tp", 1)
    assert isinstance(model, ModelShape)
    assert isinstance(tp, int)
    return TorchBackend(model, model.shard(tp, 1), **(settings | given))  # type: ignore[arg-type]
