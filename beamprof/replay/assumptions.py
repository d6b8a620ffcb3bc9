"""Named sets of what a replay assumes. Light: the CLI imports it at once."""

from enum import StrEnum


class Assumptions(StrEnum):
    """What options.ReplayOptions.assuming starts from; single options go before it."""

    VALIDATED = "validated"
    PUBLISHED = "published"
