"""One colour per policy, the same in every figure; distinct also without red and green."""

from collections.abc import Iterable

_KNOWN = {"vanilla": 0, "static:best": 1, "window-dvfs": 2, "beam-paper": 3, "beam": 4, "oracle": 0}
_FREE = (5, 6, 7, 8, 9)


def colours(policies: Iterable[str]) -> dict[str, str]:
    """The CSS class of each policy; policies without a colour of their own share the rest."""
    classes: dict[str, str] = {}
    others = 0
    for policy in policies:
        if policy in _KNOWN:
            number = _KNOWN[policy]
        else:
            number = _FREE[others % len(_FREE)]
            others += 1
        classes[policy] = f"c{number}"
    return classes
