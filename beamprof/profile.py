"""`beam profile` as a function: request in, table out.

    request -> prepare: model, backend, plan -> journal -> trials -> columns -> table

`prepare` decides everything and touches nothing but the output's directory, so that a dry run
and a real one cannot differ.
"""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import beamprof
from beam_runtime.table import PerfTable
from beamprof.atomic_file import check_writable
from beamprof.backends.base import FollowingBackend, MeasureBackend, Measurement
from beamprof.backends.choose import CPU, Choice, choose_backend
from beamprof.build import table_columns, table_metadata
from beamprof.errors import BackendError, SweepError
from beamprof.grid import GridLimits
from beamprof.interrupt import Stop
from beamprof.journal import Journal, journal_path
from beamprof.model_shape import ModelShape, StageShape, resolve_model
from beamprof.plan import Plan, Trial, make_plan
from beamprof.spec import SweepSpec
from beamprof.table_file import write_table

# What a stage's weights and KV cache may take of its GPU. The smallest GPU with a device file has
# 80 GB; vLLM, too, leaves a tenth to activations and graphs by default.
GPU_MEMORY_BYTES = 0.9 * 80e9
CONTEXT_DEFAULT_TOKENS = 8192
# So many cells in a row that a backend cannot run mean that it cannot run at all.
REFUSALS_IN_A_ROW = 5


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything decided, nothing measured.

    Attributes:
        plan: what will run here. measured_plan: the same on a real device; they differ where
            numbers are modelled, which needs no second trial.
        thinned: what was given up to keep the budget, in words.
        notes: defaults that were chosen, each with its reason.
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

    @property
    def journal(self) -> Path:
        """Where finished trials go."""
        return journal_path(self.output)


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What a run did.

    Attributes:
        table: None where the run was stopped before every trial was done.
        measured, resumed, remaining: trials of this run, of earlier ones, still to do.
        refused: cells that the backend could not run, with its words.
        stopped_by: the signal that ended the run early.
        duration_s: of this run.
        follower: this process was a tensor-parallel rank above 0 and has nothing to say.
    """

    prepared: Prepared
    table: PerfTable | None = None
    measured: int = 0
    resumed: int = 0
    remaining: int = 0
    refused: tuple[str, ...] = ()
    stopped_by: str | None = None
    duration_s: float = 0.0
    follower: bool = False


class Watcher(Protocol):
    """Who wants to see a sweep go by."""

    def begin(self, prepared: Prepared, done: int, total: int) -> None:
        """The first trial is about to run; ``done`` of ``total`` are in the journal already."""
        ...

    def trial(self, trial: Trial) -> None:
        """A trial begins."""
        ...

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """A trial is in the journal."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class Unwatched:
    """Nobody looks."""

    def begin(self, prepared: Prepared, done: int, total: int) -> None:
        """Say nothing."""

    def trial(self, trial: Trial) -> None:
        """Say nothing."""

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


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
    model = resolve_model(spec.model)
    stage = model.shard(spec.tp, spec.pp)
    choice = choice or choose_backend(spec, model, stage)
    plan, measured_plan, thinned = _plans(spec, grid_limits(spec, model, stage, choice), choice)
    output = request.output or Path(
        f"{model.name}-tp{spec.tp}-pp{spec.pp}-{choice.clocks.device}.parquet"
    )
    check_writable(output, force=request.force)
    notes = [f"backend: {choice.reason}"]
    if spec.origins["device"] == "default":
        notes.append(f"device: {choice.clocks.device} (default; choose with --device)")
    return Prepared(
        request, model, stage, choice, plan, measured_plan, thinned, output, tuple(notes)
    )


def _plans(spec: SweepSpec, limits: GridLimits, choice: Choice) -> tuple[Plan, Plan, str]:
    """What runs here, the same on a real device, and what that gave up to keep its budget."""
    if not choice.modelled:
        plan, thinned = make_plan(spec, limits, choice.clocks)
        plan = dataclasses.replace(plan, counted=choice.clocks.device != CPU)
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
    weights_bytes = stage.weights_per_layer * stage.layers * stage.dtype_bytes
    kv_tokens = int((GPU_MEMORY_BYTES - weights_bytes) / stage.kv_bytes_per_token)
    return GridLimits(
        max_tokens=min(spec.max_tokens, longest - 1),
        max_decodes=spec.max_decodes,
        max_context=longest,
        kv_tokens=max(kv_tokens, longest),
        # Stairs of 128 tokens were measured on A100s; on newer GPUs 64 shows as well.
        tile_tokens=128 if choice.clocks.device.startswith("a100") else 64,
        max_cells=spec.cells_per_clock,
    )


def profile(
    request: ProfileRequest,
    *,
    choice: Choice | None = None,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
) -> ProfileResult:
    """Measure what is not in the journal yet, then write the table.

    Args:
        request: what to profile.
        choice: a backend to use in place of an automatic choice.
        watcher: is told of every trial.
        stop: looked at between trials; see interrupt.stop_on_signals.

    Raises:
        BeamError: bad input, a backend that cannot run, a journal of another sweep, a full disk.
            Finished trials stay in the journal.
    """
    watcher, stop = watcher or Unwatched(), stop or Stop()
    began_s = time.monotonic()
    prepared = prepare(request, choice=choice)
    for text in prepared.notes:
        watcher.note(text)
    backend = prepared.choice.build(prepared.plan)
    try:
        environment = backend.open()
        if isinstance(backend, FollowingBackend) and backend.follows:
            # A tensor-parallel rank above 0: rank 0 decides, keeps the journal, writes the table.
            backend.follow()
            return ProfileResult(prepared, follower=True)
        sweep = sweep_identity(prepared, environment)
        with Journal.open(prepared.journal, sweep, fresh=request.fresh) as journal:
            for text in journal.notes:
                watcher.note(text)
            resumed = len(journal.entries)
            refused = run_trials(prepared, backend, journal, watcher, stop)
            entries = dict(journal.entries)
    finally:
        backend.close()
    remaining = len(prepared.plan.order()) - len(entries)
    table = None
    if entries and remaining == len(refused):
        metadata = table_metadata(
            prepared.model, prepared.stage, request.spec, prepared.plan, environment
        )
        table = write_table(
            table_columns(entries, running_mhz=prepared.choice.clocks.running_mhz),
            metadata,
            prepared.output,
            force=request.force,
        )
    return ProfileResult(
        prepared=prepared,
        table=table,
        measured=len(entries) - resumed,
        resumed=resumed,
        remaining=remaining,
        refused=tuple(refused),
        stopped_by=stop.signal_name,
        duration_s=time.monotonic() - began_s,
    )


def run_trials(
    prepared: Prepared, backend: MeasureBackend, journal: Journal, watcher: Watcher, stop: Stop
) -> list[str]:
    """Run every trial that the journal lacks; return those that the backend refused."""
    order = prepared.plan.order()
    todo = [trial for trial in order if trial not in journal.entries]
    watcher.begin(prepared, len(order) - len(todo), len(order))
    refused: list[str] = []
    in_a_row = 0
    for trial in todo:
        if stop.requested:
            break
        watcher.trial(trial)
        try:
            measurement = backend.run(trial.cell)
        except BackendError as error:
            # One cell too large for the memory must not cost the hour of the others.
            in_a_row += 1
            if in_a_row == REFUSALS_IN_A_ROW:
                raise
            refused.append(f"{trial.cell}: {error.message}")
            watcher.note(f"not measured: {refused[-1]}")
            continue
        in_a_row = 0
        journal.append(trial, measurement)
        watcher.finished(trial, measurement)
    return refused


def sweep_identity(prepared: Prepared, environment: Mapping[str, str]) -> dict[str, str]:
    """Everything that defines the sweep and its environment: what a journal belongs to."""
    plan, spec = prepared.plan, prepared.request.spec
    steps = repr(plan.steps)
    device_file = repr(prepared.choice.device_file)
    fixed = ("device", "gpu_name", "driver", "engine", "engine_version", "energy_source")
    return {
        "beamprof": beamprof.__version__,
        "model": prepared.model.name,
        "model_shape": prepared.model.to_json(),
        "tp": str(spec.tp),
        "pp": str(spec.pp),
        "backend": prepared.choice.backend,
        **{key: environment.get(key, "") for key in fixed},
        "device_file": hashlib.sha256(device_file.encode()).hexdigest()[:12],
        "clocks_mhz": ",".join(str(clock) for clock in plan.clocks_mhz),
        "cells_per_clock": str(len(plan.steps)),
        "cells": hashlib.sha256(steps.encode()).hexdigest()[:12],
        "trials": str(plan.rounds),
        "window_s": str(plan.window_s),
        "seed": str(plan.seed),
    }
