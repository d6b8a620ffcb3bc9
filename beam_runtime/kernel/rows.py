"""Rows that stand for several requests: which of them go, and how a row is split."""

import math

from beam_runtime.kernel.jit import compiled
from beam_runtime.kernel.state import (
    COMPUTED,
    FIRST,
    GAP,
    KEY,
    KIND,
    LAST,
    MEMBER,
    MEMBER_TOKENS,
    N_ROWS,
    N_RUNNING,
    OTHERS,
    OTHERS_TOKENS,
    READY,
    RUNNING,
    SCARCE,
    SHOWN,
    TBT_SLO,
    TOTAL,
    Floats,
    State,
)


@compiled
def context_of(s: State, row: int, requests: int) -> int:
    """Tokens computed by the first so many requests of a row."""
    r = s.requests
    others = r[OTHERS, row]
    all_tokens: int = r[COMPUTED, row] + r[OTHERS_TOKENS, row]
    if requests == 1 + others:
        return all_tokens
    first = r[FIRST, row]
    before = r[MEMBER_TOKENS, first - 1] if first > 0 else 0
    # All of them have computed as many since.
    since = (all_tokens - (r[MEMBER_TOKENS, first + others] - before)) // (1 + others)
    tokens: int = r[MEMBER_TOKENS, first + requests - 1] - before + since * requests
    return tokens


@compiled
def choose_earliest_due(s: State, size: int) -> None:
    """Show the ``size`` ready decodes that are due first; more than that are ready."""
    if s.at[SCARCE] > 0:
        choose_among_several(s, size)
        return
    n = 0
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        if s.requests[KIND, row] == READY:
            s.times[KEY, n] = s.times[LAST, row] + s.times[TBT_SLO, row]
            n += 1
    limit = smallest(s.times[KEY], n, size)
    ties = size
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        before = s.times[LAST, row] + s.times[TBT_SLO, row] < limit
        s.requests[SHOWN, row] = before
        ties -= before and s.requests[KIND, row] == READY
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        at_limit = s.times[LAST, row] + s.times[TBT_SLO, row] == limit
        if ties > 0 and at_limit and s.requests[KIND, row] == READY:
            s.requests[SHOWN, row] = 1
            ties -= 1


@compiled
def choose_among_several(s: State, size: int) -> None:
    """``choose_earliest_due`` where rows stand for several requests: show how many of each."""
    r = s.requests
    limit, shown = -math.inf, 0
    while shown < size:
        # The next due, and how many requests have it.
        later, tied = math.inf, 0
        for i in range(s.at[N_RUNNING]):
            row = r[RUNNING, i]
            due = s.times[LAST, row] + s.times[TBT_SLO, row]
            if r[KIND, row] == READY and limit < due <= later:
                tied = 1 + r[OTHERS, row] + (tied if due == later else 0)
                later = due
        limit, shown = later, shown + tied
    surplus = shown - size
    for i in range(s.at[N_RUNNING]):
        row = r[RUNNING, i]
        due = s.times[LAST, row] + s.times[TBT_SLO, row]
        r[SHOWN, row] = 1 + r[OTHERS, row] if r[KIND, row] == READY and due <= limit else 0
    # Of those due at the limit the last in the engine's order stay behind.
    for _ in range(surplus):
        last, last_row = -1, -1
        for i in range(s.at[N_RUNNING]):
            row = r[RUNNING, i]
            if r[SHOWN, row] > 0 and s.times[LAST, row] + s.times[TBT_SLO, row] == limit:
                member = r[MEMBER, r[FIRST, row] + r[SHOWN, row] - 1]
                if member > last:
                    last, last_row = member, row
        r[SHOWN, last_row] -= 1


@compiled
def smallest(values: Floats, n: int, rank: int) -> float:
    """The rank-th smallest of the first ``n`` values, which it reorders (Hoare's quickselect)."""
    low, high, want = 0, n - 1, rank - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            break
    found: float = values[want]
    return found


@compiled
def split(s: State, row: int, going: int) -> None:
    """The first so many requests of a row keep it; the others stay behind in a row of their own."""
    r = s.requests
    staying = 1 + r[OTHERS, row] - going
    context = r[COMPUTED, row] + r[OTHERS_TOKENS, row]
    going_context = context_of(s, row, going)
    # Rows in use are those that run and those that wait.
    new = s.at[N_ROWS]
    s.at[N_ROWS] += 1
    for line in range(SHOWN + 1):
        r[line, new] = r[line, row]
    for line in range(GAP + 1):
        s.times[line, new] = s.times[line, row]
    r[FIRST, new] = r[FIRST, row] + going
    hold(s, row, going, going_context)
    hold(s, new, staying, context - going_context)
    at = s.at[N_RUNNING]
    while r[RUNNING, at - 1] != row:
        r[RUNNING, at] = r[RUNNING, at - 1]
        at -= 1
    r[RUNNING, at] = new
    s.at[N_RUNNING] += 1


@compiled
def hold(s: State, row: int, requests: int, context: int) -> None:
    """Make a row of decodes that of so many requests with so many computed tokens."""
    r = s.requests
    pending = r[TOTAL, row] - r[COMPUTED, row]
    if requests == 1:
        r[COMPUTED, row] = context
        r[TOTAL, row] = context + pending
    # Else the longest may be in the other half: an upper bound does.
    r[OTHERS, row] = requests - 1
    r[OTHERS_TOKENS, row] = context - r[COMPUTED, row]


@compiled
def member_of(s: State, row: int) -> int:
    first: int = s.requests[FIRST, row] if row >= 0 else -1
    return first
