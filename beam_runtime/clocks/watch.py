"""The guard's own end: watch an owner, know what it holds, give that back when it must.

Started by guard.py, which draws how they talk. What it knows of locks it was told
before each of them; the record only tells it whom they belong to by now.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from beam_runtime.clocks.base import Releaser
from beam_runtime.clocks.calls import within
from beam_runtime.clocks.claims import give_up, turn
from beam_runtime.clocks.give_back import give_back
from beam_runtime.clocks.guard import HEARTBEAT_S, READY
from beam_runtime.clocks.holding import parse_holding
from beam_runtime.clocks.memory import Memory
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.places import node_of
from beam_runtime.clocks.presence import forget
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError

_OWNER_POLL_S = 0.2
_RELEASE_PAUSES_S = (0.05, 0.2, 1.0, 5.0, 20.0)
# A stopped owner may sit on its turn for ever; where it cannot be had, nobody new has one either.
_TURN_TIMEOUT_S = 0.1
# How long its folder may take to answer.
_FOLDER_LIMIT_S = 0.3
# How late a pause may end before this process, too, counts as having been kept from running.
_OVERSLEPT_S = 0.1
# A heart not heard for so long is late: its owner does not run, whatever it has begun.
_LATE_BEAT_S = 1.5 * HEARTBEAT_S
_LONGEST_READ = 1 << 16


class Watch:
    """Waits for the owner's end and says how it came.

    Args:
        lease: of the owner, as it is now.
        pipe: file descriptor of its messages.
        heartbeat_timeout_s: silence that counts as hung, while something is locked.
        hang_s: how long a driver call may take, or stay with one GPU where it tells of each, while
            its owner's heart beats on. Where that is silent, too, somebody may keep Python's lock:
            that is a silence.
        answer: file descriptor for what is said back; None = nobody listens.
        wake: file descriptor that is readable once this process was told to end.
    """

    def __init__(
        self,
        lease: Holding,
        pipe: int,
        heartbeat_timeout_s: float,
        *,
        hang_s: float = float("inf"),
        answer: int | None = None,
        wake: int | None = None,
    ) -> None:
        self.memory = Memory(lease)
        self._owner = lease.owner
        self._pipe = pipe
        self._timeout_s = heartbeat_timeout_s
        self._hang_s = hang_s
        self._answer = answer
        self._wake = wake
        self.told_to_end = False
        self._pidfd = _pidfd_of(lease.owner)
        self._cut = b""
        self._pipe_open = True
        self._heard_s = time.monotonic()
        os.set_blocking(pipe, False)

    def wait(self) -> str:
        """Block until there is a reason to release; empty when the owner ended cleanly."""
        while True:
            dead = self._pause()
            memory, now_s = self.memory, time.monotonic()
            if memory.quit:
                return ""
            if dead:
                return "its owner is dead"
            if not self._pipe_open:
                return "its owner closed its end"
            if self.told_to_end:
                return "it was told to end"
            if memory.lease.clock_mhz is None:
                continue
            for what, since_s in self._calls():
                if min(now_s, self._heard_s + _LATE_BEAT_S) - since_s > self._hang_s:
                    return f"{what} does not return for {self._hang_s:g} s"
            if now_s - self._heard_s > self._timeout_s:
                return f"no heartbeat for {self._timeout_s:g} s"

    def _calls(self) -> Iterator[tuple[str, float]]:
        """What is under way: in words, and since when."""
        if self.memory.setting_since_s is not None:
            yield "a set", self.memory.setting_since_s
        if self.memory.calling_since_s is not None:
            yield "a driver call", self.memory.calling_since_s

    def linger(self) -> bool:
        """After a release: whether the owner died with a set under way, which may have worked.

        An owner that goes on sees that it has lost its lease, and says quit.
        """
        while True:
            dead = self._pause()
            setting = self.memory.setting_since_s is not None
            if self.memory.quit or self.told_to_end or not (self._pipe_open or setting):
                return False
            if dead:
                return setting

    def say(self, words: str) -> None:
        """To the owner, who may be gone or deaf."""
        if self._answer is not None:
            with contextlib.suppress(OSError):
                os.write(self._answer, words.encode() + b"\n")

    def _pause(self) -> bool:
        """Wait for something to happen and take it in; whether the owner is dead."""
        poll = select.poll()
        if self._pipe_open:
            poll.register(self._pipe, select.POLLIN)
        for descriptor in (self._pidfd, self._wake):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        begun_s = time.monotonic()
        pause_s = self._pause_s(begun_s)
        ready = [descriptor for descriptor, _ in poll.poll(pause_s * 1e3)]
        overslept_s = time.monotonic() - begun_s - pause_s
        if overslept_s > _OVERSLEPT_S:  # the whole machine or container was: no sign of a hang
            self._heard_s += overslept_s
            self.memory.excuse(overslept_s)
        dead = self._pidfd in ready or (self._pidfd is None and not self._owner.alive())
        self.told_to_end = self.told_to_end or (self._wake is not None and self._wake in ready)
        if self._pipe_open and (dead or self.told_to_end or self._pipe in ready):
            self._read_all()
        return dead

    def _pause_s(self, now_s: float) -> float:
        left_s = [_OWNER_POLL_S]
        if self.memory.lease.clock_mhz is not None:
            left_s.append(self._heard_s + self._timeout_s - now_s)
            ends_s = [since_s + self._hang_s for _, since_s in self._calls()]
            left_s += [end_s - now_s for end_s in ends_s if end_s <= self._heard_s + _LATE_BEAT_S]
        return max(0.0, min(left_s)) + 0.001

    def _read_all(self) -> None:
        """Everything that is in the pipe: the last words of the dead count, too."""
        while True:
            try:
                data = os.read(self._pipe, _LONGEST_READ)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._pipe_open = False
                break
            now_s = time.monotonic()
            self.memory.excuse(max(0.0, now_s - self._heard_s - _LATE_BEAT_S))
            self._heard_s = now_s
            *lines, self._cut = (self._cut + data).split(b"\n")
            for line in lines:
                self.memory.take_in(line.decode(errors="replace"))
            self._cut = self._cut[-_LONGEST_READ:]
        self.say(".")


def release(
    releasers: Sequence[Releaser],
    state: StateFile,
    lease: Holding,
    open_some: Callable[[Sequence[str]], Sequence[Releaser]],
    *,
    at_once: int = 1,
    sleep_s: Callable[[float], None] = time.sleep,
) -> bool:
    """Give the owner's GPUs back if they are still its own; False when that failed for some.

    Each machine's GPUs go free by themselves, and off the record then; what does not answer is
    asked again after a pause, and stays on record. With ``at_once`` above 1 so many go side by
    side: a hung owner sits on the turn of each GPU, and each is waited for.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    # This machine's driver may hang: the others come first.
    left = sorted(releasers, key=lambda one: not any(map(node_of, one.gpus)))
    for pause_s in (0.0, *_RELEASE_PAUSES_S):
        sleep_s(pause_s)
        record = _as_it_answers(state)
        with ThreadPoolExecutor(at_once) as hands:
            tries = {hands.submit(_released, one, record, lease, open_some): one for one in left}
            for done in as_completed(tries):
                if done.result():
                    # One at a time: the record has one lock for all, and little patience.
                    _strike(record, lease, tries[done].gpus)
                    left.remove(tries[done])
        if not left:
            return True
    return False


class _OutOfReach(StateFile):
    """A record whose folder does not answer: the file system of a network that is gone."""

    def read(self) -> tuple[Holding, ...]:
        raise ClockError(f"{self.folder} does not answer")


def _as_it_answers(state: StateFile) -> StateFile:
    """The record, or one out of reach: no lock waits for a file system."""
    try:
        within(_FOLDER_LIMIT_S, lambda: _is_there(state))
    except ClockError:
        return _OutOfReach(state.folder)
    return state


def _is_there(state: StateFile) -> bool:
    # Path.is_dir() raises where a folder is stale.
    return not isinstance(state, _OutOfReach) and os.path.isdir(state.folder)  # noqa: PTH112


def _released(
    releaser: Releaser,
    state: StateFile,
    lease: Holding,
    open_some: Callable[[Sequence[str]], Sequence[Releaser]],
) -> bool:
    """Try once, in a turn where one can be had: where not, nobody new can have had one either."""
    with contextlib.ExitStack() as held:
        if lease.clock_mhz is not None:
            if _is_there(state):
                with contextlib.suppress(ClockError):
                    held.enter_context(turn(state, releaser.gpus, _TURN_TIMEOUT_S))
            try:
                give_back(releaser, lease, state, open_some, orphans=True)
            except Exception:  # whatever it is: it is tried again, and stays on record
                return False
    return True


def _strike(state: StateFile, lease: Holding, gpus: Sequence[str]) -> None:
    """These GPUs are off the lease, as far as there is a record."""
    if not _is_there(state):
        return
    with contextlib.suppress(ClockError), state.change() as record:
        kept = [
            replace(one, gpus=tuple(gpu for gpu in one.gpus if gpu not in gpus))
            if one.same_lease(lease)
            else one
            for one in record
        ]
        record[:] = [one for one in kept if one.gpus]


def main() -> int:
    """Read the charge from standard input, answer ``ready``, watch, release."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        charge = json.loads(_read_line(0))
        lease = parse_holding(charge["lease"])
        state = StateFile(Path(charge["state_folder"]), patience_s=_TURN_TIMEOUT_S)
        spec = ActuatorSpec.from_json(charge["spec"])
        releasers = spec.open_releasers(all_of_them=True)
        watch = Watch(
            lease,
            0,
            float(charge["heartbeat_timeout_s"]),
            hang_s=spec.hang_s,
            answer=1,
            wake=_on_sigterm(),
        )
    except Exception as error:  # whatever it is, the owner has to hear of it
        os.write(1, f"{type(error).__name__}: {error}".encode())
        return 2
    os.write(1, READY)
    os.set_blocking(1, False)
    reason = watch.wait()
    if not reason and watch.memory.lease.clock_mhz is None:
        with contextlib.suppress(ClockError):
            give_up(state, lease.owner, lease.generation)
        return 0
    watch.say(f"released {reason}")

    def open_some(gpus: Sequence[str]) -> Sequence[Releaser]:
        return spec.on(gpus).open_releasers()

    # Sites' commands and a daemon are asked for one GPU after the other.
    at_once = len(releasers) if spec.kind is ActuatorKind.NVML else 1
    done = release(releasers, state, watch.memory.lease, open_some, at_once=at_once)
    if not watch.told_to_end and watch.linger():
        done = release(releasers, state, watch.memory.lease, open_some, at_once=at_once)
    with contextlib.suppress(ClockError):
        within(_FOLDER_LIMIT_S, lambda: forget(state.presence(lease.generation)))
    return 0 if done else 1


def _on_sigterm() -> int:
    """SIGTERM (the machine goes down, or somebody cleans up) makes this descriptor readable.

    A handler that raised could cut a message or a release in two.
    """
    wake, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return wake


def _read_line(descriptor: int) -> bytes:
    """One line and not a byte more: what follows are messages."""
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
    except OSError:
        return None
    if not owner.alive():  # the number was given to another process in the meantime
        os.close(descriptor)
        return None
    return descriptor


if __name__ == "__main__":
    sys.exit(main())
