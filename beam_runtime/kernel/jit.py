"""The compiler: the only place that imports numba."""

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])

# numpy's error model: the rules rule out divisions by zero, so no branch for them. No reference
# counting (``_nrt``): nothing here allocates, and counting references to every array at every
# call takes ten times as long as the work itself.
_OPTIONS = {"error_model": "numpy", "_nrt": False}


def compiled(function: Function) -> Function:
    """For compiled callers only: without a way in from Python it compiles twice as fast."""
    inner: Function = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(
        function
    )
    return inner


def inlined(function: Function) -> Function:
    """Large and called in one place: compiled as part of its caller instead of once for each."""
    part: Function = numba.njit(inline="always", **_OPTIONS)(function)
    return part


def entry(function: Function) -> Function:
    """Called from Python: compiled with all it calls, and kept on disk."""
    outer: Function = numba.njit(cache=True, **_OPTIONS)(function)
    return outer
