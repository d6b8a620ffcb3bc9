"""Policies by the names that users write: `vanilla,static:knee,beam`."""

import re
from collections.abc import Callable

from beam_runtime.table.perf_table import PerfTable
from beamprof.errors import ReplayError
from beamprof.replay.knee import knee_mhz
from beamprof.replay.policies.base import Policy
from beamprof.replay.policies.beam import PARTS, Beam
from beamprof.replay.policies.beam_paper import BeamPaper
from beamprof.replay.policies.lowest_feasible import LowestFeasible
from beamprof.replay.policies.static import Static
from beamprof.replay.policies.window_dvfs import WindowDvfs

VANILLA = "vanilla"
ORACLE = "oracle"
KNEE = "static:knee"
VANILLA_BEST = "vanilla:best"
STATIC_BEST = "static:best"
# Found by playing the trace itself (rivals.py), not by what the table says.
HINDSIGHT = (VANILLA_BEST, STATIC_BEST)
SPELLINGS = (
    "vanilla[:CHUNK|best]", "static:MHZ[:CHUNK]|knee|best", "window-dvfs", "lowest-feasible",
    "beam-paper", "beam[:PART+PART|no-PART]", "oracle",
)  # fmt: skip


def policy_named(name: str, table: PerfTable) -> Policy:
    """The policy that ``name`` asks for; not those of HINDSIGHT, nor ORACLE.

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
    if kind == "vanilla" and _whole(argument):
        return Static(name, None, _whole(argument))
    if kind == "static" and argument:
        clock, colon, chunk = argument.partition(":")
        if not colon:
            return Static(name, _clock_mhz(argument, name, table))
        if _whole(chunk):
            return Static(name, _clock_mhz(clock, name, table), _whole(chunk))
    if kind == "beam" and argument:
        return Beam(name, _parts(argument, name))
    raise ReplayError(f"no policy is called {name!r}", hint=f"known are {', '.join(SPELLINGS)}")


def _parts(argument: str, name: str) -> tuple[str, ...]:
    """`clock+chunk+pace` has those and no other, `no-pace` all but that."""
    if argument.startswith("no-") and argument[3:] in PARTS:
        return tuple(part for part in PARTS if part != argument[3:])
    wanted = argument.split("+")
    if wanted[0] != "clock" or not set(wanted[1:]) <= set(PARTS):
        raise ReplayError(
            f"{name}: expected clock, and after it some of {', '.join(PARTS)}, joined by +",
            cause=f"found {argument!r}",
            hint="beam:no-pace is beam without pacing",
        )
    return tuple(wanted[1:])


def _clock_mhz(argument: str, name: str, table: PerfTable) -> int:
    if argument == "knee":
        return knee_mhz(table)
    low, high = table.clocks_mhz[0], table.clocks_mhz[-1]
    if not low <= _whole(argument) <= high:
        raise ReplayError(
            f"{name}: expected a clock inside the table's {low} to {high} MHz, or knee",
            cause=f"found {argument!r}",
        )
    return _whole(argument)


def _whole(text: str) -> int:
    """A whole number above 0; 0 for what is none."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0
