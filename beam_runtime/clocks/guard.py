"""A small process that outlives the engine and gives its GPUs back.

    engine process ── pipe: "." every half second, "q" at a clean end ──> guard
          └────────────────── pidfd: readable when it is dead ───────────> guard

It releases when the owner is dead by whatever means, when the pipe breaks, when heartbeats
stop (a hung or stopped engine), and when it is told to end itself. It holds no torch, no
vLLM and no numpy. What it cannot survive: a kill of the whole container or machine; then the
next start or ``beam doctor --restore`` finds the lock on record.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from beam_runtime.clocks.base import Releaser
from beam_runtime.clocks.claims import give_up
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorSpec
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.errors import ClockError

HEARTBEAT_S = 0.5
# A Python process that is swapped out or in a long native call may be silent for seconds.
HEARTBEAT_TIMEOUT_S = 5.0
_READY = b"ready\n"
_START_TIMEOUT_S = 20.0
_BEAT, _QUIT = b".", b"q"
_OWNER_POLL_MS = 200
_RELEASE_PAUSES_S = (0.05, 0.2, 1.0, 5.0, 20.0)


class Guard:
    """The owner's end of it.

    Raises:
        ClockError: it did not start; nothing may be locked then.
    """

    def __init__(
        self,
        spec: ActuatorSpec,
        state: StateFile,
        owner: Owner,
        *,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        # Its own session: Ctrl-C and a supervisor's signal to the group are not meant for it.
        # -P: whatever lies in the working directory is none of its modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )
        charge = {
            "spec": spec.to_json(),
            "state_folder": str(state.folder.absolute()),
            "owner": asdict(owner),
            "heartbeat_timeout_s": heartbeat_timeout_s,
        }
        try:
            self._write(json.dumps(charge).encode() + b"\n")
            self._await_ready()
        except (OSError, ClockError) as error:
            self._process.kill()
            self._reap()
            raise ClockError(
                "the guard that releases clocks after a crash did not start",
                cause=str(error),
                hint="no clock is locked without it; is the Python at sys.executable complete?",
            ) from error
        os.set_blocking(self._pipe, False)

    @property
    def pid(self) -> int:
        """The guard's process."""
        return self._process.pid

    def beat(self) -> bool:
        """Tell it that this process is well; False when it is gone."""
        with contextlib.suppress(BlockingIOError):  # full: it is stopped, but not gone
            try:
                self._write(_BEAT)
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Send it home; the locks must have been released before."""
        with contextlib.suppress(OSError):
            self._write(_QUIT)
        self._reap()

    def abandon(self) -> None:
        """Leave the release to it: it goes on trying where this process failed."""
        self._close_pipes()
        threading.Thread(target=self._process.wait, name="beam-guard-reaper", daemon=True).start()

    @property
    def _pipe(self) -> int:
        assert self._process.stdin is not None  # as created
        return self._process.stdin.fileno()

    def _write(self, data: bytes) -> None:
        os.write(self._pipe, data)

    def _await_ready(self) -> None:
        stream = self._process.stdout
        assert stream is not None  # as created
        readable, _, _ = select.select([stream], [], [], _START_TIMEOUT_S)
        answer = os.read(stream.fileno(), 4096) if readable else b""
        if answer != _READY:
            raise ClockError(answer.decode(errors="replace").strip() or "it said nothing")

    def _close_pipes(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _reap(self) -> None:
        self._close_pipes()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Watch:
    """The guard's end: waits for the owner's end and says how it came.

    Args:
        owner: the process to watch.
        pipe: file descriptor of its heartbeats.
        heartbeat_timeout_s: silence that counts as hung.
    """

    def __init__(self, owner: Owner, pipe: int, heartbeat_timeout_s: float) -> None:
        self._owner = owner
        self._pipe = pipe
        self._timeout_s = heartbeat_timeout_s
        self._pidfd = _pidfd_of(owner)

    def wait(self) -> str:
        """Block until there is a reason to release; empty when the owner ended cleanly."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if self._pidfd is not None:
            poll.register(self._pidfd, select.POLLIN)
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(_OWNER_POLL_MS)]
            if self._pipe in ready:
                data = os.read(self._pipe, 4096)
                if _QUIT in data:
                    return ""
                if not data:
                    return "the owner closed its end"
                deadline_s = time.monotonic() + self._timeout_s
            if self._pidfd in ready or (self._pidfd is None and not self._owner.alive()):
                return "the owner is dead"
            if time.monotonic() > deadline_s:
                return f"no heartbeat for {self._timeout_s:g} s"


def release(
    releasers: Sequence[Releaser],
    state: StateFile,
    owner: Owner,
    *,
    sleep_s: Callable[[float], None] = time.sleep,
) -> bool:
    """Give the owner's GPUs back if they are still its own; False when that failed for some.

    Each machine's GPUs go free by themselves, and off the record then; what does not answer is
    asked again after a pause, and stays on record.
    """
    left = list(releasers)
    for pause_s in (0.0, *_RELEASE_PAUSES_S):
        sleep_s(pause_s)
        left = [one for one in left if not _released(one, state, owner)]
        if not left:
            return True
    return False


def _released(releaser: Releaser, state: StateFile, owner: Owner) -> bool:
    """Try once.

    It happens under the state file's lock, so that a new owner can neither claim nor lock
    these GPUs in between. Where the file is out of reach nobody new can have claimed them
    either, and the GPUs are released without it.
    """
    on_record = False
    with contextlib.suppress(ClockError):
        with contextlib.suppress(ClockError), state.change() as holdings:
            on_record = True
            own = [h for h in holdings if h.owner == owner and set(h.gpus) & set(releaser.gpus)]
            if any(h.clock_mhz is not None for h in own):
                releaser.release(orphans=True)
            holdings[:] = [h for h in holdings if h not in own]
            return True
        if not on_record:
            releaser.release(orphans=True)
            return True
    return False


def main() -> int:
    """Read the charge from standard input, answer ``ready``, watch, release."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        charge = json.loads(_read_line(0))
        owner = Owner(**charge["owner"])
        state = StateFile(Path(charge["state_folder"]))
        releasers = ActuatorSpec.from_json(charge["spec"]).open_releasers()
        watch = Watch(owner, 0, float(charge["heartbeat_timeout_s"]))
    except Exception as error:  # whatever it is, the owner has to hear of it
        os.write(1, f"{type(error).__name__}: {error}".encode())
        return 2
    signal.signal(signal.SIGTERM, _on_sigterm)
    os.write(1, _READY)
    try:
        reason = watch.wait()
    except _ToldToEnd:
        reason = "told to end"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not reason:
        give_up(state, owner)
        return 0
    return 0 if release(releasers, state, owner) else 1


class _ToldToEnd(BaseException):
    """SIGTERM: the machine goes down, or somebody cleans up."""


def _on_sigterm(number: int, frame: object) -> None:
    raise _ToldToEnd


def _read_line(descriptor: int) -> bytes:
    """One line and not a byte more: what follows are heartbeats."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


def _pidfd_of(owner: Owner) -> int | None:
    """A handle on the owner's process; None where the kernel has none to give."""
    try:
        descriptor = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return None
    except OSError:
        return None
    if not owner.alive():  # the number was given to another process in the meantime
        os.close(descriptor)
        return None
    return descriptor


def _python_path() -> str:
    package = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    return f"{package}{os.pathsep}{before}" if before else package


if __name__ == "__main__":
    sys.exit(main())
