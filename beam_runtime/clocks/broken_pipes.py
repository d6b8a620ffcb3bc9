"""Writing to somebody who is gone is an error, and never the engine's end.

SIGPIPE kills where a program has given it back its default action; Python ignores it. BEAM's own
threads block it, whatever the program does.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_PIPE = {signal.SIGPIPE}


def broken_pipes_raise() -> None:
    """From now on in this thread, and in those that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _PIPE)


@contextmanager
def as_programs_expect() -> Iterator[None]:
    """For starting another program: it would inherit what is blocked here."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, _PIPE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
