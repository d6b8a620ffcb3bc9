"""Policies by the names that users write: `vanilla,static:knee,beam`."""

from collections.abc import Callable

from beam_runtime.table import PerfTable
from beam_runtime.types import Rules
from beamprof.errors import ReplayError
from beamprof.replay.knee import knee_mhz
from beamprof.replay.policies.base import Policy
from beamprof.replay.policies.beam import Beam
from beamprof.replay.policies.beam_paper import BeamPaper
from beamprof.replay.policies.lowest_feasible import LowestFeasible
from beamprof.replay.policies.static import Static
from beamprof.replay.policies.window_dvfs import WindowDvfs

VANILLA = "vanilla"
ORACLE = "oracle"
KNEE = "static:knee"
SPELLINGS = (
    "vanilla[:CHUNK]", "static:MHZ|knee", "window-dvfs", "lowest-feasible", "beam-paper",
    "beam[:no-RULE]", "oracle",
)  # fmt: skip
RULES = {
    "no-jit": Rules(just_in_time=False),
    "no-ride": Rules(ride_along=False),
    "no-give-way": Rules(give_way=False),
    "no-cut": Rules(late_cuts_chunk=False),
    "no-pace": Rules(pace=False),
}


def policy_named(name: str, table: PerfTable) -> Policy:
    """The policy that ``name`` asks for.

    Raises:
        ReplayError: there is none, or its argument makes no sense for this table.
    """
    kind, _, argument = name.partition(":")
    plain: dict[str, Callable[[str], Policy]] = {
        "window-dvfs": WindowDvfs,
        "lowest-feasible": LowestFeasible,
        "beam-paper": BeamPaper,
        "vanilla": lambda name: Static(name, None),
        "beam": Beam,
    }
    if not argument and kind in plain:
        return plain[kind](name)
    if kind == "vanilla" and argument.isdecimal() and int(argument) > 0:
        return Static(name, None, int(argument))
    if kind == "static" and argument:
        return Static(name, _clock_mhz(argument, name, table))
    if kind == "beam" and argument in RULES:
        return Beam(name, RULES[argument])
    raise ReplayError(f"no policy is called {name!r}", hint=f"known are {', '.join(SPELLINGS)}")


def _clock_mhz(argument: str, name: str, table: PerfTable) -> int:
    if argument == "knee":
        return knee_mhz(table)
    low, high = table.clocks_mhz[0], table.clocks_mhz[-1]
    if not argument.isdecimal() or not low <= int(argument) <= high:
        raise ReplayError(
            f"{name}: expected a clock inside the table's {low} to {high} MHz, or knee",
            cause=f"found {argument!r}",
        )
    return int(argument)
