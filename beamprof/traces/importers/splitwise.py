"""Splitwise's simulator traces: request_id, request_type, application_id, arrival_timestamp (s),
batch_size, prompt_size, token_size. Patel et al., "Splitwise", ISCA 2024.

A row of several prompts (batch_size above 1) is no single request: such a file is refused.
"""

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has
from beamprof.traces.importers.sheet import Sheet
from beamprof.traces.importers.timed_lengths import timed_lengths

_REPEATED = ("request_id", "batch_size")
_rows = timed_lengths(
    "prompt_size",
    "token_size",
    {"arrival_timestamp": "s"},
    {"client_id": "application_id", "slo_class": "request_type"},
    _REPEATED,
)


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """One request a row. Applications are its clients, request types its classes.

    Raises:
        ImportFormatError: a row of several prompts.
    """
    sizes = sheet.read(("batch_size", "prompt_size")).numbers("batch_size")
    many = (sizes > 1).arg_true()
    if len(many):
        raise ImportFormatError(
            f"{sheet.path}: row {many[0]} is a batch of {sizes[int(many[0])]:g} prompts",
            cause=f"{len(many)} of {len(sizes)} rows are; a trace has one request in each",
            hint="write each prompt of a batch as a row of its own",
        )
    return _rows(sheet, reading)


IMPORTER = Importer(
    name="splitwise",
    title="Splitwise simulator trace",
    columns="[arrival_timestamp,] batch_size, prompt_size, token_size",
    licence="unknown; traces made from Azure's: CC-BY-4.0",
    required=("prompt_size", "token_size"),
    recognises=has("prompt_size", "token_size"),
    read=read,
)
