"""What may happen to rows and requests that do not fit. Light: the CLI imports it at once."""

from enum import StrEnum


class BadRows(StrEnum):
    """Rows of a foreign file that are no requests: raise at the first, or drop and count."""

    ERROR = "error"
    DROP = "drop"


class OverLimit(StrEnum):
    """Requests of more tokens than the model takes."""

    DROP = "drop"
    TRUNCATE = "truncate"
    ERROR = "error"


class MissingDataset(StrEnum):
    """Active clients of a ServeGen pool whose lengths are not there: raise, or skip and count."""

    ERROR = "error"
    SKIP = "skip"
