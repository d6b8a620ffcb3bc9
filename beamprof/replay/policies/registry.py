"""Policies by the names that users write: `vanilla,static:knee,beam`."""

import difflib
import re
from collections.abc import Callable

from beam_runtime.table.perf_table import PerfTable
from beamprof.errors import ReplayError
from beamprof.replay.knee import knee_mhz
from beamprof.replay.policies.base import Policy
from beamprof.replay.policies.beam import PARTS, Beam
from beamprof.replay.policies.beam_paper import BeamPaper
from beamprof.replay.policies.lowest_feasible import LowestFeasible
from beamprof.replay.policies.power_limit import MIN_LIMIT_SHARE, PowerLimit, highest_pass_w
from beamprof.replay.policies.static import Static
from beamprof.replay.policies.window_dvfs import WindowDvfs
from beamprof.tables.offered_clocks import check_offered
from beamprof.units import parse_power_w

VANILLA = "vanilla"
ORACLE = "oracle"
KNEE = "static:knee"
VANILLA_BEST = "vanilla:best"
STATIC_BEST = "static:best"
MAX_Q = "max-q"
# Found by playing the trace itself (rivals.py), not by what the table says.
HINDSIGHT = (VANILLA_BEST, STATIC_BEST, MAX_Q)
SPELLINGS = (
    "vanilla[:CHUNK|best]", "static:MHZ[:CHUNK]|knee|best", "max-q[:WATTS]", "window-dvfs",
    "lowest-feasible", "beam-paper", "beam[:PART+PART|no-PART]", "oracle",
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
    if kind == MAX_Q and argument:
        return PowerLimit(name, _limit_w(argument, name, table), table.tp)
    if kind == "beam" and argument:
        return Beam(name, _parts(argument, name))
    kinds = [re.split(r"[:\[]", spelling)[0] for spelling in SPELLINGS]
    close = difflib.get_close_matches(kind.strip().lower(), kinds, n=1, cutoff=0.6)
    meant = f"did you mean {close[0]!r}? " if close and close[0] != kind else ""
    raise ReplayError(
        f"no policy is called {name!r}", hint=f"{meant}known are {', '.join(SPELLINGS)}"
    )


def _limit_w(argument: str, name: str, table: PerfTable) -> float:
    limit_w = parse_power_w(argument if argument.endswith("W") else f"{argument}W", name)
    most_w = highest_pass_w(table)
    if not MIN_LIMIT_SHARE * most_w <= limit_w:
        raise ReplayError(
            f"{name}: no GPU holds a limit so far under what its passes draw",
            cause=f"up to {most_w:.0f} W each in the table",
            hint=f"{MIN_LIMIT_SHARE * most_w:.0f}W or more; max-q alone finds the best one",
        )
    return limit_w


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
    if _whole(argument) not in table.clocks_mhz:  # what was measured was locked
        check_offered(table, _whole(argument))
    return _whole(argument)


def _whole(text: str) -> int:
    """A whole number above 0; 0 for what is none."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0
