"""From a table's rows to StepCost's arrays: one weighted least-squares fit per clock.

A feature that the table's cells cannot tell apart from the linear part (an imported table
knows no prefill over earlier context) is not fitted but derived, and every step that needs it
counts as extrapolated.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.staircase import find_stairs, with_feet, with_foot_edges
from beam_runtime.types import StepShape, chunk_pairs

FloatArray = NDArray[np.float64]
RowArrays = dict[str, NDArray[Any]]

FEATURES: tuple[str, ...] = (
    "prefill_pairs",  # (query, key) pairs of all chunks: attention's FLOPs
    "prefill_context_tokens",  # KV cache that the chunks read
    "decode_context_tokens",  # KV cache that the decodes read
    "decode_requests",
    "decode_only",  # 1 where no prefill is present: other kernels and CUDA graphs run
    "mixed",  # 1 where chunk and decodes are together: both kinds of kernel run
)

# Indicators of which kernels run; these may be negative, everything else costs.
_EITHER_SIGN = (FEATURES.index("decode_only"), FEATURES.index("mixed"))
SHAPE_FIELDS = (
    "prefill_tokens",
    "prefill_context_tokens",
    "decode_requests",
    "decode_context_tokens",
)

# FlashAttention runs at about half the marginal rate of the GEMMs beside it on an A100:
# 114 against 231 TFLOP/s for chunks of 512 over contexts of 1k to 3k, Llama-3 70B, TP2
# (Vidur's profiles of MLP and attention; ../shared/data/a100-operators).
ATTENTION_TO_GEMM_RATE = 0.5
# How far the last edge reaches beyond the largest measured step.
BEYOND = 8.0


@dataclass(frozen=True, slots=True)
class Surface:
    """One quantity at every fitted clock: linear (M, N) at the edges, attention (M, F)."""

    linear: FloatArray
    attention: FloatArray


@dataclass(frozen=True, eq=False)
class Design:
    """What the fitted cells are made of: edges (N,), hot (cells, N), features (cells, F)."""

    edges: FloatArray
    hot: FloatArray
    features: FloatArray


@dataclass(frozen=True, eq=False)
class CostFit:
    """What a table says, and where it stops saying anything.

    Attributes:
        clocks_mhz: (M,) fitted clocks, ascending.
        edges_tokens: (N,) token counts of the linear part, ascending: the measured ones, the feet
            of stairs that lie between them, and a last one that continues beyond.
        measured_tokens: the measured ones alone.
        latency: milliseconds; energy: joules.
        known: features that the cells determine; the others are derived.
        largest: the largest measured value of tokens and of every feature.
        cells: (clock, C, context, B, sum of contexts) of every row.
    """

    clocks_mhz: NDArray[np.int64]
    edges_tokens: FloatArray
    measured_tokens: NDArray[np.int64]
    latency: Surface
    energy: Surface
    known: frozenset[str]
    largest: dict[str, float]
    cells: frozenset[tuple[int, int, int, int, int]]

    def outside(self, step: StepShape) -> str:
        """Why the step is outside what the table covers, in words; empty when it is inside."""
        asked = {
            "tokens": step.tokens,
            "prefill_tokens": step.prefill_tokens,
            "prefill_context_tokens": step.prefill_context_tokens,
            "decode_requests": step.decode_requests,
            "decode_context_tokens": step.decode_context_tokens,
        }
        for name, value in asked.items():
            if value > self.largest[name]:
                return f"{name} {value} is over the largest measured, {self.largest[name]:.0f}"
        if step.tokens < self.edges_tokens[0]:
            return (
                f"tokens {step.tokens} is under the smallest measured, {self.edges_tokens[0]:.0f}"
            )
        return ""

    def measured(self, step: StepShape, clock_mhz: int) -> bool:
        """Whether the table holds a row for this very pass."""
        key = (
            clock_mhz,
            step.prefill_tokens,
            step.prefill_context_tokens,
            step.decode_requests,
            step.decode_context_tokens,
        )
        single = step.prefill_pairs == chunk_pairs(step.prefill_tokens, step.prefill_context_tokens)
        return single and key in self.cells


def fit_table(table: PerfTable) -> CostFit:
    """Fit latency and energy of a table's forward rows.

    Raises:
        TableError: fewer than two token counts, or clocks that share none: nothing can be told.
    """
    rows = table.rows(RowKind.FORWARD)
    kept = ~held_out(rows)
    keys = np.stack([rows[name][kept] for name in SHAPE_FIELDS], axis=1)
    cells, at_cell = np.unique(keys, axis=0, return_inverse=True)
    clocks, at_clock = np.unique(rows["clock_mhz"][kept], return_inverse=True)
    tokens = cells[:, 0] + cells[:, 2]
    edges = np.unique(tokens).astype(float)
    if len(edges) < 2:
        raise TableError(
            f"the table measures {len(edges)} token count, expected 2 or more",
            hint="profile more batch and chunk sizes: beam sweep show a100-llama3-70b lists them",
        )
    design = Design(
        edges=edges,
        # One-hot: every fitted cell lies on an edge, for its token count made it one.
        hot=(tokens[:, None] == edges[None, :]).astype(float),
        features=_feature_columns(cells),
    )
    known = _identifiable(design)
    surfaces = {}
    for field in ("latency_ms", "energy_j"):
        values = np.full((len(clocks), len(cells)), np.nan)
        values[at_clock, at_cell] = rows[field][kept]
        fits = [_fit_clock(design, known, at_one_clock) for at_one_clock in _filled(values)]
        linear = np.stack([fit[0] for fit in fits])
        attention = np.stack([fit[1] for fit in fits])
        _derive_unknown(attention, linear, design, known, table)
        surfaces[field] = Surface(linear, attention)
    stairs = find_stairs(edges, surfaces["latency_ms"].linear.mean(axis=0))
    steps = {
        field: Surface(with_feet(surface.linear, edges, stairs), surface.attention)
        for field, surface in surfaces.items()
    }
    edges = with_foot_edges(edges, stairs)
    return CostFit(
        clocks_mhz=clocks,
        edges_tokens=np.append(edges, edges[-1] * BEYOND),
        measured_tokens=np.unique(tokens),
        latency=_continued(steps["latency_ms"], edges),
        energy=_continued(steps["energy_j"], edges),
        known=frozenset(FEATURES[f] for f in known),
        largest=_largest(rows),
        cells=frozenset(
            zip(*(rows[name].tolist() for name in ("clock_mhz", *SHAPE_FIELDS)), strict=True)
        ),
    )


def held_out(rows: RowArrays) -> NDArray[np.bool_]:
    """Mixed cells off the measured edges: they would need an edge of their own to be fitted.

    A plan measures a few such cells on purpose and keeps them out of the fit to state its error.
    In a table whose pure cells do not reach its largest step, as imported ones, there is no such
    luxury: all rows are fitted and this is False everywhere.
    """
    mixed = (rows["prefill_tokens"] > 0) & (rows["decode_requests"] > 0)
    tokens = _tokens(rows)
    if not mixed.any() or mixed.all() or tokens[~mixed].max() < tokens[mixed].max():
        return np.zeros(len(mixed), dtype=bool)
    return mixed & ~np.isin(tokens, tokens[~mixed])


def _tokens(rows: RowArrays) -> NDArray[np.int64]:
    total: NDArray[np.int64] = rows["prefill_tokens"] + rows["decode_requests"]
    return total


def _feature_columns(cells: NDArray[np.int64]) -> FloatArray:
    """(cells, F) features of (C, context, B, sum of contexts); see cost.features for one step."""
    chunk, context, requests, decode_context = cells.T
    return np.stack(
        [
            chunk * (context + (chunk + 1) / 2),
            context,
            decode_context,
            requests,
            chunk == 0,
            (chunk > 0) & (requests > 0),
        ],
        axis=1,
    ).astype(float)


def _identifiable(design: Design) -> list[int]:
    """Features that the cells tell apart from the edges and from each other."""
    basis = design.hot
    known = []
    for f, column in enumerate(design.features.T):
        rest = column - basis @ np.linalg.lstsq(basis, column, rcond=None)[0]
        if np.linalg.norm(rest) > 1e-3 * np.linalg.norm(column):
            known.append(f)
            basis = np.column_stack([basis, column / np.linalg.norm(column)])
    return known


def _filled(values: FloatArray) -> FloatArray:
    """(M, cells); a hole takes the nearest clock's value, scaled as the other cells compare."""
    filled = values.copy()
    for m, n in np.argwhere(np.isnan(values)):
        donors = np.flatnonzero(~np.isnan(values[:, n]))
        donor = donors[np.argmin(np.abs(donors - m))]
        shared = ~np.isnan(values[m]) & ~np.isnan(values[donor])
        if not shared.any():
            raise TableError(
                "the table's clocks have no cell in common",
                hint="profile the same batch and chunk sizes at every clock",
            )
        filled[m, n] = values[donor, n] * np.mean(values[m, shared] / values[donor, shared])
    return filled


def _fit_clock(
    design: Design, known: list[int], values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Relative least squares over the cells; none but the indicators may give anything back."""
    edge_count = len(design.edges)
    active = list(known)
    while True:
        columns = np.column_stack([design.hot, design.features[:, active]]) / values[:, None]
        # Columns of unit length: pairs count in millions, requests in tens.
        scale: FloatArray = np.linalg.norm(columns, axis=0)
        effects = np.linalg.lstsq(columns / scale, np.ones(len(values)), rcond=None)[0]
        negative = [
            i for i, f in enumerate(active) if f not in _EITHER_SIGN and effects[edge_count + i] < 0
        ]
        if not negative:
            break
        del active[min(negative, key=lambda i: float(effects[edge_count + i]))]
    solution = effects / scale
    attention = np.zeros(len(FEATURES))
    attention[active] = solution[edge_count:]
    return solution[:edge_count], attention


def _continued(surface: Surface, edges: FloatArray) -> Surface:
    """Append the virtual edge: on at the mean slope of the upper half of the measured range."""
    linear = surface.linear
    beyond = edges[-1] * (BEYOND - 1)
    last = linear[:, -1] + _upper_slope(linear, edges) * beyond
    return Surface(np.column_stack([linear, last]), surface.attention)


def _upper_slope(linear: FloatArray, edges: FloatArray) -> FloatArray:
    middle = int(np.argmin(np.abs(edges[:-1] - edges[-1] / 2)))
    rise = np.maximum(linear[:, -1] - linear[:, middle], 0.0)
    slope: FloatArray = rise / (edges[-1] - edges[middle])
    return slope


def _derive_unknown(
    attention: FloatArray,
    linear: FloatArray,
    design: Design,
    known: list[int],
    table: PerfTable,
) -> None:
    """Chunk attention that the cells do not show, from the GEMMs' cost and the model's shape.

    What the edges already hold of it, for the chunks they were measured with, is taken out there,
    so that the table's own cells are still reproduced.
    """
    pairs, context, decode_context = (
        FEATURES.index(name)
        for name in ("prefill_pairs", "prefill_context_tokens", "decode_context_tokens")
    )
    if pairs in known or not table.metadata.get("model_shape"):
        return
    pair_to_token_flops = _pair_to_token_flops(table.metadata["model_shape"])
    token_cost = _upper_slope(linear, design.edges)
    attention[:, pairs] = token_cost * pair_to_token_flops / ATTENTION_TO_GEMM_RATE
    if context not in known:
        attention[:, context] = attention[:, decode_context]
    measured_pairs = design.hot.T @ design.features[:, pairs] / design.hot.sum(axis=0)
    linear -= np.outer(attention[:, pairs], measured_pairs)


def _pair_to_token_flops(model_shape: str) -> float:
    """FLOPs of a query-key pair over those of a token's GEMMs. Raises TableError."""
    try:
        shape = json.loads(model_shape)
        kv_share = shape["kv_heads"] / shape["heads"]
        weights = shape["hidden_size"] * (
            2 * shape["heads"] * shape["head_dim"] * (1 + kv_share) + 3 * shape["intermediate_size"]
        )
        flops = 4 * shape["heads"] * shape["head_dim"] / (2 * weights)
        if not 0.0 < flops < float("inf"):
            raise ValueError(f"{flops:g} FLOPs of a pair over those of a token")
    except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TableError(
            "the table's model_shape is no shape of a model, and without it chunks' attention is "
            "not known",
            cause=f"{type(error).__name__}: {error}",
            hint="profile again, or measure chunks over context",
        ) from error
    return float(flops)


def _largest(rows: RowArrays) -> dict[str, float]:
    largest = {"tokens": float(_tokens(rows).max())}
    for name in SHAPE_FIELDS:
        largest[name] = float(rows[name].max())
    return largest
