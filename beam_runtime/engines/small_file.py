"""A file of a few lines that an engine reads at its start: whatever lies there, it starts."""

import os
import stat
from pathlib import Path


def read_small(path: Path, most_bytes: int) -> str:
    """A small file's text. A pipe is not waited for, and a device without end is not read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file or no text, is larger, or no file can have this name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return data.decode("utf-8")
