"""BEAM_* variables that are almost a setting: whoever mistypes one believes that it is obeyed."""

import difflib
from collections.abc import Mapping

from beamprof.console import note

PREFIX = "BEAM_"
# What the runtime and BEAM's own machinery read.
OTHERS = ("config", "policy", "state_dir", "token", "complete")
ALIKE = 0.7


def note_mistyped(environment: Mapping[str, str]) -> None:
    """Note each variable that no command reads and whose name is near one that is read.

    Names that are near none are left alone: other programs' names begin with BEAM_ as well.
    """
    named = [name for name in sorted(environment) if name.startswith(PREFIX)]
    if not named:
        return
    from beamprof.profiler.spec import SETTINGS
    from beamprof.replay.study_spec import SETTINGS as STUDY

    known = [*(setting.key for setting in (*SETTINGS, *STUDY)), *OTHERS]
    for name in named:
        key = name.removeprefix(PREFIX).lower()
        near = [] if key in known else difflib.get_close_matches(key, known, n=1, cutoff=ALIKE)
        if near:
            note(f"{name} is not read: did you mean {PREFIX}{near[0].upper()}?")
