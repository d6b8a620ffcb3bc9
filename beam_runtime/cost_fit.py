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
from beam_runtime.schema import RowKind
from beam_runtime.table import PerfTable
from beam_runtime.types import StepShape, chunk_pairs

FloatArray = NDArray[np.float64]
RowArrays = dict[str, NDArray[Any]]

FEATURES: tuple[str, ...] = (
    "prefill_pairs",  # (query, key) pairs of all chunks: attention's FLOPs
    "prefill_context_tokens",  # KV cache that the chunks read
    "decode_context_tokens",  # KV cache that the decodes read
    "decode_requests",
    "decode_only",  # 1 where no prefill is present: other kernels and CUDA graphs run
)

_DECODE_ONLY = FEATURES.index("decode_only")
_CELL_FIELDS = (
    "clock_mhz",
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
class CostFit:
    """What a table says, and where it stops saying anything.

    Attributes:
        clocks_mhz: (M,) fitted clocks, ascending.
        edges_tokens: (N,) token counts of the linear part, ascending; the last is virtual.
        latency: milliseconds; energy: joules.
        known: features that the cells determine; the others are derived.
        largest: the largest measured value of tokens and of every feature.
        cells: (clock, C, context, B, sum of contexts) of every row.
    """

    clocks_mhz: NDArray[np.int64]
    edges_tokens: FloatArray
    latency: Surface
    energy: Surface
    known: frozenset[str]
    largest: dict[str, float]
    cells: frozenset[tuple[int, int, int, int, int]]

    def outside(self, step: StepShape) -> str:
        """Why the step is outside what the table covers, in words; empty when it is inside."""
        asked = {
            "tokens": step.tokens,
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
    fitted = {name: values[kept] for name, values in rows.items()}
    tokens = _tokens(fitted)
    edges = np.unique(tokens).astype(float)
    if len(edges) < 2:
        raise TableError(
            f"the table measures {len(edges)} token count, expected 2 or more",
            hint="profile more batch and chunk sizes: beam sweep show a100-llama3-70b lists them",
        )
    clocks = np.unique(fitted["clock_mhz"])
    known = _identifiable(fitted, edges)
    surfaces = {}
    for field in ("latency_ms", "energy_j"):
        linear = np.full((len(clocks), len(edges)), np.nan)
        attention = np.zeros((len(clocks), len(FEATURES)))
        for m, clock in enumerate(clocks):
            here = {k: v[fitted["clock_mhz"] == clock] for k, v in fitted.items()}
            linear[m], attention[m] = _fit_clock(here, edges, known, here[field])
        linear = _filled(linear)
        _derive_unknown(attention, linear, edges, known, fitted, table)
        surfaces[field] = Surface(_continued(linear, edges), attention)
    return CostFit(
        clocks_mhz=clocks,
        edges_tokens=np.append(edges, edges[-1] * BEYOND),
        latency=surfaces["latency_ms"],
        energy=surfaces["energy_j"],
        known=frozenset(FEATURES[f] for f in known),
        largest=_largest(rows),
        cells=frozenset(zip(*(rows[name].tolist() for name in _CELL_FIELDS), strict=True)),
    )


def held_out(rows: RowArrays) -> NDArray[np.bool_]:
    """Mixed cells (chunk and decodes together), kept out of the fit to state its error.

    In a table whose pure cells do not reach its largest step, as imported ones, there is no such
    luxury: all rows are fitted and this is False everywhere.
    """
    mixed = (rows["prefill_tokens"] > 0) & (rows["decode_requests"] > 0)
    tokens = _tokens(rows)
    if not mixed.any() or mixed.all() or tokens[~mixed].max() < tokens[mixed].max():
        return np.zeros(len(mixed), dtype=bool)
    return mixed


def _tokens(rows: RowArrays) -> NDArray[np.int64]:
    total: NDArray[np.int64] = rows["prefill_tokens"] + rows["decode_requests"]
    return total


def _feature_columns(rows: RowArrays) -> FloatArray:
    """(rows, F) features of table rows; see cost.features for one step."""
    chunk, context = rows["prefill_tokens"], rows["prefill_context_tokens"]
    return np.stack(
        [
            chunk * (context + (chunk + 1) / 2),
            rows["prefill_context_tokens"],
            rows["decode_context_tokens"],
            rows["decode_requests"],
            rows["prefill_tokens"] == 0,
        ],
        axis=1,
    ).astype(float)


def _edge_columns(tokens: NDArray[np.int64], edges: FloatArray) -> FloatArray:
    """(rows, N) one-hot: every fitted row lies on an edge, for its token count made it one."""
    hot: FloatArray = (tokens[:, None] == edges[None, :]).astype(float)
    return hot


def _identifiable(rows: RowArrays, edges: FloatArray) -> list[int]:
    """Features that the cells tell apart from the edges and from each other."""
    basis = _edge_columns(_tokens(rows), edges)
    features = _feature_columns(rows)
    known = []
    for f in range(features.shape[1]):
        column = features[:, f]
        rest = column - basis @ np.linalg.lstsq(basis, column, rcond=None)[0]
        if np.linalg.norm(rest) > 1e-3 * np.linalg.norm(column):
            known.append(f)
            basis = np.column_stack([basis, column / np.linalg.norm(column)])
    return known


def _fit_clock(
    rows: RowArrays, edges: FloatArray, known: list[int], values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Relative least squares; no feature may give time or energy back."""
    present = np.isin(edges, _tokens(rows))
    hot = _edge_columns(_tokens(rows), edges[present])
    features = _feature_columns(rows)
    weight = 1.0 / values
    active = list(known)
    while True:
        design = np.column_stack([hot, features[:, active]]) * weight[:, None]
        # Columns of unit length: pairs count in millions, requests in tens.
        scale: FloatArray = np.linalg.norm(design, axis=0)
        effects = np.linalg.lstsq(design / scale, np.ones(len(values)), rcond=None)[0]
        solution = effects / scale
        # decode_only may be negative: CUDA graphs make decode steps cheaper than prefill ones.
        negative = [
            hot.shape[1] + i
            for i, f in enumerate(active)
            if f != _DECODE_ONLY and effects[hot.shape[1] + i] < 0
        ]
        if not negative:
            break
        worst = min(negative, key=lambda column: float(effects[column]))
        del active[worst - hot.shape[1]]
    linear = np.full(len(edges), np.nan)
    linear[present] = solution[: hot.shape[1]]
    attention = np.zeros(len(FEATURES))
    attention[active] = solution[hot.shape[1] :]
    return linear, attention


def _filled(linear: FloatArray) -> FloatArray:
    """Holes take the nearest clock's value, scaled by how the two clocks' other edges compare."""
    filled = linear.copy()
    for m, n in np.argwhere(np.isnan(linear)):
        donors = np.flatnonzero(~np.isnan(linear[:, n]))
        donor = donors[np.argmin(np.abs(donors - m))]
        shared = ~np.isnan(linear[m]) & ~np.isnan(linear[donor])
        if not shared.any():
            raise TableError(
                "the table's clocks have no token count in common",
                hint="profile the same batch and chunk sizes at every clock",
            )
        filled[m, n] = linear[donor, n] * np.mean(linear[m, shared] / linear[donor, shared])
    return filled


def _continued(linear: FloatArray, edges: FloatArray) -> FloatArray:
    """Append the virtual edge: on at the mean slope of the upper half of the measured range."""
    beyond = edges[-1] * (BEYOND - 1)
    return np.column_stack([linear, linear[:, -1] + _upper_slope(linear, edges) * beyond])


def _upper_slope(linear: FloatArray, edges: FloatArray) -> FloatArray:
    middle = int(np.argmin(np.abs(edges[:-1] - edges[-1] / 2)))
    rise = np.maximum(linear[:, -1] - linear[:, middle], 0.0)
    slope: FloatArray = rise / (edges[-1] - edges[middle])
    return slope


def _derive_unknown(
    attention: FloatArray,
    linear: FloatArray,
    edges: FloatArray,
    known: list[int],
    rows: RowArrays,
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
    shape = json.loads(table.metadata["model_shape"])
    kv_share = shape["kv_heads"] / shape["heads"]
    weights = shape["hidden_size"] * (
        2 * shape["heads"] * shape["head_dim"] * (1 + kv_share) + 3 * shape["intermediate_size"]
    )
    pair_to_token_flops = 4 * shape["heads"] * shape["head_dim"] / (2 * weights)
    attention[:, pairs] = _upper_slope(linear, edges) * pair_to_token_flops / ATTENTION_TO_GEMM_RATE
    if context not in known:
        attention[:, context] = attention[:, decode_context]
    measured_pairs = _feature_columns(rows)[:, pairs]
    hot = _edge_columns(_tokens(rows), edges)
    linear -= np.outer(attention[:, pairs], hot.T @ measured_pairs / hot.sum(axis=0))


def _largest(rows: RowArrays) -> dict[str, float]:
    largest = {"tokens": float(_tokens(rows).max())}
    for name in _CELL_FIELDS[2:]:
        largest[name] = float(rows[name].max())
    return largest
