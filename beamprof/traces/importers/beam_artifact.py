"""Requests as BEAM's authors replayed them: Azure's columns and a copy of the first.

The file's name states the duration (``..._19h00m-20h00m_3600s_3rps.csv``); its "rps" is the
generator's setting, not the rate in the file. One prompt of the headline hour exceeds the
10,000 tokens that they served with: use --max-total-tokens.
"""

import dataclasses
import re

from beamprof.traces.importers import azure
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has
from beamprof.traces.importers.sheet import Sheet

COPY = "timestamp"


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """Azure's columns; the duration from the file's name, where it states one."""
    named = re.search(r"_(\d+)s(?:_|$)", sheet.path.name.partition(".")[0])
    rows = azure.read(sheet, reading)
    rows = dataclasses.replace(rows, unread=tuple(name for name in rows.unread if name != COPY))
    last_s = rows.frame["arrival_s"].max()
    stated_s = float(named.group(1)) if named else 0.0
    if isinstance(last_s, float) and stated_s >= last_s:
        return dataclasses.replace(rows, duration_s=stated_s)
    return rows


IMPORTER = Importer(
    name="beam-artifact",
    title="requests of BEAM's published artifact",
    columns="TIMESTAMP, ContextTokens, GeneratedTokens, timestamp",
    licence="Apache-2.0 as published in BEAM-artifact",
    required=azure.COLUMNS,
    recognises=has(*azure.COLUMNS, COPY),
    read=read,
)
