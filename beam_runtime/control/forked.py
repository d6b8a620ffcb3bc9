"""Forked children are told that they are not their parent: its threads stay behind."""

import os
import weakref
from collections.abc import Callable


def tell_children(orphaned: Callable[[], None]) -> None:
    """Call a bound method in every child that is forked while its object lives."""
    method = weakref.WeakMethod(orphaned)

    def tell() -> None:
        found = method()
        if found is not None:
            found()

    os.register_at_fork(after_in_child=tell)
