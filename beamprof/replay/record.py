"""How a replay was made: what its numbers stand on, kept inside every file that holds them.

Whether a table's numbers are true is not known here; only where they come from.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from beam_runtime.table.perf_table import PerfTable
from beamprof.traces.trace import Provenance, Trace

_MATTERS = ("numpy", "numba", "polars")
_SAID = ("device", "gpu_name", "engine", "energy_source", "origin", "created")


@dataclass(frozen=True, slots=True)
class TableRecord:
    """Which table.

    Attributes:
        model, tp, pp: what it is for.
        sources: measured, modelled, imported; more than one where somebody mixed them.
        rows_sha256: of its rows, whatever file they lie in.
        said: what else its metadata says of where it comes from; empty entries left out.
    """

    model: str
    tp: int
    pp: int
    sources: tuple[str, ...]
    rows_sha256: str
    said: Mapping[str, str]

    @classmethod
    def of(cls, table: PerfTable) -> "TableRecord":
        """The record of ``table``."""
        return cls(
            model=table.model,
            tp=table.tp,
            pp=table.pp,
            sources=tuple(str(source) for source in table.sources),
            rows_sha256=table.metadata["rows_sha256"],
            said={key: table.metadata[key] for key in _SAID if table.metadata.get(key)},
        )


@dataclass(frozen=True, slots=True)
class Record:
    """How a replay was made.

    Attributes:
        made: when, UTC, ISO 8601.
        command: the command line; empty where Python asked.
        versions: of beamprof, Python and the packages that numbers depend on.
        table: what the policies knew.
        plant_table: what was true; the same table where none was named.
        trace: its source, licence and transforms.
        trace_sha256: of its rows and duration.
    """

    made: str
    command: str
    versions: Mapping[str, str]
    table: TableRecord
    plant_table: TableRecord
    trace: Provenance
    trace_sha256: str

    @classmethod
    def of(
        cls, table: PerfTable, plant_table: PerfTable, trace: Trace, command: str = ""
    ) -> "Record":
        """The record of a replay that is made now."""
        return cls(
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            versions={
                "beamprof": version("beamprof"),
                "Python": platform.python_version(),
                **{name: version(name) for name in _MATTERS},
            },
            table=TableRecord.of(table),
            plant_table=TableRecord.of(plant_table),
            trace=trace.provenance,
            trace_sha256=trace.sha256(),
        )
