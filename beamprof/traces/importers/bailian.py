"""Bailian's usage traces (Qwen, Alibaba): seconds, chats by parent, ids of 16-token blocks.

chat_id, parent_chat_id (-1: none), timestamp, input_length, output_length, type, turn, hash_ids.
A session is a chat and everything that grew out of it.
"""

from collections.abc import Hashable, Sequence

import polars as pl

from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, numbered
from beamprof.traces.importers.blocks import block_ids, block_size
from beamprof.traces.importers.clock import read_times
from beamprof.traces.importers.sheet import Sheet

COLUMNS = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")
BLOCK_TOKENS = 16  # as their files' names say: ..._blksz_16.jsonl


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """Each row a turn; its session is the first chat of its line."""
    cells = sheet.read((*COLUMNS, "turn", "type", "hash_ids"))
    tokens = cells.numbers("input_length")
    ids = block_ids(sheet, cells.values("hash_ids"))
    size = block_size(sheet, tokens, ids, reading, usual=BLOCK_TOKENS)
    columns = {
        "arrival_s": read_times(sheet, cells, "timestamp", reading, unit="s").seconds,
        "input_tokens": tokens,
        "output_tokens": cells.numbers("output_length"),
        "session_id": _sessions(cells.values("chat_id"), cells.values("parent_chat_id")),
    }
    if size is not None:
        columns["prefix_hashes"] = ids
    return ForeignRows(
        numbered(columns),
        prefix_block_tokens=size,
        found={} if size in (None, BLOCK_TOKENS) else {"prefix_block_tokens": size},
        unread=tuple(name for name in cells.names if name not in (*COLUMNS, "turn", "hash_ids")),
    )


def _sessions(chats: Sequence[Hashable], parents: Sequence[Hashable]) -> pl.Series:
    """The root of each chat: found from what stands above, so a parent comes before its child."""
    roots: dict[str, str] = {}
    sessions = []
    for chat, parent in zip(map(str, chats), map(str, parents), strict=True):
        alone = parent in ("-1", "None", "")
        roots[chat] = chat if alone else roots.get(parent, parent)
        sessions.append(roots[chat])
    return pl.Series("session_id", sessions, dtype=pl.String)


IMPORTER = Importer(
    name="bailian",
    title="Bailian usage trace",
    columns="chat_id, parent_chat_id, timestamp (s), input_length, output_length, hash_ids",
    licence="Apache-2.0 as published in qwen-bailian-usagetraces-anon",
    required=COLUMNS,
    recognises=has(*COLUMNS),
    read=read,
)
