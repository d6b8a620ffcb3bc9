"""Where numbers come from: a row's source, and how an answer was reached."""

from enum import StrEnum


class Source(StrEnum):
    """Where a row's numbers come from. Never mixed silently."""

    MEASURED = "measured"
    MODELLED = "modelled"
    IMPORTED = "imported"


class Origin(StrEnum):
    """How an answer was reached from a table, from best to worst."""

    MEASURED = "measured"
    INTERPOLATED = "interpolated"
    EXTRAPOLATED = "extrapolated"
