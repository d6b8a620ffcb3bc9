"""Freeing what dead owners left locked, as their records tell: claims.restore asks for it."""

from beam_runtime.clocks.give_back import give_back
from beam_runtime.clocks.spec import ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError


def release_orphan(holding: Holding, state: StateFile | None = None) -> dict[str, str]:
    """Free a dead owner's GPUs, as its record tells.

    Returns:
        The GPUs that were left alone, as another holds them, and why.

    Raises:
        ClockError: one does not answer, or the record does not say how.
    """
    spec = ActuatorSpec.from_name(holding.actuator, holding.gpus)
    return release_recorded(spec, holding, state or StateFile())


def release_recorded(spec: ActuatorSpec, holding: Holding, state: StateFile) -> dict[str, str]:
    """The same by a way that is known besides: a site's command is on no record."""
    others: dict[str, str] = {}
    failures: list[ClockError] = []
    for one in spec.open_releasers():
        try:
            others |= give_back(
                one, holding, state, lambda gpus: spec.on(gpus).open_releasers(), orphans=True
            )
        except ClockError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return others
