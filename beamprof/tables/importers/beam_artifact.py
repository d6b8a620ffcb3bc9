"""The CSVs published with the BEAM paper: one forward pass of one pipeline stage per line.

GPU, model, tp and pp stand in the file's name only:
``dvfs_profile_<GPU>_<model>_tp<T>_pp<P>_one.csv``. Columns, in the authors' units:

    clock               MHz, SM clock locked during the pass
    batch_size          tokens, new tokens of the pass
    decode_tokens       up to this many of them are decodes, one per request; the rest is one
                        prefill chunk without earlier context
    total_ctx_len       tokens, KV tokens of the decode requests together
    time_taken          s, one pass of one stage
    energy_consumption  mJ, one pass, the stage's tp GPUs together
    num_trials, valid   passes averaged; 1 = the authors lines the line

    source              only in files that `beam table export` wrote: measured, modelled, imported

The format does not record idle power (importing.py takes that from the GPU's device file, where
there is one), the clock reached, temperature, throttling or confidence. It does not say its units
either; units.py refuses numbers that cannot be in these.
"""

import csv
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source
from beamprof.devices.device import detect_device
from beamprof.errors import ImportFormatError
from beamprof.models.registry import registry, registry_name, resolve_model
from beamprof.models.shape import ModelShape
from beamprof.tables.importers.base import ImportedTable, ImportOverrides
from beamprof.tables.importers.units import GPU_POWER_W, Reading, plausible_readings

ORIGIN = "https://github.com/jlee335/BEAM-artifact commit 0febb08e7446c9826bff5fce93e0e8a2deab5e5f"
LICENCE = "Apache-2.0"
EXPORTED = "a table of BEAM's, by beam table export"
INTEGER_COLUMNS = (
    "clock",
    "batch_size",
    "decode_tokens",
    "total_ctx_len",
    "num_trials",
    "valid",
)
COLUMNS = (*INTEGER_COLUMNS[:4], "time_taken", "energy_consumption", *INTEGER_COLUMNS[4:])

CLOCK_MHZ = (100, 4000)
LEAVE_OUT = "set valid to 0 on the line to leave it out"

NAME = re.compile(r"dvfs_profile_(?P<gpu>[^_]+)_(?P<model>.+)_tp(?P<tp>\d+)_pp(?P<pp>\d+)_one")


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    clock: int
    batch_size: int
    decode_tokens: int
    total_ctx_len: int
    time_taken: float
    energy_consumption: float
    num_trials: int
    source: str = ""

    @property
    def decode_requests(self) -> int:
        return min(self.decode_tokens, self.batch_size)


@dataclass(frozen=True, slots=True)
class _Layout:
    gpu_name: str
    device: str
    shape: ModelShape
    tp: int
    pp: int


def read(path: Path, overrides: ImportOverrides) -> ImportedTable:
    """Read one published CSV.

    Raises:
        ImportFormatError: unreadable, empty, a missing column, a value that is no number, another
            unit, or a name that does not say what was profiled.
        ModelShapeError: the model cannot be split by tp and pp.
    """
    layout = _layout(path, overrides)
    lines, dropped_rows = _lines(path)
    _check_units(lines, layout.tp, path)
    _check_distinct(lines, path)
    decode_requests = np.array([line.decode_requests for line in lines])
    columns = {
        "kind": np.full(len(lines), str(RowKind.FORWARD)),
        "clock_mhz": np.array([line.clock for line in lines]),
        "prefill_tokens": np.array([line.batch_size for line in lines]) - decode_requests,
        "prefill_context_tokens": np.zeros(len(lines), dtype=np.int64),
        "decode_requests": decode_requests,
        "decode_context_tokens": np.array([line.total_ctx_len for line in lines]),
        "latency_ms": np.array([line.time_taken * 1e3 for line in lines]),
        "energy_j": np.array([line.energy_consumption / 1e3 for line in lines]),
        "passes": np.array([line.num_trials for line in lines]),
        "source": np.array([_source(line) for line in lines]),
    }
    modelled = bool((columns["source"] == str(Source.MODELLED)).any())
    ours = any(line.source for line in lines)
    origin = overrides.origin or (EXPORTED if ours else ORIGIN)
    stage = layout.shape.shard(layout.tp, layout.pp)
    metadata = {
        "model": layout.shape.name,
        "model_shape": layout.shape.to_json(),
        **stage.metadata,
        "dtype": layout.shape.dtype,
        "device": layout.device,
        "gpu_name": layout.gpu_name,
        "engine": "modelled" if modelled else "vllm",
        "energy_source": "modelled" if modelled else "nvml counter",
        "allreduce": ("modelled" if modelled else "measured") if layout.tp > 1 else "none",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "origin": origin,
        "licence": overrides.licence or ("not stated" if ours else LICENCE),
    }
    return ImportedTable(
        columns=columns,
        metadata=metadata,
        dropped_rows=dropped_rows,
        notes=(
            *(() if overrides.origin else (f"origin taken to be {origin}; else say --origin",)),
            *(("its rows are modelled, and stay so: nothing was measured",) if modelled else ()),
            "not recorded in this format: idle power, clock reached, temperature, throttling, "
            "confidence intervals",
        ),
    )


def _source(line: _Line) -> str:
    """What a row is here: modelled numbers stay modelled, all others are somebody else's."""
    modelled = line.source == Source.MODELLED
    return str(Source.MODELLED if modelled else Source.IMPORTED)


def _layout(path: Path, overrides: ImportOverrides) -> _Layout:
    """GPU, model, tp and pp: from the file's name, unless the user says otherwise."""
    named = NAME.search(path.name)
    tp, pp, gpu = overrides.tp, overrides.pp, ""
    model = overrides.model
    if named:
        tp = int(named["tp"]) if tp is None else tp
        pp = int(named["pp"]) if pp is None else pp
        gpu = named["gpu"]
    elif not (model and tp and pp and overrides.device):
        given = {"--model": model, "--tp": tp, "--pp": pp, "--device": overrides.device}
        raise ImportFormatError(
            f"the name {path.name!r} does not say what was profiled",
            cause="expected dvfs_profile_<GPU>_<model>_tp<T>_pp<P>_one.csv",
            hint=f"say it: {' '.join(flag for flag, value in given.items() if not value)}",
        )
    if not tp or not pp:
        raise ImportFormatError(f"{path.name}: tp and pp must be 1 or more, found {tp} and {pp}")
    shape = resolve_model(model) if model else _registered(named["model"] if named else "", path)
    # A GPU without a device file of ours still has a name that can be compared.
    slug = gpu.lower().removeprefix("nvidia ").replace(" ", "-")
    device = overrides.device or detect_device(gpu) or slug
    return _Layout(gpu_name=gpu, device=device, shape=shape, tp=tp, pp=pp)


def _registered(published: str, path: Path) -> ModelShape:
    """``meta-llama_Llama-3.3-70B-Instruct`` -> the registry's ``llama3.3-70b``."""
    name = registry_name(published.partition("_")[2] or published)
    if name is None:
        raise ImportFormatError(
            f"the model {published!r} in {path.name!r} is not in BEAM's registry",
            cause=f"known models: {', '.join(sorted(registry()))}",
            hint="name its shape: --model NAME, or --model DIR with the model's config.json",
        )
    return registry()[name]


def _lines(path: Path) -> tuple[list[_Line], int]:
    """The valid lines, and how many the authors did not keep."""
    lines: list[_Line] = []
    dropped_rows = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="more")
            _check_header(reader.fieldnames, path)
            for row in reader:
                # line_num counts what was read so far, so it is this row's line.
                where = f"{path}, line {reader.line_num}"
                if _number(row, "valid", where) == 0:
                    dropped_rows += 1
                else:
                    lines.append(_line(row, reader.line_num, where))
    except FileNotFoundError:
        raise ImportFormatError(f"no file at {path}", hint="check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImportFormatError(
            f"{path} cannot be read as CSV", cause=str(error), hint="download the file again"
        ) from None
    if not lines:
        raise ImportFormatError(
            f"{path} holds no valid rows",
            cause=f"{dropped_rows} rows are marked valid = 0" if dropped_rows else "only a header",
            hint="download the file again",
        )
    return lines, dropped_rows


def _check_header(found: Sequence[str] | None, path: Path) -> None:
    if not found:
        raise ImportFormatError(f"{path} is empty", hint="download the file again")
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        near = {name: difflib.get_close_matches(name, found, n=1, cutoff=0.5) for name in missing}
        alike = [f"{close[0]!r} for {name!r}" for name, close in near.items() if close]
        raise ImportFormatError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            cause=f"it has {', '.join(found)}",
            hint=f"beam-artifact has {', '.join(COLUMNS)}"
            + (f"; does the file say {' and '.join(alike)}, in another unit?" if alike else ""),
        )


def _number(row: dict[str, str], name: str, where: str) -> float:
    text = row[name]
    try:
        number = int(text) if name in INTEGER_COLUMNS else float(text)
        float(number)  # whatever is too large for one is damage, too
    except (TypeError, ValueError, OverflowError):
        expected = "an integer" if name in INTEGER_COLUMNS else "a number"
        raise ImportFormatError(
            f"{where}: {name} must be {expected}, found {text!r}",
            hint="the line is cut or damaged: download the file again",
        ) from None
    return number


def _line(row: dict[str, str], number: int, where: str) -> _Line:
    values = {name: _number(row, name, where) for name in COLUMNS if name != "valid"}
    for name, value in values.items():
        may_be_zero = name in ("decode_tokens", "total_ctx_len")
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            expected = "0 or more" if may_be_zero else "positive"
            raise ImportFormatError(
                f"{where}: {name} must be {expected}, found {row[name]}", hint=LEAVE_OUT
            )
    source = row.get("source") or ""
    if source and source not in set(Source):
        raise ImportFormatError(
            f"{where}: source must be {', '.join(Source)} or empty, found {source!r}",
            hint="leave the column out where the file is not beam table export's",
        )
    line = _Line(number=number, source=source, **values)  # type: ignore[arg-type]
    if line.decode_requests == 0 and line.total_ctx_len > 0:
        raise ImportFormatError(
            f"{where}: {line.total_ctx_len} KV tokens of 0 decode requests",
            cause=f"decode_tokens = {line.decode_tokens}, total_ctx_len = {line.total_ctx_len}",
            hint="set total_ctx_len to 0 where decode_tokens is 0",
        )
    return line


def _check_units(lines: list[_Line], tp: int, path: Path) -> None:
    clock_mhz = median(line.clock for line in lines)
    if not CLOCK_MHZ[0] <= clock_mhz <= CLOCK_MHZ[1]:
        raise ImportFormatError(
            f"{path}: the clocks are not in MHz",
            cause=f"their median is {clock_mhz:g}, expected {CLOCK_MHZ[0]} to {CLOCK_MHZ[1]}",
            hint="convert the column clock to MHz",
        )
    time = median(line.time_taken for line in lines)
    energy = median(line.energy_consumption for line in lines)
    stated = Reading(time, energy, "s", "mJ", tp)
    if not stated.plausible:
        others = plausible_readings(time, energy, tp)
        raise ImportFormatError(
            f"{path}: time_taken or energy_consumption is in another unit than seconds and "
            "millijoules",
            cause=f"read as {stated}"
            + "".join(f"; read as {other}, which could be" for other in others),
            hint="convert the columns to seconds and millijoules, then import again",
        )
    for line in lines:
        reading = Reading(line.time_taken, line.energy_consumption, "s", "mJ", tp)
        if not reading.plausible:
            raise ImportFormatError(
                f"{path}, line {line.number} cannot be: read as {reading}",
                cause=f"expected {GPU_POWER_W[0]:g} to {GPU_POWER_W[1]:g} W per GPU, as in the "
                "other lines",
                hint=LEAVE_OUT,
            )


def _check_distinct(lines: list[_Line], path: Path) -> None:
    seen: dict[tuple[int, int, int, int], int] = {}
    for line in lines:
        key = (line.clock, line.batch_size, line.decode_requests, line.total_ctx_len)
        if key in seen:
            raise ImportFormatError(
                f"{path}: lines {seen[key]} and {line.number} describe the same pass",
                cause=f"clock {key[0]}, batch_size {key[1]}, {key[2]} decodes, total_ctx_len "
                f"{key[3]}",
                hint="set valid to 0 on one of them to leave it out",
            )
        seen[key] = line.number
