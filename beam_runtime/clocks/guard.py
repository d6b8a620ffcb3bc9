"""The owner's end of the guard: a small process that outlives it and gives its GPUs back.

    owner ─ socket: ".", "call", "set 735", "returned", "answered", "free" ... > guard
      ^ └───────────── pidfd: readable when the owner is dead ──────────────> │
      └────────────── pipe: "." for what was heard, "released WHY" ────────── ┘

It is told before each set and after each release, so it knows by itself what its owner holds. It
releases when the owner is dead by whatever means, when the pipe breaks, when heartbeats stop or a
driver call does not return while something is locked, and when it is told to end itself. It holds
no torch, no vLLM and no numpy. What it cannot survive: a kill of the whole container or machine;
then the next start or ``beam doctor --restore`` finds the lock on record. Its own end: watch.py.
"""

import contextlib
import json
import os
import select
import site
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from beam_runtime.clocks.spec import ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError

HEARTBEAT_S = 0.2
# Silence that counts as stopped or hung, while something is locked: four beats. With the guard's
# wait for a turn the GPUs are free within a second of it.
HEARTBEAT_TIMEOUT_S = 0.8
# A guard that says nothing for so long watches nothing.
GUARD_TIMEOUT_S = 10.0
READY = b"ready\n"
_START_TIMEOUT_S = 20.0
_LONGEST_ANSWER = 1 << 16
_QUIETLY = socket.MSG_NOSIGNAL


class Guard:
    """Starts it and talks to it. Safe to use from several threads.

    Args:
        spec: how it reaches the GPUs.
        state: where the lease is on record.
        lease: as it is now.
        heartbeat_timeout_s: silence after which it releases.

    Raises:
        ClockError: it did not start; nothing may be locked then.
    """

    def __init__(
        self,
        spec: ActuatorSpec,
        state: StateFile,
        lease: Holding,
        *,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        self._talking = threading.Lock()
        self._heard = b""
        self._heard_s = time.monotonic()
        self._ended = ""
        self.released = False
        # No pipe: where SIGPIPE has its default action, writing to a dead guard would kill.
        self._words, heard = _socketpair()
        try:
            with heard:
                self._process = _started(heard)
        except (OSError, ValueError, TypeError) as error:  # no Python, process or descriptor left
            self._words.close()
            raise _not_started(error) from error
        charge = {
            "spec": spec.to_json(),
            "state_folder": str(state.folder),
            "lease": asdict(lease),
            "heartbeat_timeout_s": heartbeat_timeout_s,
        }
        try:
            self._words.sendall(json.dumps(charge).encode() + b"\n", _QUIETLY)
            self._await_ready()
        except (OSError, ClockError) as error:
            self._process.kill()
            self._reap()
            raise _not_started(error) from error
        self._words.setblocking(False)
        os.set_blocking(self._answers, False)

    @property
    def pid(self) -> int:
        """The guard's process."""
        return self._process.pid

    @property
    def ended(self) -> str:
        """Why it watches no more; empty while it does. ``released`` says whether it gave back."""
        with self._talking:
            self._listen()
            return self._ended

    def ended_error(self) -> ClockError:
        """What the owner says of its end."""
        return ClockError(
            "the guard that releases clocks after a crash has ended",
            cause=f"process {self.pid}: {self._ended}",
            hint="clocks are free; BEAM tries again after a pause",
        )

    def beat(self) -> bool:
        """Tell it that this process is well; False when it watches no more."""
        with self._talking:
            self._listen()
            if not self._ended:
                self._say(".")
            return not self._ended

    def about_to_set(self, clock_mhz: int) -> None:
        """To be said before a set. Raises ClockError where nobody hears it."""
        with self._talking:
            self._listen()
            if not self._ended:
                self._say(f"set {clock_mhz}", must=True)
            if self._ended:
                raise self.ended_error()

    def moved(self) -> None:
        """One GPU of the set that is under way is done: it does not hang."""
        with self._talking:
            self._say("moved")

    def calling(self) -> None:
        """To be said before the driver is asked for anything."""
        with self._talking:
            self._say("call")

    def answered(self) -> None:
        """It has answered."""
        with self._talking:
            self._say("answered")

    def returned(self) -> None:
        """The set has returned, or raised."""
        with self._talking:
            self._say("returned")

    def confirmed(self) -> None:
        """All GPUs were read at the clock that was set."""
        with self._talking:
            self._say("confirmed")

    def freed(self) -> None:
        """Nothing is locked any more."""
        with self._talking:
            self._say("free")

    def close(self) -> None:
        """Send it home; the locks must have been released before."""
        with self._talking:
            self._say("quit")
            self._reap()

    def abandon(self) -> None:
        """Leave the release to it: it goes on trying where this process failed."""
        with self._talking:
            self._close_pipes()
            self._ended = self._ended or "it was left alone with the release"
        reaper = threading.Thread(target=self._process.wait, name="beam-guard-reaper", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread is left: it stays a zombie
            reaper.start()

    @property
    def _answers(self) -> int:
        assert self._process.stdout is not None  # as created
        return self._process.stdout.fileno()

    def _say(self, words: str, *, must: bool = False) -> None:
        if self._words.fileno() < 0:  # closed
            return
        try:
            self._words.send(words.encode() + b"\n", _QUIETLY)
        except BlockingIOError:  # full: it is stopped, but not gone
            if must:
                self._give_up_on("it does not listen any more")
        except OSError:
            self._ended = self._ended or "it was killed"

    def _listen(self) -> None:
        """Take in what it has said."""
        if self._ended or self._process.stdout is None or self._process.stdout.closed:
            return
        try:
            data = os.read(self._answers, _LONGEST_ANSWER)
        except BlockingIOError:
            if time.monotonic() - self._heard_s > GUARD_TIMEOUT_S:
                self._give_up_on(f"it said nothing for {GUARD_TIMEOUT_S:g} s")
            return
        except OSError:
            data = b""
        self._heard_s = time.monotonic()
        if not data:
            self._ended = "it was killed"
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            if line.startswith(b"released"):
                self.released = True
                why = line.removeprefix(b"released").decode(errors="replace").strip()
                self._ended = f"it gave the GPUs back: {why}"

    def _give_up_on(self, why: str) -> None:
        """It may wake up later: it must not release what a new guard watches."""
        self._process.kill()
        self._ended = self._ended or why

    def _await_ready(self) -> None:
        # Not select(): it knows no descriptor above 1,023, and an engine has thousands.
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        answer = b""
        if poll.poll(_START_TIMEOUT_S * 1e3):
            answer = os.read(self._answers, 4096)
        if answer != READY:
            raise ClockError(answer.decode(errors="replace").strip() or "it said nothing")

    def _close_pipes(self) -> None:
        self._words.close()
        if self._process.stdout is not None:
            with contextlib.suppress(OSError):
                self._process.stdout.close()

    def _reap(self) -> None:
        self._close_pipes()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise _not_started(error) from error


def _started(heard: socket.socket) -> "subprocess.Popen[bytes]":
    # Its own session: Ctrl-C and a supervisor's signal to the group are not meant for it.
    # -P: whatever lies in the working directory is none of its modules.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "beam_runtime.clocks.watch"],
        stdin=heard.fileno(),
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": _python_path()},
    )


def _not_started(error: Exception) -> ClockError:
    return ClockError(
        "the guard that releases clocks after a crash did not start",
        cause=str(error),
        hint="no clock is locked without it; is the Python at sys.executable complete?",
    )


def _python_path() -> str:
    """Where a Python of its own finds this package, before what it is told anyway.

    Not a folder that it looks in last by itself: backports of standard modules lie there, too.
    """
    package = Path(__file__).resolve().parents[2]
    before = os.environ.get("PYTHONPATH", "")
    if package in map(Path, (*site.getsitepackages(), site.getusersitepackages())):
        return before
    return f"{package}{os.pathsep}{before}" if before else str(package)
