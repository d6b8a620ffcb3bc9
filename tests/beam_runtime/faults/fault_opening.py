"""Searches that are slow to open, in a module that the compiling child can import, too."""

import os
import signal
import time
from pathlib import Path

from fault_bench import content

from beam_runtime.control.resources import Searches
from beam_runtime.emulator import compiler as jit


def open_fake(folder: Path, engine_pid: int, *_: object, **__: object) -> Searches:
    """Compiled in no time; what becomes of a child is for files in ``folder`` to say."""
    compiled = folder / "compiled"
    if os.getpid() != engine_pid:
        while not (folder / "go").exists():
            if (folder / "die").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if (folder / "fail").exists():
                raise RuntimeError("no room for the child")
            time.sleep(0.005)
        compiled.touch()
    elif not compiled.exists() and not jit._may_compile.get():
        raise jit.NotKeptError
    elif (folder / "broken").exists():
        raise OSError("no such library")
    return Searches(content, content, None)
