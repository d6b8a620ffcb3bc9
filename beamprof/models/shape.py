"""A model's shape: what decides the cost of a forward pass, and nothing else.

Read from a Hugging Face config.json (config.py) or from BEAM's registry (registry.py). Sharding by
tensor, pipeline and expert parallelism yields a StageShape, what one GPU of one stage computes.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from beamprof.errors import ModelShapeError
from beamprof.models.layers import (
    Attention,
    DenseMlp,
    Layer,
    LayerGroup,
    Mixer,
    Mlp,
    MoeMlp,
    NoMlp,
)
from beamprof.models.precision import Precision
from beamprof.models.recurrent import Mamba2

RARE = ("gate_rank", "latent_size", "apart")
FP8_BLOCK = 128  # rows and columns that share a scale; a shard must hold whole blocks


@dataclass(frozen=True, slots=True)
class StageShape:
    """What one GPU of one pipeline stage computes: heads and widths are already divided.

    Attributes:
        tp, pp: GPUs of a stage, and stages. ep: GPUs that share the experts; 1 = experts are cut
            by width. dp: groups of GPUs that attend to requests of their own and share the experts.
        groups: the stage's layers by kind; their order does not matter.
    """

    tp: int
    pp: int
    hidden_size: int
    groups: tuple[LayerGroup, ...]
    precision: Precision = field(default_factory=Precision)
    ep: int = 1
    dp: int = 1

    @property
    def metadata(self) -> dict[str, str]:
        """What a table says of it; ep and dp only where there are several."""
        several = {name: count for name, count in (("ep", self.ep), ("dp", self.dp)) if count > 1}
        layout = {"tp": self.tp, "pp": self.pp, **several, "stage_layers": self.layers}
        layout["stage_weight_bytes"] = round(self.weight_bytes)
        layout["kv_bytes_per_token"] = round(self.kv_bytes_per_token)
        return {name: str(count) for name, count in layout.items()}

    @property
    def layers(self) -> int:
        """Decoder layers of the stage."""
        return sum(group.count for group in self.groups)

    @property
    def weights(self) -> int:
        """Weights of the decoder layers on this GPU (elements); all experts that it holds."""
        return sum(
            _elements(sizes) * group.count
            for group in self.groups
            for sizes in self._projections(group.layer).values()
        )

    @property
    def weight_bytes(self) -> float:
        """Their bytes."""
        return sum(
            self.precision.weight_bytes(tensor, sizes) * group.count
            for group in self.groups
            for tensor, sizes in self._projections(group.layer).items()
        )

    @property
    def kv_bytes_per_token(self) -> float:
        """KV-cache bytes of one token that every layer keeps, over the stage on this GPU."""
        cached = sum(group.layer.mixer.kv_per_token * group.count for group in self.groups)
        return cached * self.precision.kv_bytes

    @property
    def linear_flops_per_token(self) -> float:
        """FLOPs of the stage's GEMMs for one token on this GPU: of the experts, those it uses."""
        total = 0.0
        for group in self.groups:
            sizes = self._projections(group.layer)
            unused = _unused_experts(group.layer, _elements(sizes["experts"]))
            total += group.count * (sum(map(_elements, sizes.values())) - unused)
        return 2.0 * total

    @property
    def attention_flops_per_pair(self) -> float:
        """FLOPs of one (query, key) pair over all heads and layers on this GPU (QK and PV)."""
        return sum(
            4.0 * mixer.heads * mixer.head_dim * group.count
            for group in self.groups
            for mixer in group.layer.mixers
            if isinstance(mixer, Attention)
        )

    @property
    def activation_bytes(self) -> int:
        """Bytes of one element that layers hand to each other."""
        return 4 if self.precision.attention == "float32" else 2

    def only_layer(self) -> Layer:
        """The stage's layer, where all are of one kind.

        Raises:
            ModelShapeError: layers of several kinds.
        """
        if len(self.groups) != 1:
            raise ModelShapeError("this stage holds layers of several kinds")
        return self.groups[0].layer

    def _projections(self, layer: Layer) -> dict[str, tuple[tuple[int, int], ...]]:
        """(outputs, inputs) of one layer's GEMMs on this GPU, by class of tensor."""
        hidden = self.hidden_size
        experts: tuple[tuple[int, int], ...] = ()
        if isinstance(layer.mlp, MoeMlp):
            local = layer.mlp.local_experts
            experts = tuple((local * n, k) for n, k in layer.mlp.expert_projections(hidden))
        return {
            "attention": layer.mixer.projections(hidden),
            "mlp": layer.mlp.projections(hidden),
            "experts": experts,
        }


def _elements(projections: Sequence[tuple[int, int]]) -> int:
    return sum(outputs * inputs for outputs, inputs in projections)


def _unused_experts(layer: Layer, experts: int) -> float:
    if not isinstance(layer.mlp, MoeMlp):
        return 0.0
    return experts * (1 - layer.mlp.top_k / layer.mlp.experts)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The whole model. Sizes are counts of elements; ``dtype`` is what is not quantised.

    The flat numbers are those of config.json (``intermediate_size``: of its dense MLPs).

    Attributes:
        special_layers: every layer in order; empty where all attend to everything and are dense.
        quantised: formats, where a part is not in ``dtype``.
        notes: what a reader should know: towers left out, formats chosen; not part of the shape.
    """

    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    dtype: str = "bfloat16"
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    special_layers: tuple[Layer, ...] = ()
    quantised: Precision | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def decoder(self) -> tuple[Layer, ...]:
        """Every layer, in order."""
        if self.special_layers:
            return self.special_layers
        attention = Attention(self.heads, self.kv_heads, self.head_dim)
        return (Layer(attention, DenseMlp(self.intermediate_size)),) * self.layers

    @property
    def precision(self) -> Precision:
        """Formats by class of tensor; all in ``dtype`` where nothing is quantised."""
        return self.quantised or Precision.of(self.dtype)

    @property
    def kinds(self) -> tuple[LayerGroup, ...]:
        """Its layers, counted by kind."""
        return tuple(LayerGroup(count, layer) for layer, count in Counter(self.decoder).items())

    def to_json(self) -> str:
        """The shape as it stands in a table's metadata: layers counted by kind."""
        fields = dataclasses.asdict(dataclasses.replace(self, special_layers=(), notes=()))
        del fields["notes"], fields["special_layers"], fields["quantised"]
        fields["precision"] = self.precision.to_dict()
        fields["kinds"] = [
            {
                "count": group.count,
                "mixer": type(group.layer.mixer).__name__,
                "mlp": type(group.layer.mlp).__name__,
                **_told(group.layer.mixer),
                **_told(group.layer.mlp),
                **({"parallel": True} if group.layer.parallel else {}),
            }
            for group in self.kinds
        ]
        return json.dumps(fields, sort_keys=True)

    def shard(self, tp: int, pp: int, ep: int = 1, dp: int = 1) -> StageShape:
        """The largest stage's shape on one GPU: the stage that paces a pipeline.

        ``tp`` GPUs of a stage, ``pp`` stages; ``ep`` GPUs share the experts, whole (1: experts are
        cut by width over all tp dp GPUs, as vLLM does without --enable-expert-parallel); ``dp``
        groups of tp GPUs attend to requests of their own and share the experts.

        Raises:
            ModelShapeError: a split that the model does not take; the hint lists what it takes.
        """
        for flag, parts in (("--tp", tp), ("--pp", pp), ("--ep", ep), ("--dp", dp)):
            if parts < 1:
                raise ModelShapeError(
                    f"{flag} must be 1 or more, found {parts}", hint=f"try {flag} 1"
                )
        self._check_ep(tp, ep, dp)
        self._check_tp(tp, ep, dp)
        if pp > self.layers or min(counts := stage_layers(self.layers, pp)) < 1:
            raise ModelShapeError(
                f"--pp {pp} is over {self.name}'s {self.layers} layers",
                cause="every stage needs a layer at least",
                hint=f"--pp can be 1 to {self.layers}",
            )
        stages, begin, decoder = [], 0, self.decoder
        for count in counts:
            layers = Counter(decoder[begin : begin + count])
            groups = tuple(LayerGroup(n, layer.split(tp, ep, dp)) for layer, n in layers.items())
            stages.append(StageShape(tp, pp, self.hidden_size, groups, self.precision, ep, dp))
            begin += count
        return max(stages, key=lambda stage: (stage.layers, stage.weight_bytes))

    def _check_tp(self, tp: int, ep: int, dp: int) -> None:
        if self._splits(tp, ep, dp):
            return
        most = self.heads
        fits = [d for d in range(1, most + 1) if most % d == 0 and self._splits(d, ep, dp)]
        experts = next((k.layer.mlp for k in self.kinds if isinstance(k.layer.mlp, MoeMlp)), None)
        moe = f", experts {experts.intermediate_size} wide" if experts else ""
        mamba = next((m for k in self.kinds for m in k.layer.mixers if isinstance(m, Mamba2)), None)
        moe += f", {mamba.heads} Mamba heads in {mamba.groups} groups" if mamba else ""
        blocks = " in fp8 blocks of 128" if "fp8_block" in self.precision.weights else ""
        raise ModelShapeError(
            f"--tp {tp} does not divide {self.name}: {self.heads} heads, "
            f"{self.kv_heads} KV heads, intermediate size {self.intermediate_size}{moe}{blocks}",
            cause="every GPU of a stage takes an equal share of heads and MLP columns",
            hint=f"--tp can be {', '.join(map(str, fits))}",
        )

    def _splits(self, tp: int, ep: int, dp: int) -> bool:
        if not all(kind.layer.splits(tp, ep, dp) for kind in self.kinds):
            return False
        widths = []
        for kind in self.kinds:
            mlp = kind.layer.split(tp, ep, dp).mlp
            precision = self.precision
            forms = (precision.experts,) if isinstance(mlp, MoeMlp) else precision.formats("mlp", 2)
            if "fp8_block" in forms and not isinstance(mlp, NoMlp):
                widths.append(mlp.intermediate_size)
        return all(width % FP8_BLOCK == 0 for width in widths)

    def _check_ep(self, tp: int, ep: int, dp: int) -> None:
        experts = [k.layer.mlp.experts for k in self.kinds if isinstance(k.layer.mlp, MoeMlp)]
        if ep > 1 and not experts:
            raise ModelShapeError(f"--ep {ep}: {self.name} has no experts", hint="leave --ep out")
        if ep > 1 and experts[0] % ep:
            fits = [d for d in range(1, experts[0] + 1) if experts[0] % d == 0]
            raise ModelShapeError(
                f"--ep {ep} does not divide {self.name}'s {experts[0]} experts",
                hint=f"--ep can be {', '.join(map(str, fits))}",
            )
        if ep not in (1, tp * dp):
            raise ModelShapeError(
                f"--ep {ep}: experts are spread over all {tp * dp} GPUs of a stage, or over none",
                hint=f"--ep 1 or --ep {tp * dp}",
            )
        if dp > 1 and not experts:
            raise ModelShapeError(
                f"--dp {dp} of a model without experts is so many replicas",
                hint="profile one replica, without --dp",
            )


def _told(part: Mixer | Mlp) -> dict[str, object]:
    """A part's numbers; those that few kinds of layers have, only where they say something."""
    fields = dataclasses.asdict(part)
    return {name: value for name, value in fields.items() if value or name not in RARE}


def stage_layers(layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each stage as vLLM splits them: what is left over goes to the last stages but one.

    (vllm.distributed.utils.get_pp_indices: the last stage holds the LM head.)
    """
    counts = [layers // pp] * pp
    for i in range(layers % pp):
        counts[-(i + 2) if pp > 1 else 0] += 1
    return tuple(counts)
