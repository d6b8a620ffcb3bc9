"""Which formats there are, and which one a file is in."""

import re

from beamprof.errors import ImportFormatError
from beamprof.traces.importers import (
    aiperf,
    aiperf_records,
    azure,
    bailian,
    beam_artifact,
    burstgpt,
    guidellm,
    jsonl,
    llmservingsim,
    mooncake,
    served_log,
    servegen,
    splitwise,
    token_counts,
    usage_log,
    vidur,
    vllm_bench,
)
from beamprof.traces.importers.base import Importer
from beamprof.traces.importers.carrier import POOL_FILE
from beamprof.traces.importers.sheet import Sheet

# In order of recognition: the more particular header first.
IMPORTERS: tuple[Importer, ...] = (
    beam_artifact.IMPORTER,
    azure.IMPORTER,
    burstgpt.IMPORTER,
    vidur.IMPORTER,
    splitwise.IMPORTER,
    servegen.IMPORTER,
    served_log.IMPORTER,
    llmservingsim.IMPORTER,
    bailian.IMPORTER,
    mooncake.IMPORTER,
    aiperf.IMPORTER,
    aiperf_records.IMPORTER,
    guidellm.IMPORTER,
    vllm_bench.IMPORTER,
    token_counts.IMPORTER,
    usage_log.IMPORTER,
    jsonl.IMPORTER,
)
# Columns of data sets of prompts.
_TEXTS = frozenset({
    "text", "texts", "text_input", "prompt", "messages", "turns", "conversations", "question",
})  # fmt: skip


def importer_named(name: str) -> Importer:
    """The importer that ``--format`` calls so.

    Raises:
        ImportFormatError: there is none.
    """
    for importer in IMPORTERS:
        if importer.name == name:
            return importer
    raise ImportFormatError(
        f"unknown trace format {name!r}",
        hint=f"known formats: {', '.join(importer.name for importer in IMPORTERS)}",
    )


def importer_for(sheet: Sheet, name: str | None = None) -> Importer:
    """The importer of this name, or the one that recognises the sheet's columns.

    Raises:
        ImportFormatError: no such name, columns that it needs are missing, or none knows them.
    """
    if name is not None:
        importer = importer_named(name)
        missing = [column for column in importer.required if column not in sheet.columns]
        if missing or (not importer.required and not importer.recognises(sheet.columns)):
            raise ImportFormatError(
                f"{sheet.path} is not of format {name}: expected the columns {importer.columns}"
                + (f"; missing: {', '.join(missing)}" if missing else ""),
                cause=f"found the {sheet.carrier} columns {_shown(sheet)}",
                hint="leave --format out to have it found by the columns",
            )
        return importer
    for importer in IMPORTERS:
        if importer.recognises(sheet.columns):
            return importer
    if set(sheet.columns) & _TEXTS:
        raise ImportFormatError(
            f"{sheet.path} holds texts, not lengths",
            cause=f"found {_shown(sheet)}",
            hint="count tokens with the model's tokenizer, and write arrival_s, input_tokens and "
            "output_tokens",
        )
    if POOL_FILE.fullmatch(sheet.path.name):
        raise ImportFormatError(
            f"{sheet.path} is one client's part of a ServeGen pool, not a trace",
            hint=f"draw a trace from its folder: beam trace generate servegen {sheet.path.parent}",
        )
    near, lacking = _nearest(sheet.columns)
    names = ", ".join(importer.name for importer in IMPORTERS)
    raise ImportFormatError(
        f"{sheet.path}: no trace format has these columns",
        cause=f"found {_shown(sheet)}",
        hint=(
            f"nearest is {near.name}, which has {near.columns}"
            + (f"; missing: {', '.join(lacking)}" if lacking else "")
            if near is not None
            else "a trace has the columns arrival_s, input_tokens and output_tokens at least"
        )
        + f"; known formats: {names}",
    )


def _nearest(columns: tuple[str, ...]) -> tuple[Importer | None, list[str]]:
    """The format that shares the most columns, and what it needs besides; None: none shares any.

    In whatever case they are written: a header in small letters shows what was meant.
    """
    written = {name.lower() for name in columns}

    def shared(importer: Importer) -> int:
        return len(set(re.findall(r"\w[\w ]*", importer.columns.lower())) & written)

    best = max(reversed(IMPORTERS), key=shared)  # of equals the one that asks for least
    if not shared(best):
        return None, []
    return best, [name for name in best.required if name not in columns]


def _shown(sheet: Sheet) -> str:
    shown = ", ".join(ascii(name)[1:-1][:40] for name in sheet.columns[:20])
    return shown + (", ..." if len(sheet.columns) > 20 else "")
