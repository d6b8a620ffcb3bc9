"""The perf-energy table on disk: one record per column and per metadata key.

From these records come the Parquet schema, the loader's checks, table headings,
plot axes and the documentation. This module knows names and units, not files.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = "1.0"
METADATA_PREFIX = "beam."


class RowKind(StrEnum):
    """What a row describes."""

    FORWARD = "forward"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name ends in its unit; ``dtype`` is the numpy and Arrow name."""

    name: str
    dtype: str  # "int64", "float64" or "string"
    unit: str
    title: str
    doc: str
    nullable: bool = False
    key: bool = False


COLUMNS: tuple[Column, ...] = (
    Column("kind", "string", "", "kind", "forward: one pass of one stage; idle: one second of a "
           "GPU group that waits with its clock locked", key=True),
    Column("clock_mhz", "int64", "MHz", "clock", "SM clock asked for", key=True),
    Column("prefill_tokens", "int64", "tokens", "chunk", "C: new tokens of the prefill chunk, "
           "0 = none", key=True),
    Column("prefill_context_tokens", "int64", "tokens", "chunk context", "tokens of that request "
           "already in the KV cache", key=True),
    Column("decode_requests", "int64", "requests", "decodes", "B: requests that decode one token "
           "each", key=True),
    Column("decode_context_tokens", "int64", "tokens", "decode context", "KV tokens of those B "
           "requests together", key=True),
    Column("latency_ms", "float64", "ms", "latency", "median pass; an idle row's window"),
    Column("latency_ci_ms", "float64", "ms", "latency ±", "half-width of its 95 % interval",
           nullable=True),
    Column("energy_j", "float64", "J", "energy", "per pass, summed over the stage's tp GPUs"),
    Column("energy_ci_j", "float64", "J", "energy ±", "half-width of its 95 % interval",
           nullable=True),
    Column("clock_reached_mhz", "float64", "MHz", "clock reached", "mean SM clock during the "
           "passes; below the lock at the power cap", nullable=True),
    Column("temperature_c", "float64", "°C", "temperature", "hottest GPU at the end of the cell",
           nullable=True),
    Column("throttle", "string", "", "throttle", "NVML's clock-event reasons, as text; empty = "
           "none"),
    Column("passes", "int64", "", "passes", "how many passes stand behind the numbers"),
    Column("source", "string", "", "source", "measured, modelled or imported"),
)  # fmt: skip

COLUMN: dict[str, Column] = {column.name: column for column in COLUMNS}
KEY_COLUMNS: tuple[str, ...] = tuple(column.name for column in COLUMNS if column.key)

METADATA_KEYS: dict[str, str] = {
    "schema_version": "major.minor; the loader refuses another major",
    "model": "registry name or the name of the config.json's directory",
    "model_shape": "JSON of the whole model's shape (beamprof.models.shape.ModelShape)",
    "tp": "tensor-parallel GPUs of a stage",
    "pp": "pipeline stages",
    "ep": "GPUs that share a layer's experts whole, where more than one",
    "dp": "groups of tp GPUs that share the experts, where more than one; the rows are one group's",
    "stage_layers": "decoder layers of the stage",
    "stage_weight_bytes": "of their weights, on each GPU",
    "kv_bytes_per_token": "that they keep of one token, on each GPU",
    "dtype": "weights and activations, e.g. bfloat16",
    "precision": "formats of weights by class of tensor and of the KV cache, where quantised",
    "accuracy": "how far modelled or imported numbers can be trusted, in words",
    "device": "device file's name, e.g. a100-sxm4-80gb",
    "device_clocks_mhz": "JSON list of the SM clocks that the device supports",
    "gpu_name": "what the driver calls the device; empty when modelled",
    "driver": "driver version; empty when modelled",
    "engine": "what ran the passes: modelled, torch, vllm",
    "engine_version": "its version",
    "energy_source": "nvml counter | rapl | modelled | assumed <W> W",
    "allreduce": "measured | device file <name> | none (tp 1)",
    "host_gap_ms": "host time per stage and step that no pass covers, where known",
    "stage_transfer_ms": "sending a step's activations to the next stage, where known",
    "sweep": "JSON of the sweep as it was resolved",
    "created": "UTC, ISO 8601",
    "rows_sha256": "rows_sha256() of the rows",
    "origin": "imports: where the file comes from",
    "licence": "imports: its licence",
}
REQUIRED_METADATA: tuple[str, ...] = (
    "schema_version",
    "model",
    "tp",
    "pp",
    "stage_layers",
    "device",
    "energy_source",
    "rows_sha256",
)


def rows_sha256(columns: "Mapping[str, NDArray[Any]]") -> str:
    """SHA-256 over the rows, independent of row order, compression and file writer.

    Args:
        columns: every column of COLUMNS as a 1-d numpy array of equal length;
            missing numbers are NaN, strings are numpy str or object arrays.

    Returns:
        64 hexadecimal digits.
    """
    import numpy as np

    order = np.lexsort([np.asarray(columns[name]) for name in reversed(KEY_COLUMNS)])
    digest = hashlib.sha256()
    for column in COLUMNS:
        values = np.asarray(columns[column.name])[order]
        digest.update(f"{column.name}:{column.dtype}\0".encode())
        if column.dtype == "string":
            digest.update("\0".join(str(value) for value in values).encode())
        else:
            wire: np.dtype[Any] = np.dtype(column.dtype).newbyteorder("<")
            digest.update(np.ascontiguousarray(values, dtype=wire).tobytes())
    return digest.hexdigest()
