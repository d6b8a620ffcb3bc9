"""What a sweep would cost, before it begins: trials, minutes, kWh, and what is done already."""

from dataclasses import dataclass

from beamprof.backends.cell import Cell
from beamprof.profiler.journal import peek
from beamprof.profiler.plan import TRIAL_OVERHEAD_S, Plan
from beamprof.profiler.prepare import Prepared, ProfileRequest, prepare, sweep_identity

JOULES_PER_KWH = 3.6e6
# Known only once the backend has opened its device, which a dry run does not.
_ENVIRONMENT = ("device", "gpu_name", "driver", "engine", "engine_version", "energy_source")


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would happen.

    Attributes:
        cells, trials: of the run that would start here; ``done`` trials are in the journal.
        device_trials, device_s, device_kwh: of the same sweep measured on a real device; kWh of
            the stage's GPUs, from the modelled power of every cell, None where no model exists.
        other_journal: the journal there belongs to another sweep; in words, else empty.
    """

    prepared: Prepared
    cells: int
    trials: int
    done: int
    device_trials: int
    device_s: float
    device_kwh: float | None
    other_journal: str


def dry_run(request: ProfileRequest) -> DryRun:
    """Plan a sweep without running it. Raises BeamError as prepare.prepare does."""
    prepared = prepare(request)
    ours = sweep_identity(prepared, {})
    theirs, done = peek(prepared.journal)
    changed = [
        key
        for key in {**ours, **theirs}
        if theirs and key not in _ENVIRONMENT and ours.get(key) != theirs.get(key)
    ]
    if changed or request.fresh:
        done = 0
    order = prepared.plan.order()
    measured = prepared.measured_plan
    return DryRun(
        prepared=prepared,
        cells=len({trial.cell for trial in order}),
        trials=len(order),
        done=done,
        device_trials=measured.trial_count,
        device_s=measured.duration_s,
        device_kwh=_kwh(prepared, measured),
        other_journal=f"it differs in {', '.join(changed[:4])}" if changed else "",
    )


def _kwh(prepared: Prepared, plan: Plan) -> float | None:
    device = prepared.choice.device_file
    if device is None:
        return None
    from beamprof.backends.modelled import ModelledBackend

    backend = ModelledBackend(prepared.model, prepared.stage, device)
    power_w: dict[Cell, float] = {}
    energy_j = 0.0
    for trial in plan.order():
        if trial.cell not in power_w:
            modelled = backend.run(trial.cell)
            power_w[trial.cell] = modelled.energy_j / modelled.latency_ms * 1e3
        energy_j += power_w[trial.cell] * (plan.window_s + TRIAL_OVERHEAD_S)
    return energy_j / JOULES_PER_KWH
