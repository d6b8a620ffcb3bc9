"""What a controller is built from, opened so that nothing missing stops the engine."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from beam_runtime.clocks.base import ClockActuator
from beam_runtime.clocks.calls import OPEN_LIMIT_S, within
from beam_runtime.clocks.choose import choose_actuator
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.layout import (
    check_layout,
    check_model,
    check_visible,
    check_whole,
    models_of,
)
from beam_runtime.clocks.spec import ActuatorKind
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.emulator.moment import Moment, snapshot_of
from beam_runtime.errors import BeamError, ClockError, TableError
from beam_runtime.search.policy import LOOKAHEAD_MS, Policy
from beam_runtime.search.stance import Stance, stance_for
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.precision import check_formats
from beam_runtime.table.servable import check_servable
from beam_runtime.table.smoothing import smoothed
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    Decision,
    EngineLimits,
    Follows,
    Forecast,
    Knobs,
    Rules,
    Slo,
    Snapshot,
)

if TYPE_CHECKING:
    from beam_runtime.emulator.next_step import NextStep

Searcher = Callable[[Moment], Decision]
Given = Callable[[Snapshot], Decision]


@dataclass(frozen=True, slots=True)
class Searches:
    """What a controller asks, all on one thread.

    Attributes:
        steered: finds the best knobs for a moment.
        unlocked: the same at the highest clock only; taken where clocks cannot be set.
        predict_own: what to expect of the engine's own settings; None = nobody can say.
        next_step: the compiled composer, for an engine that asks before each step; its own.
    """

    steered: Searcher
    unlocked: Searcher
    predict_own: Callable[[Moment], Forecast] | None
    next_step: "NextStep | None" = None


# More clocks cost search time and save nothing: energy is flat around its optimum.
MOST_CLOCKS = 32


def named_gpus(gpus: Sequence[str | int]) -> tuple[str | int, ...]:
    """The list that was given, as plain names and numbers: numpy's have types of their own.

    Raises:
        TypeError: it is no list, or holds something that names no GPU.
    """
    if isinstance(gpus, str | bytes) or not isinstance(gpus, Iterable):
        raise TypeError(f"gpus is a list of UUIDs or NVML indices, found {gpus!r:.60}")
    try:
        return tuple(gpu if isinstance(gpu, str) else index(gpu) for gpu in gpus)
    except TypeError:
        raise TypeError(f"a GPU is named by UUID or NVML index, found {gpus!r:.60}") from None


def open_clocks(
    gpus: Sequence[str | int], table: PerfTable | TableError | None = None
) -> tuple[ClockActuator | None, str]:
    """The best way to set these GPUs' clocks (None: no way), and one line that says why.

    Args:
        gpus: the replica's, as many as its table says; none = clocks stay as they are.
        table: of the replica; without one nothing is known of its layout.
    """
    gpus = named_gpus(gpus)
    choice = choose_actuator(gpus)
    if choice.spec.kind is ActuatorKind.NONE:
        return None, str(choice)

    def open_them() -> ClockActuator:
        actuator = choice.spec.open()
        check_whole(gpus)
        check_visible(actuator.gpus)
        actuator.supported_clocks_mhz()  # where it cannot work it says so here
        return actuator

    try:
        if isinstance(table, PerfTable):
            check_layout(gpus, table.tp, table.pp)
        state = StateFile()
        within(OPEN_LIMIT_S, lambda: _keeps(state))
        actuator = within(OPEN_LIMIT_S, open_them)
        # By UUID from here on: an index changes when a GPU falls off the bus.
        spec = replace(choice.spec, gpus=actuator.gpus)
        return GuardedActuator(actuator, spec, state), str(choice)
    except ClockError as error:
        cause = f" ({error.cause})" if error.cause else ""
        return None, f"clocks stay as they are: {error.message}{cause}"
    except Exception as error:  # an engine starts, whatever its driver and its /proc are like
        return None, f"clocks stay as they are: {type(error).__name__}: {error}"


def _keeps(state: StateFile) -> None:
    """Raises ClockError where no lock can be put on record: none would ever be set."""
    state.prepare()
    state.check()


def open_table(
    path: str | Path,
    *,
    model: str | None = None,
    tp: int | None = None,
    pp: int | None = None,
    device: str | None = None,
    gpus: Sequence[str | int] = (),
    quantization: str | None = None,
    dtype: str | None = None,
) -> PerfTable | TableError:
    """The table, or why it cannot be used: it is none, or for something else (see from_table)."""
    gpus = named_gpus(gpus)
    try:
        table = PerfTable.load(path, model=model, tp=tp, pp=pp, device=device)
        check_formats(table, str(path), method=quantization, weights=dtype)
        check_servable(table, str(path))
        check_gpus(table, gpus)
    except TableError as error:
        return error
    except BeamError as error:
        return TableError(error.message, cause=error.cause, hint=error.hint)
    except Exception as error:  # an engine starts, whatever lies there
        return _unforeseen(path, error)
    return table


def check_gpus(table: PerfTable, gpus: Sequence[str | int]) -> None:
    """Raises TableError where these GPUs are of another kind than the table's."""
    check_model(models_of(gpus), table.metadata.get("gpu_name", ""), table.device)


def open_cost(
    table: PerfTable | TableError,
    actuator: ClockActuator | None,
    idle_power_w: float | None = None,
) -> StepCost | TableError:
    """Step costs at the clocks that table and GPUs share; the error, where there are none."""
    if isinstance(table, TableError):
        return table
    try:
        offered = () if actuator is None else actuator.supported_clocks_mhz()
        cost = smoothed(StepCost.from_table(table, served_clocks(table.clocks_mhz, offered)))
        return with_idle_power(cost, idle_power_w)
    except TableError as error:
        return error
    except BeamError as error:
        return TableError(error.message, cause=error.cause, hint=error.hint)
    except Exception as error:
        return _unforeseen(f"the table of {table.model}", error)


def _unforeseen(what: object, error: Exception) -> TableError:
    return TableError(
        f"{what} cannot be used",
        cause=f"{type(error).__name__}: {error}",
        hint="this is an error of BEAM's too: please report it with the file",
    )


def served_clocks(measured: Sequence[int], offered: Sequence[int]) -> tuple[int, ...]:
    """The clocks to choose among: offered by the GPUs, inside what was measured, not too many.

    Raises:
        TableError: the GPUs offer no clock inside the measured range.
    """
    if not offered:
        return tuple(measured)
    inside = [clock for clock in offered if min(measured) <= clock <= max(measured)]
    if not inside:
        raise TableError(
            f"the GPUs offer no clock between {min(measured)} and {max(measured)} MHz",
            cause=f"they offer {min(offered)} to {max(offered)} MHz",
            hint="is the table for this GPU?",
        )
    both = [clock for clock in inside if clock in set(measured)]
    # A table of few clocks is interpolated between them: its costs are smooth in the clock.
    clocks = both if len(both) >= MOST_CLOCKS // 2 else inside
    every = -(-len(clocks) // MOST_CLOCKS)
    return tuple(sorted({*clocks[::-1][::every], clocks[-1]}))


def at_top_clock(cost: StepCost) -> StepCost:
    """The same costs, with the highest clock to choose from alone."""
    return replace(
        cost,
        clocks_mhz=cost.clocks_mhz[-1:],
        linear_latency_ms=cost.linear_latency_ms[-1:],
        linear_energy_j=cost.linear_energy_j[-1:],
        attention_latency_ms=cost.attention_latency_ms[-1:],
        attention_energy_j=cost.attention_energy_j[-1:],
        idle_power_w=cost.idle_power_w[-1:],
    )


def open_stance(
    cost: StepCost | TableError,
    limits: EngineLimits,
    slo: Slo,
    classes: Collection[Slo],
    follows: Follows,
    own: Knobs,
) -> Stance:
    """How to steer; of no consequence without a table."""
    if isinstance(cost, TableError):
        return Stance(Rules(), Policy(), Correction())
    return stance_for(cost, limits, slo, classes, follows, own.chunk_tokens)


def open_searches(
    cost: StepCost | TableError,
    limits: EngineLimits,
    stance: Stance,
    own: Knobs,
    given: Given | None,
    *,
    clocks: bool,
    composer: bool = False,
) -> Searches:
    """Everything compiled that a controller calls, called once.

    Args:
        cost: step costs, or why there are none.
        limits: of the engine.
        stance: how to steer it.
        own: the engine's own settings.
        given: a search to use instead.
        clocks: whether they can be set.
        composer: whether to open the compiled composer, too.
    """
    predict_own = None if given else open_own(cost, limits, own)
    next_step = open_next_step(cost, limits) if composer else None
    if not clocks:
        search = open_search(_unlocked(cost), limits, stance, given)
        return Searches(search, search, predict_own, next_step)
    # The second is made when it is needed: the day may never come.
    unlocked = _lazily(lambda: open_search(_unlocked(cost), limits, stance, given))
    return Searches(open_search(cost, limits, stance, given), unlocked, predict_own, next_step)


def open_search(
    cost: StepCost | TableError, limits: EngineLimits, stance: Stance, given: Given | None
) -> Searcher:
    """The search of one thread: its arrays are its own."""
    if isinstance(cost, TableError):
        return _refuses(cost)
    if given is not None:
        return lambda moment: given(snapshot_of(moment))
    from beam_runtime.search.search import Search

    return Search(cost, limits, rules=stance.rules, policy=stance.policy)


def open_own(
    cost: StepCost | TableError, limits: EngineLimits, own: Knobs
) -> Callable[[Moment], Forecast] | None:
    """Forecasts of the engine's own settings; None without a table."""
    if isinstance(cost, TableError):
        return None
    from beam_runtime.search.search import warm_up
    from beam_runtime.search.searcher import Searcher as Player

    player = Player(cost, limits, Rules.vanilla(), (own.chunk_tokens,), (0.0,), LOOKAHEAD_MS)

    def predict(moment: Moment) -> Forecast:
        return player.forecast(moment, own)

    # Compiled here, so that no request ever waits for it.
    predict(warm_up(limits, own.chunk_tokens, own.clock_mhz))
    return predict


def open_next_step(cost: StepCost | TableError, limits: EngineLimits) -> "NextStep | None":
    """The compiled composer; None without a table."""
    if isinstance(cost, TableError):
        return None
    from beam_runtime.emulator.next_step import NextStep

    return NextStep(cost, limits)


def _unlocked(cost: StepCost | TableError) -> StepCost | TableError:
    return cost if isinstance(cost, TableError) else at_top_clock(cost)


def _lazily(make: Callable[[], Searcher]) -> Searcher:
    made: list[Searcher] = []

    def search(moment: Moment) -> Decision:
        if not made:
            made.append(make())
        return made[0](moment)

    return search


def _refuses(error: TableError) -> Searcher:
    def search(moment: Moment) -> Decision:
        raise error

    return search
