"""Open the compiled search while the engine already serves.

    machine code on disk ── yes ─────────────────────────> load it, on the search's thread
             └── no ──> compile it in a child process ──> load it

Compiling takes up to a minute of one core and much of the interpreter's lock: in the engine's
process every hook would feel it. The child is given the very same charge, pickled, so that it
leaves on disk what this process will ask for; what it unpickles, its parent wrote a moment before
into a file that has no name. It is as polite as a process can be, and ends itself once its parent
is gone.

Where the child cannot be started or fails, the search's thread compiles: slower hooks for a
minute, once. Where it was killed, nobody compiles: what crashed it, or found it too large, could
do the same to the engine.
"""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO

from beam_runtime.control.resources import Searches
from beam_runtime.errors import BeamError

_LOG = logging.getLogger("beam_runtime")

_PARENT_POLL_S = 0.5
_LOWEST_PRIORITY = 19


class Warming:
    """Searches in the making. Everything happens in look() and on its caller's thread.

    Args:
        open_searches: makes them; picklable, and so is all that it holds.
    """

    def __init__(self, open_searches: Callable[[], Searches]) -> None:
        self._open = open_searches
        self._compiler: _Compiler | None = None
        self._may_compile = False
        self._turned = False
        self.why = "warming up: loading the search"

    def turn_to(self, open_searches: Callable[[], Searches]) -> None:
        """Make these instead. A child that compiles goes on: most of the code is the same."""
        self._open, self._may_compile = open_searches, False
        self._turned = self._compiler is not None

    def look(self) -> Searches | None:
        """The searches as soon as they can be had; None: ``why`` says what they wait for.

        Loading takes this call about a second.

        Raises:
            BeamError: the compiling child was killed.
            Exception: whatever opening them raises.
        """
        if self._compiler is not None:
            self._ask(self._compiler)
            return None
        if self._may_compile:
            return self._open()
        from beam_runtime.emulator.compiler import NotKeptError, from_disk_only

        try:
            with from_disk_only():
                return self._open()
        except NotKeptError:
            self._start()
        return None

    def close(self) -> None:
        """End the child, if there is one."""
        if self._compiler is not None:
            self._compiler.close()
            self._compiler = None

    def _start(self) -> None:
        _LOG.info("compiling the search, once after each install: up to a minute")
        try:
            self._compiler = _Compiler(self._open)
        except OSError as error:
            self._compile_here(str(error))

    def _ask(self, compiler: "_Compiler") -> None:
        status = compiler.status()
        if status is None:
            self.why = f"warming up: compiling the search, {compiler.age_s:.0f} s so far"
            return
        said = compiler.last_line()
        self.close()
        if status < 0:
            raise BeamError(f"the process that compiles the search was killed by signal {-status}")
        if status > 0:
            self._compile_here(said)
        # Whoever turned elsewhere meanwhile looks first whether that is on disk, too.
        self._may_compile = status > 0 or not self._turned
        self._turned = False

    def _compile_here(self, cause: str) -> None:
        _LOG.warning("the search is compiled in the engine's process: a child failed: %s", cause)
        self.why = "warming up: compiling the search in the engine's process"
        self._may_compile = True


class _Compiler:
    """A child that runs the charge for what it leaves on disk.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, charge: Callable[[], object]) -> None:
        self._begin_s = time.monotonic()
        with tempfile.TemporaryFile() as given:
            pickle.dump((os.getpid(), charge), given)
            given.seek(0)
            # A file, not a pipe: nobody reads while it runs.
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open until close()
            try:
                # Its own session: a signal to the engine's group is not meant for it.
                # -P: whatever lies in the working directory is none of its modules.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__],
                    stdin=given,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except OSError:
                self._errors.close()
                raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def age_s(self) -> float:
        """How long it has been at it."""
        return time.monotonic() - self._begin_s

    def status(self) -> int | None:
        """Its exit status, below 0 for a signal; None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """The last it had to say: an uncaught error, in one line."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def main() -> None:
    """The child: run what standard input holds."""
    os.nice(_LOWEST_PRIORITY)
    parent, charge = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    charge()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main()
