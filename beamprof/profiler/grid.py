"""Which passes to measure at one clock: linear part, attention, and held-out mixed ones.

Step time is a staircase in tokens (GEMMs run in tiles and waves: +28 % from 128 to 136 tokens,
+41 % from 256 to 264 on an A100 at TP 2), so the linear part is measured at both feet of each
stair; attention is nearly affine, so a few cells pin it. Every attention cell has a token count
that the linear part measures too: only then can the fit tell the two apart.
"""

from dataclasses import dataclass

from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape
from beamprof.backends.cell import Cell

SMALL_TOKENS = (1, 8, 16, 32, 64, 72)
STAIR_FOOT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class GridLimits:
    """How far the grid reaches, and how fine it is.

    Attributes:
        max_tokens: largest step; max_decodes: largest decode batch.
        max_context: longest context of one request.
        kv_tokens: context tokens that fit into the stage's KV cache together.
        tile_tokens: distance of the stairs: 128 on an A100, 64 elsewhere.
        max_cells: at most so many cells.
    """

    max_tokens: int
    max_decodes: int
    max_context: int
    kv_tokens: int
    tile_tokens: int
    max_cells: int


def grid(limits: GridLimits) -> tuple[StepShape, ...]:
    """The steps to measure at one clock, without repeats.

    Where they are more than ``max_cells``, token counts go first, and those first whose
    neighbours are nearest in ratio; then attention cells; the mixed ones stay.
    """
    mixed = mixed_steps(limits)
    attention = attention_steps(limits)
    room = limits.max_cells - len(mixed)
    attention = attention[: max(room // 2, room - len(linear_tokens(limits)))]
    counts = linear_tokens(limits)
    wanted = {step.tokens for step in attention} | {counts[0], counts[-1]}
    counts = thin(counts, room - len(attention), keep=wanted)
    linear = [StepShape(prefill_tokens=count) for count in counts]
    return tuple(dict.fromkeys([*linear, *attention, *mixed]))


def linear_tokens(limits: GridLimits) -> list[int]:
    """Token counts of the linear part: small ones, then both feet of every stair."""
    counts = {count for count in SMALL_TOKENS if count <= limits.max_tokens}
    for stair in range(limits.tile_tokens, limits.max_tokens + 1, limits.tile_tokens):
        counts |= {stair, stair + STAIR_FOOT_TOKENS}
    return sorted({*(c for c in counts if c <= limits.max_tokens), limits.max_tokens})


def attention_steps(limits: GridLimits) -> list[StepShape]:
    """About fifteen cells, the most telling first: decode batches, chunks over context, both."""
    longest = limits.max_context
    edges = linear_tokens(limits)
    decodes = [  # (requests, context of each)
        (64, longest // 8),
        (1, longest - 1),
        (256, longest // 8),
        (32, longest // 4),
        (64, 16),
        (128, longest // 4),
        (8, longest // 2),
        (16, longest // 4),
        (128, 16),
        (32, 16),
    ]
    chunks = [  # (chunk, context before it)
        (128, longest // 2),
        (512, longest // 4),
        (128, longest),
        (limits.max_tokens, longest),
        (256, longest // 8),
    ]
    steps: list[StepShape] = []
    for (requests, each), chunk in zip(decodes, [*chunks, *[None] * 5], strict=True):
        steps.append(_decode(requests, each, edges, limits))
        if chunk is not None:
            steps.append(_chunk(*chunk, edges, limits))
    # Both kinds of kernel in one pass, on edges of the linear part: these are fitted.
    steps[4:4] = [_both(*both, edges, limits) for both in ((256, 8), (512, 64))]
    return list(dict.fromkeys(steps))


def mixed_steps(limits: GridLimits) -> list[StepShape]:
    """Chunk and decodes together, off the measured edges: never fitted, they state the error."""
    longest = limits.max_context
    proposed = [  # (share of max_tokens, decodes, context of the chunk, of each decode)
        (0.23, 24, 0, longest // 8),
        (0.46, 48, longest // 4, longest // 8),
        (0.90, 96, longest // 8, longest // 16),
    ]
    steps = []
    for share, decodes, chunk_context, decode_context in proposed:
        tokens = round(share * limits.max_tokens)
        requests = min(decodes, limits.max_decodes, tokens // 2)
        chunk = tokens - requests
        if requests < 1:
            continue
        room = (limits.kv_tokens - chunk_context - chunk) // requests - 1
        context = max(0, min(chunk_context, longest - chunk))
        each = max(1, min(decode_context, room))
        steps.append(StepShape(chunk, context, requests, requests * each))
    return list(dict.fromkeys(steps))


def thin(counts: list[int], most: int, *, keep: set[int]) -> list[int]:
    """Drop counts until ``most`` are left, each time the one whose neighbours are closest.

    Closeness is the ratio of the neighbours: a stair of 128 tokens matters at 256, not at 4096.
    ``keep`` and both ends are never dropped, so more than ``most`` may be left.
    """
    left = sorted(counts)
    while len(left) > most:
        droppable = [i for i in range(1, len(left) - 1) if left[i] not in keep]
        if not droppable:
            break
        del left[min(droppable, key=lambda i: (left[i + 1] / left[i - 1], -left[i]))]
    return left


def at_clock(step: StepShape, clock_mhz: int) -> Cell:
    """The step as a cell to be measured."""
    return Cell(
        RowKind.FORWARD,
        clock_mhz,
        step.prefill_tokens,
        step.prefill_context_tokens,
        step.decode_requests,
        step.decode_context_tokens,
    )


def _decode(requests: int, each: int, edges: list[int], limits: GridLimits) -> StepShape:
    requests = _edge(min(requests, limits.max_decodes), edges)
    each = max(1, min(each, limits.max_context - 1, limits.kv_tokens // requests - 1))
    return StepShape(decode_requests=requests, decode_context_tokens=requests * each)


def _chunk(chunk: int, context: int, edges: list[int], limits: GridLimits) -> StepShape:
    chunk = _edge(min(chunk, limits.max_context // 2), edges)
    context = max(1, min(context, limits.max_context - chunk, limits.kv_tokens - chunk))
    return StepShape(prefill_tokens=chunk, prefill_context_tokens=context)


def _both(tokens: int, requests: int, edges: list[int], limits: GridLimits) -> StepShape:
    tokens = _edge(min(tokens, limits.max_context // 2), edges)
    requests = min(requests, limits.max_decodes, max(1, tokens // 4))
    context = limits.max_context // 8
    each = max(1, min(context, (limits.kv_tokens - context - tokens) // requests - 1))
    return StepShape(max(1, tokens - requests), context, requests, requests * each)


def _edge(tokens: int, edges: list[int]) -> int:
    return max(edge for edge in edges if edge <= max(tokens, edges[0]))
