"""Prefix hashes: ids of blocks of prompt tokens, and how many tokens a block has.

Where a block's size is not stated it shows in the counts: a prompt of L tokens has ceil(L / size)
ids, or floor(L / size) where only full blocks are hashed.
"""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import Reading
from beamprof.traces.importers.import_command import import_with
from beamprof.traces.importers.sheet import Sheet

_WHOLE = re.compile(r"-?[0-9]{1,19}")
_POWERS: tuple[int, ...] = tuple(1 << power for power in range(16))


def block_ids(sheet: Sheet, values: Sequence[Any]) -> pl.Series:
    """Lists of whole numbers, null where there is none; text of numbers with spaces is read too.

    Raises:
        ImportFormatError: anything else, with its row.
    """
    return pl.Series(
        "prefix_hashes",
        [_ids(sheet, row, value) for row, value in enumerate(values)],
        dtype=pl.List(pl.Int64),
    )


def _ids(sheet: Sheet, row: int, value: Any) -> list[int] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [int(word) if _WHOLE.fullmatch(word) else word for word in value.split()]
    if isinstance(value, pl.Series):
        value = value.to_list()
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value):
        return value
    raise ImportFormatError(
        f"{sheet.path}: row {row}: block ids must be a list of whole numbers",
        cause=f"found {ascii(value)[:60]}",
    )


def counts_fit(tokens: pl.Series, ids: pl.Series, block_tokens: int) -> int | None:
    """The first row that has not one id for each ``block_tokens`` tokens, rounded up."""
    rows = pl.DataFrame({"tokens": tokens, "ids": ids.list.len()}).with_row_index("row")
    wrong = rows.filter(
        pl.col("ids").is_not_null() & pl.col("tokens").is_finite()
        & (pl.col("ids") != (pl.col("tokens") / block_tokens).ceil())
    )  # fmt: skip
    return None if wrong.is_empty() else int(wrong["row"][0])


def block_size(
    sheet: Sheet, tokens: pl.Series, ids: pl.Series, reading: Reading, usual: int | None = None
) -> int | None:
    """Tokens of one block: as the user says, else the usual size if the counts fit it, else the
    one that they fit.

    Raises:
        ImportFormatError: the counts fit no size, or several.
    """
    if ids.null_count() == ids.len():
        return None
    if reading.block_tokens is not None:
        return reading.block_tokens
    rows = pl.DataFrame({"tokens": tokens, "ids": ids.list.len()}).filter(
        pl.col("ids").is_not_null() & pl.col("tokens").is_finite() & (pl.col("tokens") >= 1)
    )
    pairs = [(int(length), int(count)) for length, count in rows.iter_rows()]
    for fits in (_rounded_up(pairs), _rounded_down(pairs)):
        low, high = fits
        if low > high:
            continue
        if usual is not None and low <= usual <= high:
            return usual
        powers = [size for size in _POWERS if low <= size <= high]
        if len(powers) == 1:
            return powers[0]
        if low == high:
            return low
        shown = ", ".join(str(size) for size in powers) or f"{low} to {high}"
        raise _unknown(sheet, f"the counts of ids fit blocks of {shown} tokens alike")
    raise _unknown(sheet, "prompts and counts of ids fit no size of block")


def _unknown(sheet: Sheet, cause: str) -> ImportFormatError:
    return ImportFormatError(
        f"{sheet.path}: how many tokens does a prefix block hold?",
        cause=cause,
        hint=f"say it, for example: {import_with(sheet.path, '--block-tokens 16')}",
    )


def _rounded_up(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Sizes between which ceil(length / size) is the count, in every row."""
    low, high = 1, 1 << 30
    for length, count in pairs:
        if count < 1:
            return 1, 0
        low = max(low, -(-length // count))
        if count > 1:
            high = min(high, (length - 1) // (count - 1))
    return low, high


def _rounded_down(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Likewise for floor(length / size)."""
    low, high = 1, 1 << 30
    for length, count in pairs:
        low = max(low, length // (count + 1) + 1)
        if count > 0:
            high = min(high, length // count)
    return low, high
