"""What a user of the search may want otherwise."""

from dataclasses import dataclass

LOOKAHEAD_MS = 250.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What a user may want otherwise.

    Attributes:
        lookahead_ms: the horizon is at least this long.
        dwell_ms: a clock stays at least this long, unless an SLO needs another one.
        switch_j: what a clock change must save to be worth it.
        chunk_tokens: the chunk sizes to choose from; the table's staircase edges by default.
        most_chunks: of those edges, how many.
        first_token_ms: how soon whoever comes to an empty engine must have a first token.
    """

    lookahead_ms: float = LOOKAHEAD_MS
    dwell_ms: float = 100.0
    switch_j: float = 0.5
    chunk_tokens: tuple[int, ...] = ()
    most_chunks: int = 12
    first_token_ms: float = 1000.0
