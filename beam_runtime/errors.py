"""What can go wrong, as one tree.

    BeamError
    ├── TableError            a perf-energy table that cannot be used
    │   └── CoverageError     a good table, asked outside what it covers
    ├── ClockError            a GPU clock that cannot be set, read or released
    │   ├── ClockUnavailableError   no GPU, no driver, not supported, not in the device's list
    │   ├── ClockPermissionError    the driver refuses this user
    │   ├── ClockNotAppliedError    this one clock was accepted and is not what the GPUs run at
    │   ├── ClockLostError          the GPUs are another's by now; nothing of his was touched
    │   └── ClockHangsError         a driver call does not return
    └── (beamprof.errors adds the offline half)

Every error says what was expected and found (the message), the observed fact
behind it (cause) and what helps (hint). The CLI prints the three on three lines.
"""

from beam_runtime.printable import printable


class BeamError(Exception):
    """Base of everything BEAM raises on purpose.

    Args:
        message: what failed and where; what was expected and what was found.
        cause: the observed fact, often another program's words.
        hint: the command, flag or edit that helps.

    ``exit_code`` is what the CLI leaves with: 1 the answer is no, 2 bad input
    or environment.
    """

    exit_code = 2

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.cause:
            parts.append(f"cause: {self.cause}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return printable("\n".join(parts))


class TableError(BeamError):
    """A table that is missing, damaged, of another schema or for something else."""


class CoverageError(TableError):
    """A query outside what the table measured, by a caller that refused extrapolation."""

    exit_code = 1  # an answer, not a fault: the table does not know


class ClockError(BeamError):
    """A GPU clock could not be set, read back or released."""


class ClockUnavailableError(ClockError):
    """No such GPU, no driver, an operation it does not support, or a clock it does not offer."""


class ClockPermissionError(ClockError):
    """The driver refuses this user; the hint names the ways out."""


class ClockNotAppliedError(ClockError):
    """This clock was accepted and does not show; the next one may hold. Nothing stays locked."""


class ClockLostError(ClockError):
    """The lease is over: another's lease or lock was found on a GPU, and left alone."""


class ClockHangsError(ClockError):
    """A driver call did not return in time; the guard gives the GPUs back."""
