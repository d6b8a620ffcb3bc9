"""FP8 as the torch backend multiplies it: by its definition, and a stage near its own in 16 bit."""

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from beam_runtime.types import StepShape  # noqa: E402
from beamprof.backends import torch_buildable  # noqa: E402
from beamprof.backends.torch_check import check_chunks  # noqa: E402
from beamprof.backends.torch_linear import Fp8Weight, grouped, in_fp8, linear  # noqa: E402
from beamprof.backends.torch_pass import Stage  # noqa: E402
from beamprof.errors import BackendError  # noqa: E402
from beamprof.models.layers import Attention, Layer, MoeMlp  # noqa: E402
from beamprof.models.precision import Precision  # noqa: E402
from beamprof.models.shape import ModelShape  # noqa: E402

FP8 = Precision("fp8", "fp8", "fp8", "bfloat16", "fp8")
CPU = torch.device("cpu")
DENSE = ModelShape(
    name="tiny", architecture="llama", hidden_size=64, intermediate_size=96, layers=3, heads=4,
    kv_heads=2, head_dim=16, vocab_size=32, max_model_len=256, dtype="bfloat16", quantised=FP8,
)  # fmt: skip
EXPERTS = dataclasses.replace(
    DENSE, architecture="qwen3_moe", qk_norm=True,
    special_layers=(Layer(Attention(4, 2, 16, 0), MoeMlp(5, 2, 48)),) * 3,
)  # fmt: skip


def random(*shape: int) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.bfloat16)


def plain(weight: Fp8Weight) -> "torch.Tensor":
    """The weights as they are after rounding, in 64 bit."""
    return weight.values.double() * weight.scales.double()[..., None]


def rounded(rows: "torch.Tensor") -> "torch.Tensor":
    """Inputs as FP8 has them: each token by a scale of its own."""
    return plain(in_fp8(rows))


def test_rounding_keeps_each_output_to_a_sixteenth() -> None:
    """e4m3 has three bits of mantissa; an output of small weights loses no more than another."""
    weights = random(5, 64) * torch.tensor([1e-4, 1.0, 1e3, 1e-2, 10.0])[:, None].bfloat16()
    error = (plain(in_fp8(weights)) - weights.double()).abs()
    largest = weights.double().abs().amax(dim=1, keepdim=True)
    assert bool((error <= weights.double().abs() / 16 + largest * 2**-9 / 448 * 2).all())


def test_a_product_is_its_definition() -> None:
    rows, weight, bias = random(7, 64), in_fp8(random(48, 64)), random(48)
    expected = rounded(rows) @ plain(weight).T
    torch.testing.assert_close(linear(rows, weight).double(), expected, rtol=1e-2, atol=0.05)
    with_bias = linear(rows, weight, bias).double()
    torch.testing.assert_close(with_bias, expected + bias.double(), rtol=1e-2, atol=0.1)


def test_a_token_of_zeros_stays_one() -> None:
    rows = torch.zeros(2, 64, dtype=torch.bfloat16)
    assert not linear(rows, in_fp8(random(48, 64))).any()


def test_each_expert_multiplies_its_own_rows() -> None:
    rows, weights = random(9, 64), in_fp8(random(4, 48, 64))
    out = grouped(rows, weights, torch.tensor([2, 2, 7, 9]))
    for expert, run in ((0, slice(0, 2)), (2, slice(2, 7)), (3, slice(7, 9))):
        alone = linear(rows[run], Fp8Weight(weights.values[expert], weights.scales[expert]))
        torch.testing.assert_close(out[run], alone)


@pytest.mark.parametrize("model", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_a_stage_is_near_its_own_in_16_bit(model: ModelShape) -> None:
    """With the same, rounded weights only inputs differ; a lost scale would be far off."""
    stage = Stage(model, model.shard(1, 1), "cpu")
    whole = dataclasses.replace(model, quantised=None)
    other = Stage(whole, whole.shard(1, 1), "cpu")
    for mine, theirs in zip(stage.layers, range(len(other.layers)), strict=True):
        fields = {name: getattr(mine, name) for name in ("qkv", "out")}
        mlp = {name: getattr(mine.mlp, name) for name in ("gate_up", "down")}
        assert all(isinstance(one, Fp8Weight) for one in (*fields.values(), *mlp.values()))
        other.layers[theirs] = dataclasses.replace(
            mine,
            mlp=dataclasses.replace(
                mine.mlp, **{name: plain(one).bfloat16() for name, one in mlp.items()}
            ),
            **{name: plain(one).bfloat16() for name, one in fields.items()},
        )
    with torch.inference_mode():
        passes = [one.ready(StepShape(12)) for one in (stage, other)]
        passes[1].hidden.copy_(passes[0].hidden)
        fp8, sixteen = (one.run().double() - one.hidden.double() for one in passes)
    error = float((fp8 - sixteen).norm() / sixteen.norm())
    # A token near two experts may choose another.
    assert 0.001 < error < (0.1 if model is DENSE else 0.3)


@pytest.mark.parametrize("model", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_a_stage_passes_its_own_check(model: ModelShape) -> None:
    check_chunks(Stage(model, model.shard(1, 1), "cpu"))


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        (dataclasses.replace(FP8, mlp="int4", method="awq"), "mlp weights in int4 (awq)"),
        (dataclasses.replace(FP8, attention="fp8_block"), "attention weights in fp8_block (fp8)"),
        (dataclasses.replace(FP8, kv="fp8"), "a KV cache in fp8"),
    ],
)
def test_what_is_not_built_is_refused_by_name(precision: Precision, why: str) -> None:
    model = dataclasses.replace(DENSE, quantised=precision)
    with pytest.raises(BackendError) as caught:
        torch_buildable.buildable(model, model.shard(1, 1), CPU)
    assert why in caught.value.message
    assert "--backend vllm" in (caught.value.hint or "")


def test_sizes_that_no_kernel_takes_are_refused() -> None:
    model = dataclasses.replace(DENSE, intermediate_size=40)
    with pytest.raises(BackendError, match="16 must divide"):
        torch_buildable.buildable(model, model.shard(1, 1), CPU)


@pytest.mark.parametrize(
    ("model", "capability", "builds"),
    [(DENSE, (8, 0), False), (DENSE, (8, 9), True), (EXPERTS, (8, 9), False),
     (EXPERTS, (9, 0), True)],
)  # fmt: skip
def test_a_gpu_without_fp8_is_told_before_anything_is_built(
    model: ModelShape, capability: tuple[int, int], builds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    gpu = torch.device("cuda")
    if builds:
        assert len(torch_buildable.buildable(model, model.shard(1, 1), gpu)) == 3
        return
    with pytest.raises(BackendError, match=r"does not multiply .*in FP8"):
        torch_buildable.buildable(model, model.shard(1, 1), gpu)
