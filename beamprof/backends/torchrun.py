"""What torchrun tells the processes that it starts."""

import os
from collections.abc import Mapping


def started_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun started; 1 without it."""
    return int(environment.get("WORLD_SIZE", "1"))
