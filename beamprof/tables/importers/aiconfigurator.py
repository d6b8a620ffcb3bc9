"""Measured operators of aiconfigurator, summed to a stage's passes.

FILE is the folder of one system (``.../latency/h100_sxm``): Parquet files by family, one kernel or
module per row, ``latency`` in milliseconds at default clocks. No row is a pass, and few shapes are
a model's own. So each operator of a pass is the device file's, corrected by what was measured near
it: log(measured / modelled), weighted by distance over the nearest rows of its family and format.

    pass = sum over layers of operator x correction + elementwise kernels (modelled)

Rows at the clock that was in force are ``imported``; where a family has no row near one of the
pass's operators, and at all other clocks, which follow the device file's law, rows are
``modelled``. Energy is the device file's power over that time.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from beam_runtime.types import Source, StepShape
from beamprof.devices.allreduce import message_us
from beamprof.devices.attention import Heads, chunk_us, decode_us
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.forward import layer_gemms, padded_tokens, pass_ms
from beamprof.devices.gemm import Array, Gemms, gemm_us
from beamprof.devices.moe import Routed, experts_us
from beamprof.errors import ImportFormatError
from beamprof.models.formats import FORMATS
from beamprof.models.layers import Attention, MoeMlp
from beamprof.models.registry import resolve_model
from beamprof.models.shape import ModelShape, StageShape
from beamprof.tables.importers.base import ImportedTable, ImportOverrides
from beamprof.tables.importers.summed import summed_table
from beamprof.unreadable import UNREADABLE, first_line

ORIGIN = "https://github.com/ai-dynamo/aiconfigurator, measured operators"
LICENCE = "Apache-2.0"
FORMS = {"bfloat16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4",
         "int4_wo": "int4", "w4a16_mxfp4": "mxfp4"}  # fmt: skip
NEAREST = 8  # rows that a correction is taken from
NEAR = np.log(2.0) * 2  # a row further away than a factor of 4 in all is not near
ALLREDUCE_BYTES = 2.0  # message_size counts 16-bit elements
PLAUSIBLE = (0.05, 20.0)  # measured over modelled, median: beyond, the unit is another
TOKENS = (1, 8, 16, 32, 64, 72, 128, 136, 192, 256, 264, 384, 512, 520, 768, 1024, 1536, 2048)
DECODES = ((1, 1000), (8, 1000), (16, 4000), (32, 1000), (64, 500), (64, 2000), (128, 1000),
           (256, 500), (256, 1000))  # fmt: skip
CHUNKS = ((128, 4096), (256, 1024), (512, 2048), (512, 8192), (2048, 4096))
MIXED = ((192, 64, 1000), (448, 64, 1000), (896, 128, 500))


@dataclass(frozen=True, slots=True)
class Corrections:
    """Measured over modelled of one family and format: log features (R, F), log ratios (R,)."""

    features: Array
    ratios: Array

    def at(self, wanted: Array) -> tuple[Array, Array]:
        """Factors (Q,) for operators with these log features (Q, F), and whether a row is near."""
        factors, near = np.ones(len(wanted)), np.zeros(len(wanted), dtype=bool)
        for i, point in enumerate(wanted):
            distances = np.abs(self.features - point).sum(axis=1)
            nearest = np.argpartition(distances, min(NEAREST, distances.size - 1))[:NEAREST]
            weights = 1.0 / (distances[nearest] + 1e-3) ** 2
            factors[i] = np.exp(weights @ self.ratios[nearest] / weights.sum())
            near[i] = distances[nearest].min() <= NEAR
        return factors, near


def read(path: Path, overrides: ImportOverrides) -> ImportedTable:
    """Sum measured operators to the passes of one stage.

    Raises:
        ImportFormatError: no folder of operators, a family or column that is missing, other units,
            or a model, layout or device that was not named.
        ModelShapeError: the model cannot be split by tp and pp.
    """
    if not overrides.model or not overrides.device:
        raise ImportFormatError(
            "operators do not say whose passes they are to be summed to",
            cause="--model and --device were not both given",
            hint="beam table import FOLDER --format aiconfigurator --model qwen3-32b --tp 2 "
            "--device h100-sxm",
        )
    if not path.is_dir():
        raise ImportFormatError(
            f"{path} is not a folder", hint="give the folder of one system, e.g. latency/h100_sxm"
        )
    device, model = resolve_device(overrides.device), resolve_model(overrides.model)
    stage = model.shard(overrides.tp or 1, overrides.pp or 1)
    operators = Operators(path, device, stage)
    columns, told = summed_table(operators, device, model, stage, steps(model))
    modelled = int((columns["source"] == str(Source.MODELLED)).sum())
    metadata = told | {
        "engine_version": operators.version,
        "allreduce": "imported" if stage.tp > 1 else "none (tp 1)",
        "origin": overrides.origin or ORIGIN,
        "licence": overrides.licence or LICENCE,
    }
    notes = (
        f"{modelled} of {len(columns['source'])} rows are modelled: clocks other than "
        f"{device.clocks.max_mhz} MHz, idle power, and operators that nothing was measured near",
        "energy is the device file's power over the imported time; elementwise kernels are "
        "modelled",
    )
    return ImportedTable(columns, metadata, dropped_rows=operators.dropped, notes=notes)


def steps(model: ModelShape) -> tuple[StepShape, ...]:
    """The passes that are summed: tokens alone, decodes, chunks over context, both together."""
    longest = model.max_model_len
    found = [StepShape(tokens) for tokens in TOKENS if tokens < longest]
    found += [StepShape(0, 0, b, b * k) for b, k in DECODES if k < longest]
    found += [StepShape(c, k) for c, k in CHUNKS if c + k <= longest]
    found += [StepShape(c, 0, b, b * k) for c, b, k in MIXED if k < longest]
    return tuple(found)


class Operators:
    """A system's measured rows, as corrections of the device file's operators.

    Raises:
        ImportFormatError: a family that the stage needs is not there, or is in another unit.
    """

    def __init__(self, folder: Path, device: Device, stage: StageShape) -> None:
        self.device, self.stage = device, stage
        self.top = np.array([float(device.clocks.max_mhz)])
        self.dropped = 0
        self.version = ""
        self._folder = folder
        layers = [group.layer for group in stage.groups]
        for layer in layers:
            if not isinstance(layer.mixer, Attention):
                raise ImportFormatError(
                    "operators of this model's attention are not summed yet",
                    cause=f"it has {type(layer.mixer).__name__}",
                    hint="model it: beam profile --backend modelled",
                )
        gemms = (gemms for layer in layers for gemms in layer_gemms(stage, layer, 1))
        self.gemm = {form: self._gemm(form) for form in {one.form.name for one in gemms}}
        kv = stage.precision.kv
        self.context = self._attention("context_attention_perf", kv)
        self.generation = self._attention("generation_attention_perf", kv)
        with_experts = any(isinstance(layer.mlp, MoeMlp) for layer in layers)
        self.moe = self._moe(stage.precision.experts) if with_experts else None
        self.allreduce = self._allreduce() if stage.tp > 1 else None

    def pass_us(self, step: StepShape) -> tuple[float, bool]:
        """A pass at the top clock, and whether every operator had a measured one near it."""
        device, stage, top = self.device, self.stage, self.top
        total, near = float(pass_ms(device, stage, step, top)[0]) * 1e3, True
        tokens = padded_tokens(step.tokens)
        for group in stage.groups:
            layer, more = group.layer, 0.0
            for gemms in layer_gemms(stage, layer, tokens):
                us = gemm_us(device, gemms, top)[:, 0]
                features = np.log([gemms.tokens, gemms.outputs, gemms.inputs]).T
                factors, found = self.gemm[gemms.form.name].at(features)
                more += float(us @ (factors - 1))
                near &= bool(found.all())
            parts = [self._attention_more(layer.mixer, step)]
            if isinstance(layer.mlp, MoeMlp) and self.moe is not None:
                parts.append(self._moe_more(layer.mlp, tokens))
            if self.allreduce is not None:
                message = tokens * stage.hidden_size * stage.activation_bytes
                one = float(message_us(device, stage.tp, np.array([float(message)]))[0])
                factors, found = self.allreduce.at(np.log([[stage.tp, message]]))
                parts.append((2 * one * float(factors[0] - 1), bool(found[0])))
            total += group.count * (more + sum(part[0] for part in parts))
            near &= all(part[1] for part in parts)
        return total, near

    def _attention_more(self, mixer: object, step: StepShape) -> tuple[float, bool]:
        if not isinstance(mixer, Attention):
            return 0.0, False
        heads = Heads.of(
            mixer.heads,
            mixer.kv_heads,
            mixer.head_dim,
            mixer.window_tokens,
            self.stage.precision.kv,
        )
        sizes = [mixer.heads, mixer.kv_heads, mixer.head_dim, min(heads.window_tokens[0], 1e6)]
        more, near = 0.0, True
        if step.decode_requests:
            each = max(1.0, step.decode_context_tokens / step.decode_requests)
            requests, context = _one(step.decode_requests), _one(step.decode_context_tokens)
            us = float(decode_us(self.device, heads, requests, context, self.top)[0, 0])
            factors, found = self.generation.at(np.log([[*sizes, step.decode_requests, each]]))
            more, near = us * float(factors[0] - 1), bool(found[0])
        if step.prefill_tokens:
            columns3 = (_one(1), _one(step.prefill_tokens), _one(step.prefill_context_tokens))
            us = float(chunk_us(self.device, heads, *columns3, self.top)[0, 0])
            # Measured chunks start their prompts: a later one is like a prompt of as many pairs.
            like = np.sqrt(2 * float(step.prefill_pairs or 1.0))
            factors, found = self.context.at(np.log([[*sizes, 1, like]]))
            more += us * float(factors[0] - 1)
            near &= bool(found[0])
        return more, near

    def _moe_more(self, mlp: MoeMlp, tokens: int) -> tuple[float, bool]:
        assert self.moe is not None
        stage = self.stage
        routed = Routed.of(mlp, stage.hidden_size, tokens * stage.dp)
        form = FORMATS[stage.precision.experts]
        us = float(experts_us(self.device, routed, form, self.top)[0, 0])
        factors, found = self.moe.at(_moe_features(routed, np.array([mlp.local_experts])))
        return us * float(factors[0] - 1), bool(found[0])

    def _rows(self, family: str, *columns: str) -> pl.DataFrame:
        files = sorted(self._folder.glob(f"*/vllm/*/{family}.parquet"))
        if not files:
            raise ImportFormatError(
                f"{self._folder} lacks the family {family}",
                cause="a stage of this model needs it",
                hint="download the whole folder of the system",
            )
        try:
            frame = pl.read_parquet(files[-1])
        except UNREADABLE as error:
            raise ImportFormatError(
                f"{files[-1]} cannot be read", cause=first_line(error)
            ) from None
        missing = [name for name in (*columns, "latency") if name not in frame.columns]
        if missing:
            raise ImportFormatError(
                f"{files[-1]} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
                cause=f"it has {', '.join(frame.columns)}",
            )
        self.version = files[-1].parent.name
        kept = frame.filter(pl.col("latency").is_finite() & (pl.col("latency") > 0))
        self.dropped += len(frame) - len(kept)
        return kept

    def _corrections(
        self, family: str, features: Array, measured_us: Array, us: Array
    ) -> Corrections:
        if not us.size:
            raise ImportFormatError(f"{family} holds no rows of this model's format and shapes")
        ratios = np.log(measured_us / us)
        middle = float(np.exp(np.median(ratios)))
        if not PLAUSIBLE[0] <= middle <= PLAUSIBLE[1]:
            raise ImportFormatError(
                f"{family}: times are {middle:.3g} of what {self.device.name} can do",
                cause="latency must be in milliseconds, of this device",
                hint="check the unit and --device",
            )
        return Corrections(features, ratios)

    def _gemm(self, form: str) -> Corrections:
        names = ("m", "n", "k")
        rows = self._rows("gemm_perf", "gemm_dtype", *names)
        theirs = {ours: name for name, ours in FORMS.items()}.get(form, form)
        rows = rows.filter(pl.col("gemm_dtype") == theirs)
        columns = [rows[name].to_numpy().astype(np.float64) for name in names]
        gemms = Gemms(columns[0], columns[1], columns[2], FORMATS[form])
        us = gemm_us(self.device, gemms, self.top)[:, 0]
        measured = rows["latency"].to_numpy() * 1e3
        return self._corrections(f"gemm_perf {form}", np.log(columns).T, measured, us)

    def _attention(self, family: str, kv: str) -> Corrections:
        names = ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step")
        rows = self._rows(family, "kv_cache_dtype", *names)
        rows = rows.filter(pl.col("kv_cache_dtype") == kv)
        heads, kv_heads, size, batch, isl, step = (
            rows[name].to_numpy().astype(np.float64) for name in names
        )
        window = rows["window_size"].to_numpy() if "window_size" in rows.columns else 0 * heads
        window = np.where(window > 0, window, np.inf)
        columns = Heads(heads, kv_heads, size, window, kv)
        if family.startswith("context"):
            us = chunk_us(self.device, columns, batch, isl, step, self.top)[:, 0]
            length = isl
        else:
            us = decode_us(self.device, columns, batch, batch * step, self.top)[:, 0]
            length = step
        features = np.log([heads, kv_heads, size, np.minimum(window, 1e6), batch, length]).T
        return self._corrections(family, features, rows["latency"].to_numpy() * 1e3, us)

    def _moe(self, form: str) -> Corrections:
        names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
                 "moe_ep_size")  # fmt: skip
        rows = self._rows("moe_perf", "moe_dtype", "distribution", *names)
        theirs = {ours: name for name, ours in FORMS.items()}.get(form, form)
        rows = rows.filter(pl.col("moe_dtype") == theirs)
        layers, local = [], []
        for *sizes, spread in rows.select(*names, "distribution").iter_rows():
            tokens, hidden, width, top_k, experts, tp, ep = map(int, sizes)
            skew = 0.0 if spread == "balanced" else float(spread.rpartition("_")[2])
            layers.append((MoeMlp(experts, top_k, width // tp, 0, True, ep), hidden, tokens, skew))
            local.append(experts // ep)
        if not layers:
            raise ImportFormatError(f"moe_perf holds no rows of {form}")
        routed = Routed.drawn(layers)
        us = experts_us(self.device, routed, FORMATS[form], self.top)[:, 0]
        features = _moe_features(routed, np.array(local))
        return self._corrections("moe_perf", features, rows["latency"].to_numpy() * 1e3, us)

    def _allreduce(self) -> Corrections:
        rows = self._rows("custom_allreduce_perf", "num_gpus", "message_size", "backend")
        rows = rows.filter(pl.col("backend").str.contains("graph"))
        gpus, message = (
            rows[name].to_numpy().astype(np.float64) for name in ("num_gpus", "message_size")
        )
        message = message * ALLREDUCE_BYTES
        us = np.zeros_like(gpus)
        for count in (2, 4, 8):
            us[gpus == count] = message_us(self.device, count, message[gpus == count])
        measured = rows["latency"].to_numpy() * 1e3
        return self._corrections("custom_allreduce_perf", np.log([gpus, message]).T, measured, us)


def _moe_features(routed: Routed, local: Array) -> Array:
    columns = [routed.rows + 1e-3, routed.active + 1e-3, routed.hidden, routed.width, local]
    return np.log(columns).T


def _one(value: float) -> Array:
    return np.array([float(value)])
