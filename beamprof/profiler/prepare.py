"""Everything about a profile that can be decided before anything is measured.

Touches nothing and writes nothing, so that a dry run and a real one cannot differ; whatever
would make the sweep fail later and can be known now is refused here.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from beamprof import version
from beamprof.devices.assumed import assumed
from beamprof.devices.device import GPU_MEMORY_SHARE
from beamprof.errors import SweepError
from beamprof.files import check_writable
from beamprof.models.registry import resolve_model
from beamprof.models.shape import ModelShape, StageShape
from beamprof.profiler.choose_backend import CPU, Choice, choose_backend
from beamprof.profiler.grid import GridLimits
from beamprof.profiler.journal import journal_path
from beamprof.profiler.plan import Plan, make_plan
from beamprof.profiler.slow_device import check_budget
from beamprof.profiler.spec import SweepSpec
from beamprof.sources import sources_sha256

UNKNOWN_GPU_BYTES = 80e9
CONTEXT_DEFAULT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """What to profile, and where to.

    Attributes:
        spec: the resolved sweep; its model must be set.
        output: the table; None = a predictable name in the current directory.
        force: replace an existing table. fresh: forget the journal of an interrupted run.
    """

    spec: SweepSpec
    output: Path | None = None
    force: bool = False
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.output is not None:  # a name will do
            object.__setattr__(self, "output", Path(self.output))


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything decided, nothing measured.

    Attributes:
        plan: what will run here. measured_plan: the same on a real device; they differ where
            numbers are modelled, which needs no second trial.
        thinned: what was given up to keep the budget, in words.
        notes: defaults that were chosen, each with its reason; what was cut, first.
        warnings: what was asked and is not done.
    """

    request: ProfileRequest
    model: ModelShape
    stage: StageShape
    choice: Choice
    plan: Plan
    measured_plan: Plan
    thinned: str
    output: Path
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def journal(self) -> Path:
        """Where finished trials go."""
        return journal_path(self.output)


def prepare(request: ProfileRequest, *, choice: Choice | None = None) -> Prepared:
    """Resolve the model, choose the backend, plan the sweep, check the output.

    Args:
        request: what to profile.
        choice: a backend to use in place of an automatic choice.

    Raises:
        BeamError: anything that would make the sweep fail later and can be known now.
    """
    spec = request.spec
    if spec.model is None:
        raise SweepError(
            "no model was named", hint="beam profile --model llama3-70b, or model = in the sweep"
        )
    model = resolve_model(spec.model, dtype=spec.dtype)
    if spec.kv_cache_dtype != "auto":
        quantised = model.precision.with_kv(spec.kv_cache_dtype)
        model = dataclasses.replace(model, quantised=quantised)
    stage = model.shard(spec.tp, spec.pp, spec.ep, spec.dp)
    choice = choice or choose_backend(spec, model, stage)
    limits = grid_limits(spec, model, stage, choice)
    plan, measured_plan, thinned = _plans(spec, limits, choice)
    groups = f"-dp{spec.dp}" if spec.dp > 1 else ""
    output = request.output or Path(
        f"{model.name}-tp{spec.tp}-pp{spec.pp}{groups}-{choice.clocks.device}.parquet"
    )
    check_writable(output, force=request.force)
    slow = ""
    if not choice.modelled:
        place = "cpu" if choice.clocks.device == CPU else "cuda"
        slow = check_budget(plan, stage, place, spec.budget_s, model.name)
    warnings = (*_cut(spec, limits, model), *([slow] if slow else []))
    notes = [*warnings, f"backend: {choice.reason}"]
    if spec.origins["device"] == "default":
        notes.append(f"device: {choice.clocks.device} (default; choose with --device)")
    weights_gb = stage.weight_bytes / 1e9
    notes.extend(f"model: {note}" for note in model.notes)
    notes.extend(shape_notes(model, stage))
    if choice.modelled and spec.assume_power_w is not None:
        notes.append(
            f"{spec.origins['assume_power']}: {spec.assume_power_w:g} W is assumed nowhere, as "
            "energy is modelled too"
        )
    if choice.modelled and choice.device_file is not None:
        notes += filter(None, (assumed(stage, choice.device_file),))
    memory_gb = gpu_memory_bytes(choice) / 1e9
    if choice.modelled and weights_gb > memory_gb:
        notes.append(
            f"memory: {weights_gb:.0f} GB of weights for each GPU do not fit into the "
            f"{memory_gb:.0f} GB that {choice.clocks.device} leaves them; modelled all the same"
        )
    return Prepared(
        request, model, stage, choice, plan, measured_plan, thinned, output, tuple(notes), warnings
    )


def _cut(spec: SweepSpec, limits: GridLimits, model: ModelShape) -> tuple[str, ...]:
    """A line where fewer tokens are measured than somebody asked for."""
    if limits.max_tokens >= spec.max_tokens or spec.origins["max_tokens"] == "default":
        return ()
    longest = limits.max_context
    whose = model.name if longest == model.max_model_len else "the sweep (max_context)"
    return (
        f"largest step: {limits.max_tokens} tokens, not {spec.max_tokens} "
        f"({spec.origins['max_tokens']}): {whose} takes {longest} tokens, one of them an answer",
    )


def shape_notes(model: ModelShape, stage: StageShape) -> list[str]:
    """What is special about a model's cost, one line each."""
    notes = []
    if model.quantised:
        notes.append(f"precision: {model.precision}")
    windows = sorted(
        {w for kind in model.kinds if (w := getattr(kind.layer.mixer, "window_tokens", 0))}
    )
    if windows:
        count = sum(
            kind.count for kind in model.kinds if getattr(kind.layer.mixer, "window_tokens", 0)
        )
        notes.append(
            f"attention: a sliding window of {windows[0]} tokens in {count} of {model.layers} "
            "layers"
        )
    if stage.dp > 1:
        notes.append(
            f"data parallel: the table is of one of {stage.dp} groups (tp {stage.tp}), while the "
            "others do as much as it does"
        )
    if model.layers % stage.pp:
        notes.append(
            f"stage: {model.layers} layers over {stage.pp} stages; the largest, of {stage.layers}, "
            "stands for all"
        )
    return notes


def gpu_memory_bytes(choice: Choice) -> float:
    """What one GPU of the device leaves to weights and KV cache."""
    device = choice.device_file
    return device.weight_room_bytes if device else GPU_MEMORY_SHARE * UNKNOWN_GPU_BYTES


def _plans(spec: SweepSpec, limits: GridLimits, choice: Choice) -> tuple[Plan, Plan, str]:
    """What runs here, the same on a real device, and what that gave up to keep its budget."""
    if not choice.modelled:
        plan, thinned = make_plan(spec, limits, choice.clocks)
        on_cpu = choice.clocks.device == CPU
        plan = dataclasses.replace(plan, counted=not on_cpu, cpu=on_cpu)
        return plan, plan, thinned
    full, _ = make_plan(spec, limits, choice.clocks, keep_budget=False)
    try:
        measured, thinned = make_plan(spec, limits, choice.clocks)
    except SweepError:
        # Nobody asked for a budget, and modelling takes seconds: --clocks all is fine.
        if spec.origins["budget"] != "default":
            raise
        measured, thinned = full, ""
    here = full if spec.origins["budget"] == "default" else measured
    return dataclasses.replace(here, rounds=spec.trials or 1, counted=False), measured, thinned


def grid_limits(
    spec: SweepSpec, model: ModelShape, stage: StageShape, choice: Choice
) -> GridLimits:
    """How far cells reach: the spec, the model's longest context, the GPU's memory.

    Raises:
        SweepError: a context that the model does not take.
    """
    longest = spec.max_context or min(model.max_model_len, CONTEXT_DEFAULT_TOKENS)
    if longest > model.max_model_len:
        raise SweepError(
            f"max_context {longest} is over the {model.max_model_len} tokens that {model.name} "
            "takes",
            hint=f"max_context can be up to {model.max_model_len}",
        )
    memory_bytes = gpu_memory_bytes(choice)
    kv_tokens = int((memory_bytes - stage.weight_bytes) / max(stage.kv_bytes_per_token, 1.0))
    return GridLimits(
        max_tokens=min(spec.max_tokens, longest - 1),
        max_decodes=spec.max_decodes,
        max_context=longest,
        kv_tokens=max(kv_tokens, longest),
        # Stairs of 128 tokens were measured on A100s; on newer GPUs 64 shows as well.
        tile_tokens=128 if choice.clocks.device.startswith("a100") else 64,
        max_cells=spec.cells_per_clock,
    )


def sweep_identity(prepared: Prepared, environment: Mapping[str, str]) -> dict[str, str]:
    """Everything that defines the sweep and its environment: what a journal belongs to."""
    plan, spec = prepared.plan, prepared.request.spec
    steps = repr(plan.steps)
    device_file = repr(prepared.choice.device_file)
    fixed = ("device", "gpu_name", "driver", "engine", "engine_version", "energy_source")
    return {
        "beamprof": version.__version__,
        "model": prepared.model.name,
        "model_shape": prepared.model.to_json(),
        "tp": str(spec.tp),
        "pp": str(spec.pp),
        "ep": str(spec.ep),
        "dp": str(spec.dp),
        "backend": prepared.choice.backend,
        **{key: environment.get(key, "") for key in fixed},
        "device_file": hashlib.sha256(device_file.encode()).hexdigest()[:12],
        "clocks_mhz": ",".join(str(clock) for clock in plan.clocks_mhz),
        "cells_per_clock": str(len(plan.steps)),
        "cells": hashlib.sha256(steps.encode()).hexdigest()[:12],
        "trials": str(plan.rounds),
        "window_s": str(plan.window_s),
        "seed": str(plan.seed),
        **({"prices": _prices_sha256()} if prepared.choice.modelled else {}),
    }


def _prices_sha256() -> str:
    """Of what prices a modelled cell beside its device file: after an update it may differ."""
    package = Path(version.__file__).parent
    rooms = (package / room for room in ("backends", "devices", "models"))
    return sources_sha256(rooms)[:12]
