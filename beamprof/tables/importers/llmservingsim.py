"""Operators that LLMServingSim's profiler measured in vLLM, summed to the passes of one stage.

One folder is one model on one GPU: config.json, operators_meta.yaml, and tables of one layer's
operators in microseconds, operators_tp<T>_<family>.csv or tp<T>/<family>.csv. Families: dense (by
tokens: norms, projections, RoPE, activation), attention (one chunk and equal decodes, by their
contexts), moe (by tokens and experts with work), per_sequence (LM head and sampler, once a pass, by
requests in it). Kernels alone: no launch gaps, no all-reduce.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from beam_runtime.types import Source, StepShape
from beamprof.devices.device import Device, detect_device, resolve_device
from beamprof.devices.gemm import Array
from beamprof.devices.routing import SPREAD, expected_loads
from beamprof.errors import ImportFormatError, ModelShapeError
from beamprof.models.config import read_config
from beamprof.models.layers import Attention, MoeMlp
from beamprof.models.registry import resolve_model
from beamprof.models.shape import ModelShape, StageShape
from beamprof.tables.importers.base import ImportedTable, ImportOverrides
from beamprof.tables.importers.summed import summed_table
from beamprof.unreadable import UNREADABLE, first_line

ORIGIN = "https://github.com/casys-kaist/LLMServingSim, measured operators"
LICENCE = "MIT"
# Operators of a layer: how often each stands in it; those in EITHER are there or experts are.
ALWAYS = {"layernorm": 2, "qkv_proj": 1, "rotary_emb": 1, "o_proj": 1}
SOMETIMES = {"qk_norm": 1}
# Once in a pass, by its tokens.
ONCE = ("embedding", "final_layernorm")
# Once in a pass, by its requests: vLLM takes logits of every request, unfinished prompts too.
PER_SEQUENCE = ("lm_head", "sampler")
EITHER = {"gate_up_proj": 1, "act_fn": 1, "down_proj": 1}
ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
LONGEST_US = 1e6  # of one operator of one layer
CHUNKS = (0, 16, 64, 128, 256, 512, 1024, 2048)
CONTEXTS = (0, 512, 2048, 8192)
DECODES = (0, 1, 4, 8, 16, 32, 64, 128, 256)
DECODE_CONTEXTS = (0, 128, 512, 2048, 8192)


def read(path: Path, overrides: ImportOverrides) -> ImportedTable:
    """Sum a folder's operators.

    Raises:
        ImportFormatError: no such folder, a file, column or operator that is missing, other units,
            a GPU that has no device file.
        ModelShapeError: the model cannot be split by tp and pp, or its config cannot be read.
    """
    if not path.is_dir():
        raise ImportFormatError(
            f"{path} is not a folder", hint="give the folder of one model: config.json, operators_*"
        )
    meta = read_meta(path)
    device = _device(meta, overrides)
    model = resolve_model(overrides.model) if overrides.model else profiled_model(path, meta)
    stage = model.shard(overrides.tp or 1, overrides.pp or 1)
    operators = Operators(path, device, stage)
    columns, told = summed_table(operators, device, model, stage, operators.steps())
    modelled = int((columns["source"] == str(Source.MODELLED)).sum())
    metadata = told | {
        "gpu_name": meta.get("gpu", ""),
        "engine_version": meta.get("vllm_version", ""),
        "allreduce": "none (tp 1)",
        "origin": overrides.origin or ORIGIN,
        "licence": overrides.licence or LICENCE,
    }
    notes = (
        *(() if operators.has_head else ("these operators hold no LM head and no sampler",)),
        f"{modelled} of {len(columns['source'])} rows are modelled: clocks other than "
        f"{device.clocks.max_mhz} MHz and idle power",
        "energy is the device file's power over the imported time; gaps between kernels are not "
        "in the operators",
    )
    return ImportedTable(columns, metadata, dropped_rows=operators.dropped, notes=notes)


def read_meta(folder: Path) -> dict[str, str]:
    """The plain entries of operators_meta.yaml (or meta.yaml); empty without the file."""
    for name in ("operators_meta.yaml", "meta.yaml"):
        if (folder / name).is_file():
            text = (folder / name).read_text("utf-8", errors="replace")
            pairs = re.findall(r"^(\w+): *['\"]?([^'\"\n]+?)['\"]? *$", text, flags=re.MULTILINE)
            return dict(pairs)
    return {}


def _device(meta: dict[str, str], overrides: ImportOverrides) -> Device:
    if overrides.device:
        return resolve_device(overrides.device)
    name = detect_device(meta.get("gpu", ""))
    if name is None:
        raise ImportFormatError(
            f"no device file for {meta.get('gpu') or 'the GPU of these operators'}",
            cause="clocks and power come from it",
            hint="--device NAME, or a device file of your own (docs: a device file)",
        )
    return resolve_device(name)


def profiled_model(folder: Path, meta: Mapping[str, str]) -> ModelShape:
    """The model that a folder's meta file names, or else its config.json."""
    if meta.get("model"):
        try:
            return resolve_model(meta["model"])
        except ModelShapeError:
            if not (folder / "config.json").is_file():
                raise
    return replace(read_config(folder / "config.json"), name=folder.resolve().name)


class Operators:
    """One layer's measured operators, for a stage of equal layers.

    Raises:
        ImportFormatError: what the stage needs is not there, or is not in microseconds.
    """

    def __init__(self, folder: Path, device: Device, stage: StageShape) -> None:
        if len(stage.groups) != 1 or not isinstance(stage.groups[0].layer.mixer, Attention):
            raise ImportFormatError(
                "operators of layers of several kinds, or without softmax, are not summed",
                hint="model it: beam profile --backend modelled",
            )
        if stage.tp > 1:
            raise ImportFormatError(
                f"--tp {stage.tp}: these operators hold no all-reduce",
                hint="import tp 1, or model it: beam profile --backend modelled",
            )
        self.device, self.stage, self.dropped = device, stage, 0
        self.top = np.array([float(device.clocks.max_mhz)])
        self._folder = folder
        layer = stage.groups[0].layer
        dense = self._read("dense", "layer", "tokens")
        names = set(dense["layer"].to_list())
        times = {name: n for name, n in SOMETIMES.items() if name in names} | ALWAYS
        self._experts = layer.mlp if isinstance(layer.mlp, MoeMlp) else None
        if self._experts is None:
            times |= EITHER
        missing = sorted(times.keys() - names)
        if missing:
            raise ImportFormatError(
                f"dense lacks the operator{'s' * (len(missing) > 1)} {', '.join(missing)}",
                cause=f"it has {', '.join(sorted(names))}",
            )
        self._dense = [
            (count, *_curve(dense.filter(pl.col("layer") == name), "tokens"))
            for name, count in times.items()
        ]
        self._once = [
            _curve(dense.filter(pl.col("layer") == name), "tokens")
            for name in ONCE
            if name in names
        ]
        self._per_sequence = self._sequence_curves()
        self._moe = self._read("moe", "tokens", "activated_experts") if self._experts else None
        self._attention = {
            tuple(map(int, row[:4])): float(row[4])
            for row in self._read("attention", *ATTENTION).select(*ATTENTION, "time_us").iter_rows()
        }

    @property
    def has_head(self) -> bool:
        """Whether the LM head is among the operators."""
        return bool(self._per_sequence)

    def _sequence_curves(self) -> list[tuple[Array, Array]]:
        if not any(file.is_file() for file in self._files("per_sequence")):
            return []
        frame = self._read("per_sequence", "layer", "sequences")
        parts = (frame.filter(pl.col("layer") == name) for name in PER_SEQUENCE)
        return [_curve(part, "sequences") for part in parts if len(part)]

    def steps(self) -> tuple[StepShape, ...]:
        """Passes whose attention was measured as it is, and whose tokens are within dense's."""
        longest = min(float(tokens[-1]) for _, tokens, _ in self._dense)
        found = []
        for chunk, before, decodes, context in self._attention:
            listed = chunk in CHUNKS and before in CONTEXTS
            listed &= decodes in DECODES and context in DECODE_CONTEXTS
            alone = not (chunk and decodes) or (before == 0 and context in (0, 512, 2048))
            if listed and alone and 0 < chunk + decodes <= longest:
                found.append(StepShape(chunk, before, decodes, decodes * context))
        return tuple(sorted(set(found), key=lambda s: (s.tokens, s.decode_context_tokens)))

    def pass_us(self, step: StepShape) -> tuple[float, bool]:
        """A pass at the highest clock; all its operators were measured."""
        each = step.decode_context_tokens // max(1, step.decode_requests)
        key = (step.prefill_tokens, step.prefill_context_tokens, step.decode_requests, each)
        layer_us = self._attention[key]
        layer_us += sum(count * np.interp(step.tokens, x, us) for count, x, us in self._dense)
        if self._experts is not None:
            layer_us += self._experts_us(self._experts, step.tokens)
        sequences = step.decode_requests + (step.prefill_tokens > 0)
        once_us = sum(float(np.interp(step.tokens, x, us)) for x, us in self._once)
        once_us += sum(float(np.interp(sequences, x, us)) for x, us in self._per_sequence)
        return float(layer_us) * self.stage.layers + once_us, True

    def _experts_us(self, mlp: MoeMlp, tokens: int) -> float:
        """Between the measured tokens and numbers of experts with work, both linearly.

        Where ``ep`` GPUs share the experts, each has the tokens of all dp groups for its part of
        them: as many rows as ``tokens dp / ep`` tokens of one GPU with all experts.
        """
        assert self._moe is not None
        asked = tokens * self.stage.dp
        active = expected_loads(asked, mlp.experts, mlp.top_k, self.stage.ep, SPREAD)[0]
        tokens = max(1, round(asked / self.stage.ep))
        curves = [
            (n, *_curve(part, "activated_experts"))
            for (n,), part in sorted(self._moe.group_by("tokens"), key=lambda item: item[0])
        ]
        at = [float(np.interp(active, experts, us)) for _, experts, us in curves]
        return float(np.interp(tokens, [float(str(n)) for n, _, _ in curves], at))

    def _files(self, family: str) -> list[Path]:
        """Where a family may lie, in either of the two layouts."""
        tp = self.stage.tp
        flat = self._folder / f"operators_tp{tp}_{family}.csv"
        return [flat, self._folder / f"tp{tp}" / f"{family}.csv"]

    def _read(self, family: str, *columns: str) -> pl.DataFrame:
        files = self._files(family)
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise ImportFormatError(
                f"{self._folder} lacks {files[0].name}",
                cause="a stage of this model needs it",
                hint=f"or {files[1].relative_to(self._folder)}",
            )
        try:
            frame = pl.read_csv(file)
        except UNREADABLE as error:
            raise ImportFormatError(f"{file} cannot be read", cause=first_line(error)) from None
        missing = [name for name in (*columns, "time_us") if name not in frame.columns]
        if missing:
            raise ImportFormatError(
                f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
                cause=f"it has {', '.join(frame.columns)}",
            )
        if not all(frame[name].dtype.is_numeric() for name in (*columns, "time_us")
                   if name != "layer"):  # fmt: skip
            raise ImportFormatError(f"{file} holds text where numbers are expected")
        time = pl.col("time_us")
        kept = frame.filter(time.is_finite() & (time > 0))
        self.dropped += len(frame) - len(kept)
        if not len(kept) or not 1.0 <= float(kept["time_us"].median() or 0) <= LONGEST_US:  # type: ignore[arg-type]
            raise ImportFormatError(
                f"{file}: times of {float(kept['time_us'].median() or 0):.3g} are no microseconds",  # type: ignore[arg-type]
                cause="one operator of one layer takes 1 us to 1 s",
            )
        return kept


def _curve(frame: pl.DataFrame, by: str) -> tuple[Array, Array]:
    """Times against one column, ascending; the median where it was measured twice."""
    merged = frame.group_by(by).agg(pl.col("time_us").median()).sort(by)
    return tuple(merged[name].to_numpy().astype(np.float64) for name in (by, "time_us"))  # type: ignore[return-value]
