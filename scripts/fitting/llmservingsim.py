"""LLMServingSim's operators of one GPU as families; folders of several models under one root.

The first model (by name) is fitted, the projections and attention of the others are held out. Of
experts, which one model has, every fifth number of tokens is.
"""

from pathlib import Path

import numpy as np
import polars as pl
from fitting.operators import (
    ATTENTION_CHUNK,
    ATTENTION_DECODE,
    GEMM,
    MOE,
    Rows,
    chunk_cold,
    cold_share,
)

from beamprof.devices.attention import Heads, chunk_us, decode_us
from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, Gemms, gemm_us
from beamprof.devices.moe import Routed, experts_us
from beamprof.devices.routing import TILE_ROWS
from beamprof.models.formats import FORMATS
from beamprof.models.layers import Attention, MoeMlp
from beamprof.models.shape import ModelShape
from beamprof.tables.importers.llmservingsim import profiled_model, read_meta

PROJECTIONS = {"qkv_proj": 0, "o_proj": 1}


def read_models(root: Path) -> list[Rows]:
    """Every family of the models under ``root``."""
    found: dict[str, list[Rows]] = {}
    folders = sorted(path.parent for path in root.glob("*/operators_meta.yaml"))
    for i, folder in enumerate(folders):
        model = profiled_model(folder, read_meta(folder))
        for rows in (*_gemms(folder, model, i > 0), *_attention(folder, model, i > 0),
                     *_experts(folder, model)):  # fmt: skip
            found.setdefault(f"{rows.section} {sorted(rows.constants)}", []).append(rows)
    return [_joined(parts) for parts in found.values()]


def _joined(parts: list[Rows]) -> Rows:
    """Rows of several models as one family."""
    begins = np.cumsum([0, *(rows.measured_us.size for rows in parts)])

    def predict(device: Device, at: np.ndarray) -> Array:
        us = np.zeros(at.size)
        for begin, end, rows in zip(begins, begins[1:], parts, strict=False):
            here = (at >= begin) & (at < end)
            if here.any():
                us[here] = rows.predict(device, at[here] - begin)
        return us

    first = parts[0]
    measured = np.concatenate([rows.measured_us for rows in parts])
    held = np.concatenate([rows.held_out for rows in parts])
    return Rows(first.family, first.section, first.constants, measured, held, predict)


def _top(device: Device) -> Array:
    return np.array([float(device.clocks.max_mhz)])


def _gemms(folder: Path, model: ModelShape, held: bool) -> list[Rows]:
    layer = model.decoder[0]
    sizes = dict(zip(PROJECTIONS, layer.mixer.projections(model.hidden_size), strict=True))
    if not isinstance(layer.mlp, MoeMlp):
        up, down = layer.mlp.projections(model.hidden_size)
        sizes |= {"gate_up_proj": up, "down_proj": down}
    frame = pl.read_csv(folder / "operators_tp1_dense.csv").filter(
        pl.col("layer").is_in(list(sizes))
    )
    tokens = frame["tokens"].to_numpy().astype(float)
    outputs, inputs = np.array([sizes[name] for name in frame["layer"]], dtype=float).T

    def predict(device: Device, at: np.ndarray) -> Array:
        gemms = Gemms(tokens[at], outputs[at], inputs[at], FORMATS["bfloat16"])
        return gemm_us(device, gemms, _top(device))[:, 0]

    us = frame["time_us"].to_numpy()
    return [Rows("GEMM", "gemm.bfloat16", GEMM, us, np.full(us.size, held), predict)]


def _attention(folder: Path, model: ModelShape, held: bool) -> list[Rows]:
    mixer = model.decoder[0].mixer
    assert isinstance(mixer, Attention)
    frame = pl.read_csv(folder / "operators_tp1_attention.csv")
    found = []
    for decodes in (False, True):
        alone = pl.col("prefill_chunk") == 0 if decodes else pl.col("n_decode") == 0
        part = frame.filter(alone)
        chunk, before, requests, each = (
            part[name].to_numpy().astype(float)
            for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        us = part["time_us"].to_numpy()

        def predict(
            device: Device, at: np.ndarray, decodes=decodes, c=(chunk, before, requests, each)
        ):  # type: ignore[no-untyped-def]
            ones = np.ones(at.size)
            heads = Heads(mixer.heads * ones, mixer.kv_heads * ones, mixer.head_dim * ones,
                          np.inf * ones, "bfloat16")  # fmt: skip
            new, k, b, each = (x[at] for x in c)
            if not decodes:
                cold = chunk_cold(device, heads, new)
                return chunk_us(device, heads, ones, new, k, _top(device), cold)[:, 0]
            cold = cold_share(device, heads.cache_bytes(b * each))
            return decode_us(device, heads, b, b * each, _top(device), cold)[:, 0]

        constants = ATTENTION_DECODE if decodes else ATTENTION_CHUNK
        apart = np.full(us.size, held)
        found.append(Rows("attention", "attention.bfloat16", constants, us, apart, predict))
    return found


def _experts(folder: Path, model: ModelShape) -> list[Rows]:
    mlp, file = model.decoder[0].mlp, folder / "operators_tp1_moe.csv"
    if not isinstance(mlp, MoeMlp) or not file.is_file():
        return []
    frame = pl.read_csv(file)
    tokens, active = (
        frame[name].to_numpy().astype(float) for name in ("tokens", "activated_experts")
    )
    rows = tokens * mlp.top_k
    tiles = np.stack([active * np.ceil(rows / active / h) for h in TILE_ROWS], axis=1)
    ones = np.ones_like(rows)

    def predict(device: Device, at: np.ndarray) -> Array:
        size = ones[at]
        routed = Routed(rows[at], active[at], rows[at], tiles[at], model.hidden_size * size,
                        mlp.intermediate_size * size, 2 * size, 0 * size)  # fmt: skip
        return experts_us(device, routed, FORMATS["bfloat16"], _top(device))[:, 0]

    us = frame["time_us"].to_numpy()
    return [Rows("MoE", "moe.bfloat16", MOE, us, np.arange(us.size) % 5 == 0, predict)]
