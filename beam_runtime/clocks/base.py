"""The seam between whoever wants a clock and whatever can set it.

An actuator drives all GPUs of one replica together: they are all at the same clock
or all released. It is used through beam_runtime.clocks.lock.ClockLock, which reads
every set back and releases on every way out; a registry of locks or a guard wraps an
actuator in another one and needs no hook here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from beam_runtime.errors import ClockError, ClockUnavailableError

POWER_CAP = "power cap"
GPU_IDLE = "gpu idle"
CLOCK_SETTING = "clock setting"
# Neither holds back a GPU that has work: an idle GPU, and a clock that was asked for.
NOT_THROTTLING = (GPU_IDLE, CLOCK_SETTING)

# Supported SM clocks lie 15 MHz apart on A100, H100 and H200: half a step, rounded up.
READ_BACK_TOLERANCE_MHZ = 8
# A GPU that runs further below its lock is not at that lock's clock, nor is what it measures.
CLOCK_LOSS = 0.01


@dataclass(frozen=True, slots=True)
class ClockReading:
    """One GPU's SM clock, and why it is what it is.

    Attributes:
        gpu: the GPU's UUID.
        clock_mhz: SM clock at this moment.
        reasons: NVML's clock-event reasons as text, see beam_runtime.clocks.nvml.REASONS; None
            where the GPU does not tell them.
    """

    gpu: str
    clock_mhz: int
    reasons: tuple[str, ...] | None = ()

    @property
    def throttle(self) -> tuple[str, ...]:
        """The reasons that hold the clock back while there is work."""
        return tuple(reason for reason in self.reasons or () if reason not in NOT_THROTTLING)

    def obeys(self, clock_mhz: int) -> bool:
        """Whether a lock at ``clock_mhz`` is in force, as far as one reading can tell.

        A locked GPU may still read lower while it has no work or sits at its power cap;
        below the lock for any other reason means that the lock was not applied.
        """
        below_mhz = clock_mhz - self.clock_mhz
        if (
            -READ_BACK_TOLERANCE_MHZ
            <= below_mhz
            <= max(READ_BACK_TOLERANCE_MHZ, CLOCK_LOSS * clock_mhz)
        ):
            return True
        excused = self.reasons is None or GPU_IDLE in self.reasons or POWER_CAP in self.reasons
        return below_mhz > 0 and excused


class Releaser(Protocol):
    """Gives GPUs back: what a guard and a restore need of an actuator."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs it drives: by UUID, as an index changes when one falls off the bus."""
        ...

    def release(self, *, orphans: bool = False) -> None:
        """See ClockActuator.release."""
        ...


class ClockActuator(Releaser, Protocol):
    """Sets, reads back and releases the SM clock of a replica's GPUs."""

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """The SM clocks that every one of the GPUs offers, ascending."""
        ...

    def set(self, clock_mhz: int) -> None:
        """Lock every GPU at ``clock_mhz``. If one refuses, none stays locked.

        Raises:
            ClockUnavailableError: no such clock, GPU or operation.
            ClockPermissionError: this user may not.
            ClockError: the driver failed otherwise.
        """
        ...

    def read_back(self) -> tuple[ClockReading, ...]:
        """The SM clock now of each GPU that can be read, in the order of ``gpus``.

        Raises ClockError.
        """
        ...

    def release(self, *, orphans: bool = False) -> None:
        """Undo the locks that this actuator set; may be called twice.

        Tries every GPU before it raises ClockError for those that did not answer.

        Args:
            orphans: also undo locks on these GPUs that another process left behind.
        """
        ...


@contextmanager
def all_or_none(release: Callable[[], None]) -> Iterator[None]:
    """If the block fails to lock a GPU, give back those it has locked; the first error stands."""
    try:
        yield
    except ClockError as error:
        try:
            release()
        except ClockError as second:
            error.add_note(f"while giving the GPUs back: {second}")
        raise


def check_supported(clock_mhz: int, supported_mhz: Sequence[int]) -> None:
    """Refuse a clock that the GPUs do not offer; the hint names its neighbours.

    Raises:
        ClockUnavailableError: the clock is not in the list.
    """
    if clock_mhz in supported_mhz:
        return
    if not supported_mhz:
        raise ClockUnavailableError("the GPUs have no SM clock in common", hint="use equal GPUs")
    nearest = sorted(sorted(supported_mhz, key=lambda clock: abs(clock - clock_mhz))[:2])
    raise ClockUnavailableError(
        f"the GPUs do not offer {clock_mhz} MHz",
        cause=f"they offer {len(supported_mhz)} clocks from {min(supported_mhz)} "
        f"to {max(supported_mhz)} MHz",
        hint=f"the nearest are {' and '.join(str(clock) for clock in nearest)} MHz",
    )
