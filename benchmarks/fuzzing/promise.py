"""Promises never to raise, held."""

from collections.abc import Callable


class RaisedError(AssertionError):
    """Something that promises never to raise did."""


def must_not_raise(do: Callable[[], object]) -> object:
    """Do it; whatever it raises is an escape, also what would count as an answer elsewhere."""
    try:
        return do()
    except Exception as error:
        raise RaisedError(f"{type(error).__name__}: {error!s:.200}") from error
