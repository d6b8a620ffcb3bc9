"""The offline half of the error tree (see beam_runtime.errors for the root).

BeamError
├── ModelShapeError     an unknown model, a broken config.json, a split that does not divide
├── DeviceError         an unknown or broken device file
├── BackendError        a backend that cannot run here
│   └── UnheldClockError    passes ran below the clock that they were to be measured at
├── SweepError          a sweep or value that cannot be understood
├── JournalError        a journal that belongs to another sweep or is damaged
├── ImportFormatError   a foreign file that is not what it should be
├── TraceError          a request trace that is broken, empty or unsafe, or a transform of it
├── ReplayError         a replay that cannot be played as asked
├── ReportError         a file that no report can be made of
├── StateError          a state of an engine that cannot be understood
├── OutputError         a file that exists or cannot be written
└── AnswerIsNo          the command worked and its answer is no (exit code 1)
"""

from beam_runtime.errors import BeamError


class ModelShapeError(BeamError):
    """A model that is unknown, broken, or cannot be split as asked."""


class DeviceError(BeamError):
    """A device file that is unknown or broken."""


class BackendError(BeamError):
    """A measuring backend that cannot run here."""


class UnheldClockError(BackendError):
    """A window's clock fell below its lock, again and again: costs the cell, not the sweep."""


class SweepError(BeamError):
    """A sweep file, flag or value that cannot be understood."""


class JournalError(BeamError):
    """A journal of another sweep, or one that is damaged."""


class ImportFormatError(BeamError):
    """A foreign file that lacks a column, has another unit, or is no such file."""


class TraceError(BeamError):
    """A request trace, native or foreign, that cannot be used as it is."""


class StateError(BeamError):
    """An engine's state, given as flags or JSON, that cannot be understood or cannot be."""


class OutputError(BeamError):
    """An output that exists already or cannot be written."""


class AnswerIsNo(BeamError):  # noqa: N818 - not a failure: a negative answer
    """The command did its work; its answer is no."""

    exit_code = 1


class ReplayError(BeamError):
    """A replay that cannot be played as asked."""


class ReportError(BeamError):
    """A result, study or log that cannot be made into a report."""
