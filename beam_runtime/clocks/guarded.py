"""An actuator whose locks are leases: on record before they are set, and watched by a guard.

first set  free orphans -> take the lease -> is the GPU nobody's? -> start the guard
set        in turn: still ours? -> on record -> tell the guard -> set -> still ours?
release    in turn: still ours? -> release -> tell the guard -> note that nothing is locked
close      release -> the guard goes home -> off the record

Whoever finds that the lease is over touches nothing, says so, and may take a new one.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from beam_runtime.clocks.base import ClockActuator, ClockReading, Releaser
from beam_runtime.clocks.claims import change, give_up, restore, take, turn, unlock
from beam_runtime.clocks.evidence import foreign_clocks, free_clock_mhz
from beam_runtime.clocks.give_back import give_back, in_words, not_ours
from beam_runtime.clocks.guard import HEARTBEAT_S, Guard
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.orphans import release_orphan, release_recorded
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.presence import Presence
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError, ClockLostError

GuardFactory = Callable[[ActuatorSpec, StateFile, Holding], Guard]
# A first set may free orphans, and starts a process.
_FIRST_SET_S = 30.0
_AROUND_SET_S = 3.0  # waiting for one's turn, and the record


class GuardedActuator:
    """Wraps another actuator; is one itself. Used by one thread at a time (ClockLock sees to it).

    Args:
        actuator: sets the clocks.
        spec: the same in words, for the guard.
        state: where locks are on record.
        guard: starts the guard; replaced in tests.
    """

    def __init__(
        self,
        actuator: ClockActuator,
        spec: ActuatorSpec,
        state: StateFile | None = None,
        *,
        guard: GuardFactory = Guard,
    ) -> None:
        self._actuator = actuator
        self._spec = spec
        self._state = state or StateFile()
        self._start_guard = guard
        self._guard: Guard | None = None
        self._lease: Holding | None = None
        self._presence: Presence | None = None
        self._owner = Owner.current()
        self._one_at_a_time = threading.RLock()
        self._setting = False
        self._called_under: Guard | None = None
        self._stop = threading.Event()
        self._error: ClockError | None = None

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs."""
        return self._actuator.gpus

    @property
    def call_limit_s(self) -> float:
        """How long a set or release may take before whoever waits for it should give up."""
        first_s = _FIRST_SET_S if self._guard is None else 0.0
        return first_s + _AROUND_SET_S + self._spec.on(self.gpus).set_limit_s

    @property
    def overdue(self) -> bool:
        """Whether a driver call is under way, and the guard has given up on it."""
        guard = self._called_under
        return guard is not None and bool(guard.ended) and guard.released

    def holds(self, clock_mhz: int) -> bool:
        """Whether this lock is in force as far as is known here: the lease is ours, watched."""
        lease, guard = self._lease, self._guard
        if lease is None or guard is None or guard.ended or lease.clock_mhz != clock_mhz:
            return False
        with self._calling():
            return not not_ours(self._actuator, lease, self._state)

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """As the wrapped actuator's."""
        return self._actuator.supported_clocks_mhz()

    def read_back(self) -> tuple[ClockReading, ...]:
        """As the wrapped actuator's; a lock that shows is noted as confirmed."""
        with self._calling():
            readings = self._actuator.read_back()
        lease = self._lease
        bare = tuple(replace(one, reasons=()) for one in readings)  # excused, it shows no lock
        shows = (
            os.getpid() == self._owner.pid
            and lease is not None
            and lease.clock_mhz is not None
            and not lease.confirmed
            # One reading is enough to show a lock.
            and not foreign_clocks(lambda: bare, [lease.clock_mhz], sleep_s=lambda _: None)
        )
        if shows and not self._setting:
            self._confirm()
        return readings

    def set(self, clock_mhz: int) -> None:
        """Register, then lock.

        Raises:
            ClockLostError: the lease is over; nothing was touched.
            ClockError: as ClockActuator.set, and where it may not.
        """
        self._check_process()
        with self._one_at_a_time:
            self._raise_loss()
            if self._lease is None:
                self._take()
            with turn(self._state, self.gpus):
                self._check_still_ours()
                self._set(clock_mhz)

    def release(self, *, orphans: bool = False) -> None:
        """Give the GPUs back; they stay this process's to lock.

        Raises:
            ClockLostError: some were another's by now, and were left alone.
            ClockError: a GPU did not answer; it stays on record.
        """
        del orphans  # of others, that is: restore() takes care of them, one by one
        if os.getpid() != self._owner.pid:
            return
        with self._one_at_a_time:
            lease = self._lease
            if lease is None or lease.clock_mhz is None:
                return
            with self._turn_if_there_is_one():
                others = self._give_back(lease)
                self._note_free()
            if others:
                raise self._lose(others)

    def beat(self) -> None:
        """Tell the guard that this process is well. A thread does so every HEARTBEAT_S, too.

        Raises:
            ClockError: the guard has ended since the last call, and clocks are free; or the
                lease is over. The next set starts anew.
        """
        self._look_after()
        self._raise_loss()

    def abandon(self) -> None:
        """Leave the release to the guard: a call of this process does not return."""
        guard = self._guard
        if guard is not None and os.getpid() == self._owner.pid:
            guard.abandon()

    def close(self) -> None:
        """Give the GPUs back and send the guard home. May be called twice.

        Raises:
            ClockLostError: some were another's by now, and were left alone.
            ClockError: a GPU stays locked; it stays on record, and the guard goes on trying.
        """
        if os.getpid() != self._owner.pid:
            return
        with self._one_at_a_time:
            try:
                self.release()
            except ClockLostError:
                raise  # the lease has ended already
            except BaseException:  # whatever an actuator raises: its guard has one of its own
                self._stop.set()
                if self._guard is not None:
                    self._guard.abandon()
                    self._guard = None
                raise
            self._end_lease()

    # A lease from its beginning to its end

    def _take(self) -> None:
        restore(self._state, self._release_orphan)
        self._lease, self._presence = take(self._state, self._owner, self.gpus, self._spec.name)
        try:
            self._check_nobodys()
            self._guard = self._start_guard(self._spec.on(self.gpus), self._state, self._lease)
            if isinstance(self._actuator, NvmlGpus):
                self._actuator.moved = self._moved
            self._stop = threading.Event()
            threading.Thread(
                target=self._keep_beating, args=(self._stop,), name="beam-heartbeat", daemon=True
            ).start()
        except BaseException as error:
            self._end_lease()
            if isinstance(error, RuntimeError):  # Python's word for a machine without threads left
                raise ClockError(
                    "no clock is locked without a heartbeat", cause=str(error)
                ) from error
            raise

    def _check_nobodys(self) -> None:
        """A lock that is on no record was set by somebody who is unknown here: it stays."""
        free_mhz = free_clock_mhz(self._actuator)
        if free_mhz is None:
            return
        found = foreign_clocks(self._actuator.read_back, (), free_mhz=free_mhz)
        if found:
            gpu, clock_mhz = min(found.items())
            raise ClockError(
                f"GPU {gpu} is locked at {clock_mhz} MHz by somebody unknown; it is left alone",
                cause=f"it stays there, free it would run at {free_mhz} MHz, and no BEAM that "
                f"keeps its record in {self._state.folder} has locked it",
                hint=f"if the lock is nobody's: nvidia-smi -rgc -i {gpu}",
            )

    def _set(self, clock_mhz: int) -> None:
        lease, guard = self._lease, self._guard
        assert lease is not None  # as taken
        assert guard is not None
        before_mhz = lease.clock_mhz or lease.before_mhz
        lease = replace(lease, clock_mhz=clock_mhz, before_mhz=before_mhz, confirmed=False)
        change(self._state, lease)
        guard.about_to_set(clock_mhz)
        self._lease, self._setting = lease, True
        try:
            with self._calling():
                self._actuator.set(clock_mhz)
        finally:
            # In our turn nobody else has set anything: what the guard gave back, we have locked.
            given_back = bool(guard.ended) and guard.released
            try:
                if given_back:
                    self._actuator.release()
            finally:
                guard.returned()
                self._setting = False
            if given_back:
                self._end_lease()
                raise ClockLostError(
                    "the guard gave the GPUs back while a clock was being set",
                    cause=guard.ended,
                    hint="clocks are free; BEAM tries again after a pause",
                )

    def _check_still_ours(self) -> None:
        """In a turn. Raises ClockLostError where the lease is over."""
        lease, guard = self._lease, self._guard
        assert lease is not None  # as taken
        assert guard is not None
        if guard.ended:
            raise self._after_guard(guard)
        with self._calling():
            others = not_ours(self._actuator, lease, self._state)
        if others:
            self._give_back(lease)
            raise self._lose(others)

    def _give_back(self, lease: Holding) -> dict[str, str]:
        with self._calling():
            return give_back(self._actuator, lease, self._state, self._open_some, orphans=False)

    def _note_free(self) -> None:
        lease = self._lease
        if lease is None:
            return
        self._lease = replace(lease, clock_mhz=None, before_mhz=None, confirmed=False)
        if self._guard is not None:
            self._guard.freed()
        # A record that says otherwise costs a needless release.
        with contextlib.suppress(ClockError):
            unlock(self._state, self._owner, lease.generation)

    def _confirm(self) -> None:
        with self._one_at_a_time:
            if self._lease is None or self._guard is None:
                return
            self._lease = replace(self._lease, confirmed=True)
            self._guard.confirmed()
            with contextlib.suppress(ClockError):
                change(self._state, self._lease)

    def _lose(self, others: dict[str, str]) -> ClockLostError:
        """Forget a lease that is over; what was still its own has been given back."""
        self._end_lease()
        return ClockLostError(
            "these GPUs are another's by now; his lock stays, and no clock is set here",
            cause=in_words(others),
            hint="beam doctor shows who holds them",
        )

    def _end_lease(self) -> None:
        self._stop.set()
        lease, self._lease = self._lease, None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.freed()
            guard.close()
        if lease is not None:
            with contextlib.suppress(ClockError):
                give_up(self._state, self._owner, lease.generation)
        if self._presence is not None:
            self._presence.end()
            self._presence = None

    # The guard, watched in turn

    def _keep_beating(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            self._look_after()

    def _look_after(self) -> None:
        guard = self._guard
        if guard is None or os.getpid() != self._owner.pid or guard.beat():
            return
        if not self._one_at_a_time.acquire(blocking=False):
            return  # a call is under way, and looks for itself
        try:
            if self._guard is guard:
                self._error = self._after_guard(guard)
        finally:
            self._one_at_a_time.release()

    def _after_guard(self, guard: Guard) -> ClockError:
        """Nobody watches any more: give back what the guard has not, and say why."""
        error, lease = guard.ended_error(), self._lease
        others: dict[str, str] = {}
        if lease is not None and lease.clock_mhz is not None and not guard.released:
            try:
                with self._turn_if_there_is_one():
                    others = self._give_back(lease)
            except Exception as failure:  # a user's actuator may raise anything
                # It stays on record, and ours: the next call tries again, or the next start.
                stays = failure if isinstance(failure, ClockError) else ClockError(repr(failure))
                stays.add_note(str(error))
                return stays
        if others:
            return self._lose(others)
        self._end_lease()
        return error

    def _raise_loss(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    # Small things

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """The driver is asked, and may never answer: the guard gives back what is locked then.

        Not the record, which waits for others and for the disk.
        """
        guard = self._guard if os.getpid() == self._owner.pid else None
        self._called_under = guard
        if guard is not None:
            guard.calling()
        try:
            yield
        finally:
            self._called_under = None
            if guard is not None:
                guard.answered()

    def _check_process(self) -> None:
        if os.getpid() != self._owner.pid:
            raise ClockError("these clocks belong to the process that forked this one")

    @contextmanager
    def _turn_if_there_is_one(self) -> Iterator[None]:
        """Where the folder is out of reach nobody new can have had a turn either."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(ClockError):
                held.enter_context(turn(self._state, self.gpus))
            yield

    def _moved(self) -> None:
        guard = self._called_under
        if guard is not None:
            guard.moved()

    def _open_some(self, gpus: Sequence[str]) -> Sequence[Releaser]:
        return self._spec.on(gpus).open_releasers()

    def _release_orphan(self, holding: Holding) -> dict[str, str]:
        """As release_orphan; a command is on no record, but it may be ours."""
        if holding.actuator == ActuatorKind.COMMAND == self._spec.kind:
            return release_recorded(self._spec.on(holding.gpus), holding, self._state)
        return release_orphan(holding, self._state)
